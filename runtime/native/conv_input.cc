#include "conv_input.h"

#include <cstring>

namespace cnpass {

InputLayout::InputLayout(const ConvGeometry& g)
    : stride(g.stride[2]),
      phase(divide_up(g.padded[2], stride)),
      row(phase * stride),
      plane(g.padded[1] * row),
      channel(g.padded[0] * plane),
      image(g.channels * channel) {}

void lay_out_channel(const ConvGeometry& g, const InputLayout& layout, const float* source, float* target) {
  std::memset(target, 0, static_cast<size_t>(layout.channel) * sizeof(float));
  for (int64_t d = 0; d < g.input[0]; ++d) {
    for (int64_t h = 0; h < g.input[1]; ++h, source += g.input[2]) {
      float* row = target + (g.pad_begin[0] + d) * layout.plane + (g.pad_begin[1] + h) * layout.row;
      if (layout.stride == 1) {
        std::memcpy(row + g.pad_begin[2], source, static_cast<size_t>(g.input[2]) * sizeof(float));
        continue;
      }
      if (layout.stride == 2) {  // a loop that the compiler can turn into vectors
        float* here = row + layout.in_row(g.pad_begin[2]);
        float* next = row + layout.in_row(g.pad_begin[2] + 1);
        const int64_t pairs = g.input[2] / 2;
        for (int64_t w = 0; w < pairs; ++w) {
          here[w] = source[2 * w];
          next[w] = source[2 * w + 1];
        }
        if (g.input[2] % 2 != 0) here[pairs] = source[2 * pairs];
        continue;
      }
      for (int64_t first = 0; first < std::min(layout.stride, g.input[2]); ++first) {
        float* value = row + layout.in_row(g.pad_begin[2] + first);
        for (int64_t w = first; w < g.input[2]; w += layout.stride) *value++ = source[w];
      }
    }
  }
}

float* room_for_images(int64_t size) {
  thread_local Buffer buffer;
  return buffer.reserve(size);
}

}  // namespace cnpass

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
      for (int64_t first = 0; first < std::min(layout.stride, g.input[2]); ++first) {
        float* value = row + layout.in_row(g.pad_begin[2] + first);
        for (int64_t w = first; w < g.input[2]; w += layout.stride) *value++ = source[w];
      }
    }
  }
}

}  // namespace cnpass

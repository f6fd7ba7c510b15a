// The input of a convolution in the order in which the kernels read it.
#pragma once

#include <algorithm>

#include "buffer.h"
#include "conv_geometry.h"
#include "kernels.h"
#include "op.h"

namespace cnpass {

// At stride 1 along the last axis a row is as in X, with its padding. At stride s it is taken apart into s
// phases, phase p holding values p, p + s, p + 2 s, ..., one phase after the other: whatever the stride,
// neighbouring outputs then read neighbouring values.
struct InputLayout {
  explicit InputLayout(const ConvGeometry& g);

  // Offset of the value at `position` along the last axis in its row.
  int64_t in_row(int64_t position) const { return position % stride * phase + position / stride; }

  // In floats, but for the stride.
  int64_t stride;
  int64_t phase;
  int64_t row;
  int64_t plane;
  int64_t channel;
  int64_t image;
};

// Some of the images, laid out.
struct Images {
  const float* data;
  int64_t first;  // index in X
  int64_t count;
  int64_t readable;  // floats that may be read from `data` on
};

// Writes one channel of X, laid out.
void lay_out_channel(const ConvGeometry& geometry, const InputLayout& layout, const float* source,
                     float* target);

// Room of this thread for images that are laid out, one at a time.
float* room_for_images(int64_t size);

// What inspects nothing, for the function below.
constexpr auto kNoInspection = [](int64_t, const float*) {};

// Calls use(images) for all images of X in turn, a portion at a time where they must be copied, converted if
// there is a DAC. If `with_slack`, kSlack floats may be read past the last image. Calls inspect(image,
// values), from any thread, for every channel that is copied.
template <class Inspect, class Use>
void for_images(const Call& call, const ConvGeometry& g, const InputLayout& layout, const float* x,
                const std::optional<Converter>& dac, bool with_slack, const Inspect& inspect,
                const Use& use) {
  constexpr int64_t kPortion = 1 << 20;  // floats; at least one image
  const int64_t channel = g.input[0] * g.input[1] * g.input[2];
  if (g.padded == g.input && layout.stride == 1 && !with_slack && !dac) {
    if (g.images > 0) use(Images{x, 0, g.images, g.images * g.channels * channel});
    return;
  }
  const int64_t portion = std::min(g.images, std::max<int64_t>(1, kPortion / layout.image));
  float* const laid_out = room_for_images(portion * layout.image + kSlack);  // for all threads
  std::fill_n(laid_out + portion * layout.image, kSlack, 0.0f);
  for (int64_t first = 0; first < g.images; first += portion) {
    const int64_t count = std::min(portion, g.images - first);
    parallel_if_worth(call, count * g.channels, count * layout.image, [&](int64_t i) {
      float* target = laid_out + i * layout.channel;
      lay_out_channel(g, layout, x + (first * g.channels + i) * channel, target);
      if (dac) kernels().matrix.quantise(target, layout.channel, *dac, target);
      inspect(first + i / g.channels, target);
    });
    use(Images{laid_out, first, count, count * layout.image + kSlack});
  }
}

}  // namespace cnpass

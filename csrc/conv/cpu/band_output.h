// Where a band's results go.
#pragma once

#include "conv/cpu/band.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {

// Channel `channel` of a band's first position in the output.
template <class S>
S* band_output(const Correlation& c, const Band& band, int64_t channel, const Images<S>& out) {
  int64_t first_pixel = 0;
  for (int d = 0; d < kSpatialRank; ++d) {
    first_pixel = first_pixel * out.size[d] + c.out_base[d] + band.first[d] * c.out_step[d];
  }
  return out.data + band.image * out.image_stride() + channel * out.channel_stride() + first_pixel * out.pixel_stride();
}

// Where position (d, h, w) of a band lies in an image of the output, in pixels from the band's first.
SCRATCHNN_INLINE int64_t out_pixel(const Correlation& c, const Extent& size, int64_t d, int64_t h, int64_t w) {
  return (d * c.out_step[0] * size[1] + h * c.out_step[1]) * size[2] + w * c.out_step[2];
}

// A band's results to the output: `channels` numbers of each position, `stride` apart at `from`, to those at `to`. Each
// position is one of every `step` columns, or as many columns as there are phases, side by side. Where `streamed`,
// contiguous rows are written past the cache.
template <class T, class S>
void write_band(const Correlation& c, const Band& band, int64_t phases, const T* from, int64_t stride, int64_t channels,
                const Images<S>& out, S* to, bool streamed = false) {
  const int64_t step = phases > 1 ? 1 : c.out_step[2];
  const int64_t first = c.out_base[2] + band.first[2] * c.out_step[2];
  const int64_t width = phases > 1 ? std::min(band.size[2] * phases, out.size[2] - first) : band.size[2];
  if (!out.channels_last && band.size[0] == 1 && c.out_step[1] == 1 && step == 1 && width == out.size[2] &&
      width == band.size[2] * phases) {  // whole rows lie side by side
    for (int64_t n = 0; n < band.images; ++n) {
      transpose_block(from + n * band.size[1] * width * stride, stride, to + n * out.image_stride(), out.pixels(),
                      band.size[1] * width, channels, streamed);
    }
    return;
  }
  for_each_row(band, [&](int64_t p, int64_t n, int64_t d, int64_t h) {
    const T* row = from + p * phases * stride;
    S* out_row = to + n * out.image_stride() + out_pixel(c, out.size, d, h, 0) * out.pixel_stride();
    if (out.channels_last) {
      for (int64_t w = 0; w < width; ++w) copy_numbers(row + w * stride, channels, out_row + w * step * out.channels);
    } else if (step == 1) {
      transpose_block(row, stride, out_row, out.pixels(), width, channels, streamed);
    } else {
      for (int64_t k = 0; k < channels; ++k) {
        for (int64_t w = 0; w < width; ++w) write_one(out_row + k * out.pixels() + w * step, row[w * stride + k]);
      }
    }
  });
}

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

// Shapes: spatial extents of any rank, and the output-size rule every sliding-window layer obeys.
//
// One, two and three spatial dimensions are one case: depth, height, width, the missing leading ones of size 1
// (kernel 1, stride 1, no padding).
#pragma once

#include <array>
#include <cstdint>

namespace scratchnn {

constexpr int kSpatialRank = 3;
using Extent = std::array<int64_t, kSpatialRank>;

[[gnu::always_inline]] inline int64_t volume(const Extent& extent) {
  return extent[0] * extent[1] * extent[2];
}

[[gnu::always_inline]] inline int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// floor((W + P - D (K - 1) - 1) / S) + 1, P the padding of both sides together. The same rule in Python is
// output_size in scratchnn/ops/_common.py.
[[gnu::always_inline]] inline int64_t output_size(int64_t size, int64_t kernel, int64_t padding, int64_t stride,
                                                  int64_t dilation) {
  const int64_t span = size + padding - dilation * (kernel - 1) - 1;
  return (span >= 0 ? span / stride : -1) + 1;
}

// Rank-n values as an Extent: the missing leading dimensions take `fill`.
template <class Values>
Extent spatial_extent(const Values& values, int64_t fill) {
  Extent extent{fill, fill, fill};
  const auto missing = kSpatialRank - static_cast<int64_t>(values.size());
  for (int64_t i = 0; i < static_cast<int64_t>(values.size()); ++i) extent[missing + i] = values[i];
  return extent;
}

// A batch of images in memory, without gaps: N x C x D x H x W (contiguous) or N x D x H x W x C (channels_last).
template <class T>
struct Images {
  T* data;
  int64_t channels;
  Extent size;
  bool channels_last;

  [[gnu::always_inline]] int64_t pixels() const { return volume(size); }
  [[gnu::always_inline]] int64_t image_stride() const { return channels * pixels(); }
  [[gnu::always_inline]] int64_t channel_stride() const { return channels_last ? 1 : pixels(); }
  [[gnu::always_inline]] int64_t pixel_stride() const { return channels_last ? channels : 1; }
};

}  // namespace scratchnn

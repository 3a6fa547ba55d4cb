// Winograd convolutions of few channels: dense ones, and the groups of grouped ones.
//
// Few channels are multiplied sooner than their points come and go between the caches. Here a block is a few tiles
// only, products are written over points that were multiplied before, and all sizes are known to the compiler, which
// saves most of the time that addresses take.
//
// Channels are taken `width` at a time: those of one group, or of as many groups as fill a vector.
#pragma once

#include "conv/cpu/winograd_tiles.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {
namespace winograd {

// The points of a block of `tiles` tiles.
template <class T, int64_t width, int64_t tiles>
struct NarrowPoints {
  T* data;
  static constexpr int64_t plane = tiles * width, tile = width, block = width, block_stride = 0;
  static constexpr int64_t size = kPoints * plane;
  static constexpr bool asks = false;
};

// Of a piece of contiguous images, which has several blocks. Parts of rows are cut where a block of `block` tiles ends.
template <class T>
int64_t narrow_piece_tiles(const Tiles& tiles, int64_t width, int64_t block) {
  constexpr int64_t kPieceBytes = 128 << 10;  // of outputs
  const int64_t most = kPieceBytes / (kOut * kOut * width * static_cast<int64_t>(sizeof(T)));
  return most < tiles.columns() ? std::max(block, most / block * block) : most;
}

// The pixels of a block of at most `tiles` tiles, `width` channels of each, asked of memory a part at a time while
// points are multiplied: `rows` of each tile from its first one on, and as many columns as make the next tile's follow,
// `column` of them left out.
template <class S, int64_t width, int64_t tiles, int64_t rows = kOut, int64_t column = 0>
class UpcomingTiles {
 public:
  // The tiles [first, last), in so many steps.
  UpcomingTiles(const Tiles& all, int64_t first, int64_t last, const Pixels<S>& pixels, int64_t steps)
      : steps_(steps),
        row_stride_(pixels.images.size[2] * pixels.images.channels),
        pixel_stride_(pixels.images.channels),
        total_((last - first) * rows) {
    const Images<S>& images = pixels.images;
    for_each_run(all, first, last, [&](const Run& run, int64_t position) {
      const int64_t row = pixels.slice * images.size[1] + run.row * kOut + pixels.top;
      const S* tile = images.data + run.image * images.image_stride() + row * row_stride_ + pixels.channel;
      for (int64_t t = 0; t < run.count; ++t) {
        tiles_[position + t] = tile + ((run.column + t) * kOut + pixels.left + column) * pixel_stride_;
      }
    });
  }

  SCRATCHNN_MEMBER void step() {
    for (due_ += total_; due_ >= steps_; due_ -= steps_) {
      const S* pixel = tiles_[tile_] + row_ * row_stride_;
#pragma GCC unroll 4
      for (int64_t x = 0; x < kOut; ++x, pixel += pixel_stride_) prefetch(pixel, width);
      if (++row_ < rows) continue;
      row_ = 0;
      ++tile_;
    }
  }

 private:
  const S* tiles_[tiles];
  int64_t steps_, row_stride_, pixel_stride_;
  int64_t total_, due_ = 0;  // rows; and how many are to be asked for, times the steps
  int64_t tile_ = 0, row_ = 0;
};

// body(width, group), constants both, for groups of so many channels: those that choice.cpp calls narrow.
template <class T, class Body>
SCRATCHNN_INLINE void with_width(int64_t channels, const Body& body) {
  const auto call = [&](auto group) __attribute__((always_inline)) {
    constexpr int64_t width = group < kLanes<T> ? kLanes<T> : static_cast<int64_t>(group);
    body(std::integral_constant<int64_t, width>(), group);
  };
  if (channels == 8) return call(std::integral_constant<int64_t, 8>());
  if (channels == 16) return call(std::integral_constant<int64_t, 16>());
  if constexpr (sizeof(T) == 4) {
    if (channels == 64) return call(std::integral_constant<int64_t, 64>());
  }
  call(std::integral_constant<int64_t, 32>());
}

}  // namespace winograd
}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

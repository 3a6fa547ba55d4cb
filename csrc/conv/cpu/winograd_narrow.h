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
};

// Of a piece of contiguous images, which has several blocks. Parts of rows are cut where a block of `block` tiles ends.
template <class T>
int64_t narrow_piece_tiles(const Tiles& tiles, int64_t width, int64_t block) {
  constexpr int64_t kPieceBytes = 128 << 10;  // of outputs
  const int64_t most = kPieceBytes / (kOut * kOut * width * static_cast<int64_t>(sizeof(T)));
  return most < tiles.columns() ? std::max(block, most / block * block) : most;
}

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

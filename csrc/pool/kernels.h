// The fast pooling kernels, and the relation between pixels they all work from.
//
// Along each dimension by itself, pooling relates output positions to input positions: an output position's
// window. Written down as a list per position, padding, stride, dilation, ceil mode and adaptive windows are
// all the same to a kernel. The forward pass computes output pixels from their inputs; the backward pass
// follows the same relation the other way round and computes each input pixel's gradient from the outputs
// whose windows hold it, so that every result is written once, by one thread, its terms in a fixed order.
#pragma once

#include <array>
#include <cstdint>

#include "common/dispatch.h"
#include "common/geometry.h"

namespace scratchnn {

struct PoolShape {
  int64_t images, channels;
  bool channels_last;
  Extent input, output;
};

// Where the windows of max pooling lie. Along each dimension, the window of output position o has count[o] taps, from
// input position begin[o] on, `dilation` apart; padding puts some of them outside the input. Taps are numbered row by
// row in a box of `taps`, which the windows fill, adaptive ones not always. `stride` leads from each window to the
// next, or is 0 where that varies.
struct Windows {
  Extent taps, stride, dilation;
  std::array<const int64_t*, kSpatialRank> begin, count;
};

// The windows of every plane: the same for all, or, in fractional pooling, each plane's own.
struct PlaneWindows {
  const Windows* windows;
  bool same;

  [[gnu::always_inline]] const Windows& of(int64_t plane) const { return windows[same ? 0 : plane]; }
};

// One source position of a result position, along one dimension.
struct Link {
  int64_t source;
  int64_t tap;    // max pooling: this dimension's part of the tap's number within the window
  double factor;  // average pooling: this dimension's part of the divisor; backward, its reciprocal
};

// The links of result position i are links[first[i]] ... links[first[i + 1] - 1], by rising source.
struct Links {
  const int64_t* first;
  const Link* links;

  const Link* begin(int64_t i) const { return links + first[i]; }
  int64_t count(int64_t i) const { return first[i + 1] - first[i]; }
};

// Windows along a row that step evenly: tap k of output column x is input column x * stride + k * dilation - padding.
// No taps: they do not.
struct EvenColumns {
  int64_t taps, stride, dilation, padding;
};

constexpr int64_t kMostParts = 4;  // strides that kernels can part columns by

// What the pixels of a result image are computed from. A result pixel's sources are the product of its links
// along depth, height and width.
struct Relation {
  int64_t images;
  int64_t channels;
  bool channels_last;
  Extent result;
  Extent source;
  std::array<Links, kSpatialRank> along;
  Extent links;         // how many there are along each dimension
  int64_t most_rows;    // the most source rows that one result row has
  EvenColumns columns;  // of the windows, whichever way the relation is read
};

// Values and, unless `offsets` is null, the number of each maximum's tap within its window.
// S: float, double, BFloat16 or Half (common/half.h). Offset: uint8_t, or int32_t for windows of more than 256 taps.
// Offsets are laid out as the output is.
template <class S, class Offset>
inline Kernel<void(const S* input, S* output, Offset* offsets, const Relation& forward)> max_pool_kernel;

// Where is_gathered (relation.h).
template <class S, class Offset>
inline Kernel<void(const S* grad, const Offset* offsets, S* grad_input, const Relation& backward)>
    max_pool_backward_kernel;

template <class S>
inline Kernel<void(const S* input, S* output, const Relation& forward)> average_kernel;

template <class S>
inline Kernel<void(const S* grad, S* grad_input, const Relation& backward)> average_backward_kernel;

}  // namespace scratchnn

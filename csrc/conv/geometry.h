// The shape of one convolution, validated once (checks.cpp) and read by every kernel.
#pragma once

#include "common/geometry.h"

namespace scratchnn {

// What a convolution reads outside of the image. No padded copy of the image is ever made: whoever reads the border
// asks border_pixel().
enum class Border { kZeros, kReflect, kReplicate, kCircular };

// The pixel of a row of `size` that stands at position i of the row and its border; -1 where that is a zero.
[[gnu::always_inline]] inline int64_t border_pixel(int64_t i, int64_t size, Border border) {
  if (i >= 0 && i < size) return i;
  int64_t pixel = -1;
  switch (border) {
    case Border::kZeros:
      break;
    case Border::kReflect:  // the first and the last pixel are mirrors, and appear once
      pixel = i < 0 ? -i : 2 * (size - 1) - i;
      break;
    case Border::kReplicate:
      pixel = i < 0 ? 0 : size - 1;
      break;
    case Border::kCircular:
      pixel = i < 0 ? i + size : i - size;
      break;
  }
  return pixel < size ? pixel : -1;
}

//   y[n, k, o] = b[k] + sum over c, t of  w[k, c, t] x[n, c, o S - P + t D]
//
// o, t: positions in depth, height, width; c runs over the input channels of k's group; outside of the image x is what
// the border says.
struct ConvGeometry {
  int64_t batch;         // n
  int64_t in_channels;   // of all groups
  int64_t out_channels;  // of all groups
  int64_t groups;
  Extent input;     // D x H x W of x
  Extent kernel;    // of w
  Extent output;    // of y
  Extent stride;    // S
  Extent padding;   // P, before the first pixel; what lies after the last follows from output. Negative: cropped
  Extent dilation;  // D
  Border border;

  int64_t group_in() const { return in_channels / groups; }
  int64_t group_out() const { return out_channels / groups; }
  int64_t taps() const { return volume(kernel); }
};

// A weight in memory: K x C/groups x taps in either layout.
template <class T>
struct Filters {
  T* data;
  int64_t out_stride;  // between output channels
  int64_t in_stride;   // between input channels
  int64_t tap_stride;  // between neighbouring taps
};

}  // namespace scratchnn

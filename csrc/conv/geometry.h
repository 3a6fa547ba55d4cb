// The shape of one convolution, validated once and read by every kernel.
#pragma once

#include "common/geometry.h"

namespace scratchnn {

//   y[n, k, o] = b[k] + sum over c, t of  w[k, c, t] x[n, c, o S - P + t D]
//
// o, t: positions in depth, height, width; c runs over the input channels of k's group; x is zero outside.
struct ConvGeometry {
  int64_t batch;         // n
  int64_t in_channels;   // of all groups
  int64_t out_channels;  // of all groups
  int64_t groups;
  Extent input;     // D x H x W of x
  Extent kernel;    // of w
  Extent output;    // of y
  Extent stride;    // S
  Extent padding;   // P, before the first pixel; what lies after the last follows from output
  Extent dilation;  // D

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

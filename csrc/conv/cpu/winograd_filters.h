// The filters of a Winograd convolution: from a packed weight to points, and from sums of points back to taps.
#pragma once

#include "conv/cpu/packed_weight.h"
#include "conv/cpu/winograd_transforms.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {
namespace winograd {

// The filters of a panel, input channel and depth tap to points: taps lie `tap_plane` apart, points `plane`.
template <class T>
void transform_filters(const T* taps, int64_t tap_plane, T* points, int64_t plane) {
  for (int64_t k = 0; k < kTileColumns<T>; k += kLanes<T>) {
    Vec<T> half[kTaps][kIn];
    for (int j = 0; j < kTaps; ++j) {
      Vec<T> column[kTaps];
      for (int i = 0; i < kTaps; ++i) column[i] = load(taps + (i * kTaps + j) * tap_plane + k);
      filter_transform<T>(column, half[j]);
    }
    for (int i = 0; i < kIn; ++i) {
      const Vec<T> row[kTaps] = {half[0][i], half[1][i], half[2][i]};
      Vec<T> out[kIn];
      filter_transform<T>(row, out);
      for (int j = 0; j < kIn; ++j) store(points + (i * kIn + j) * plane + k, out[j]);
    }
  }
}

// From the sums of one depth tap, output channel and kLanes input channels, a function of the point, to the gradients
// of its taps, for `count` of those channels.
template <class S, class Sum>
SCRATCHNN_INLINE void write_taps(const Filters<S>& grad_weight, int64_t tap, int64_t k, int64_t c, int64_t count,
                                 const Sum& sum) {
  using T = Wide<S>;
  Vec<T> half[kIn][kTaps];
  for (int j = 0; j < kIn; ++j) {
    Vec<T> column[kIn];
    for (int i = 0; i < kIn; ++i) column[i] = sum(i * kIn + j);
    filter_transform_adjoint<T>(column, half[j]);
  }
  for (int i = 0; i < kTaps; ++i) {
    Vec<T> row[kIn], taps[kTaps];
    for (int j = 0; j < kIn; ++j) row[j] = half[j][i];
    filter_transform_adjoint<T>(row, taps);
    for (int j = 0; j < kTaps; ++j) {
      S* to = grad_weight.data + k * grad_weight.out_stride + ((tap * kTaps + i) * kTaps + j) * grad_weight.tap_stride +
              c * grad_weight.in_stride;
      if (grad_weight.in_stride == 1 && count == kLanes<T>) {
        write(to, taps[j]);
      } else {
        for (int64_t lane = 0; lane < count; ++lane) write_one(to + lane * grad_weight.in_stride, taps[j][lane]);
      }
    }
  }
}

}  // namespace winograd
}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

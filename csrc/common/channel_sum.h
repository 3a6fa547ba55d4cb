// The sum over everything but the channels: the gradient of every bias.
#pragma once

#include "common/dispatch.h"
#include "common/geometry.h"

namespace scratchnn {

// sums[c] = sum over images and pixels of images[., c, .]
template <class T>
inline Kernel<void(Images<const T> images, int64_t batch, T* sums)> channel_sum_kernel;

}  // namespace scratchnn

// Pooling straight from its definition: each output pixel is the maximum, or the average, of a window of its channel's
// plane. Tensors come dense, contiguous or channels_last, all of one call alike.
#pragma once

#include <ATen/core/Tensor.h>

#include "pool/relation.h"

namespace scratchnn::naive {

// offsets may be undefined: values only. Otherwise uint8 or int32, as in kernels.h.
void max_pool(const at::Tensor& input, const at::Tensor& output, const at::Tensor& offsets, const PoolShape& shape,
              const PlaneWindows& windows);
void max_pool_backward(const at::Tensor& grad, const at::Tensor& offsets, const at::Tensor& grad_input,
                       const PoolShape& shape, const PlaneWindows& windows);

// output = the input at the positions the offsets name; 0 where they name none.
void max_pool_gather(const at::Tensor& input, const at::Tensor& offsets, const at::Tensor& output,
                     const PoolShape& shape, const PlaneWindows& windows);
// torch's indices: the position within the plane, flattened; -1 where an offset names none.
void max_pool_indices(const at::Tensor& offsets, const at::Tensor& indices, const PoolShape& shape,
                      const PlaneWindows& windows);

void average(const at::Tensor& input, const at::Tensor& output, const PoolShape& shape, const Spans& spans);
void average_backward(const at::Tensor& grad, const at::Tensor& grad_input, const PoolShape& shape, const Spans& spans);

}  // namespace scratchnn::naive

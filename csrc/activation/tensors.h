// What the activation operators share: layouts, the types of their kernels, rows along a dimension.
#pragma once

#include <ATen/ops/empty_like.h>

#include "activation/kernels.h"
#include "common/tensors.h"

namespace scratchnn {

// Elementwise kernels walk memory in order, whatever the order of the dimensions: any layout without gaps will
// do. A copy keeps the order of the dimensions, as torch's own elementwise operations do.
inline at::Tensor dense(const at::Tensor& tensor) {
  return tensor.is_non_overlapping_and_dense() ? tensor : at::empty_like(tensor).copy_(tensor);
}

// The tensor laid out as `reference`, which is dense.
inline at::Tensor like(const at::Tensor& reference, const at::Tensor& tensor) {
  return tensor.strides() == reference.strides() ? tensor : at::empty_like(reference).copy_(tensor);
}

// The rows along a dimension of a dense tensor, as they lie in memory: without gaps, a dimension's stride is what
// there is of the dimensions inside of it. A dimension of one number (whose stride says nothing) makes rows of one.
inline Rows rows_along(const at::Tensor& tensor, int64_t dim) {
  const int64_t count = tensor.numel();
  if (tensor.dim() == 0 || tensor.size(dim) == 1) return {count, 1, 1};
  const int64_t size = tensor.size(dim), inner = tensor.stride(dim);
  return {count == 0 ? 0 : count / (size * inner), size, inner};
}

}  // namespace scratchnn

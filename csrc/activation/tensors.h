// What the activation operators share: layouts, the types of their kernels, rows along a dimension.
#pragma once

#include <ATen/ops/empty_like.h>

#include "activation/kernels.h"
#include "common/tensors.h"

namespace scratchnn {

struct BFloat16;  // common/half.h, which is for the kernels alone
struct Half;

// Elementwise kernels walk memory in order, whatever the order of the dimensions: any layout without gaps will
// do. A copy keeps the order of the dimensions, as torch's own elementwise operations do.
inline at::Tensor dense(const at::Tensor& tensor) {
  return tensor.is_non_overlapping_and_dense() ? tensor : at::empty_like(tensor).copy_(tensor);
}

// The tensor laid out as `reference`, which is dense.
inline at::Tensor like(const at::Tensor& reference, const at::Tensor& tensor) {
  return tensor.strides() == reference.strides() ? tensor : at::empty_like(reference).copy_(tensor);
}

// True where the vector kernels serve this type: float, double and the half precision types.
inline bool use_vector_kernels(const at::Tensor& tensor) {
  return at::isFloatingType(tensor.scalar_type()) && !naive_kernels_requested();
}

// Names a type without needing its definition.
template <class S>
struct MemoryType {
  using type = S;
};

// Calls body with the MemoryType of the tensor's numbers, as the kernels know it.
template <class Body>
void with_memory_type(const at::Tensor& tensor, const Body& body) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return body(MemoryType<float>());
    case at::kDouble:
      return body(MemoryType<double>());
    case at::kBFloat16:
      return body(MemoryType<BFloat16>());
    case at::kHalf:
      return body(MemoryType<Half>());
    default:
      TORCH_CHECK_NOT_IMPLEMENTED(false, "not implemented for ", tensor.scalar_type(), " tensors");
  }
}

template <class S>
const S* read_pointer(const at::Tensor& tensor) {
  return static_cast<const S*>(tensor.const_data_ptr());
}
template <class S>
S* write_pointer(const at::Tensor& tensor) {
  return static_cast<S*>(tensor.mutable_data_ptr());
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

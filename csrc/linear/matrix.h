// What the linear operators share: any number of leading dimensions, as one.
#pragma once

#include "common/tensors.h"
#include "linear/kernels.h"

namespace scratchnn {

// * x C becomes N x C without gaps.
inline at::Tensor matrix(const at::Tensor& tensor) {
  const int64_t columns = tensor.size(-1);
  int64_t rows = 1;
  for (const int64_t size : tensor.sizes().slice(0, tensor.dim() - 1)) rows *= size;
  return tensor.reshape({rows, columns}).contiguous();
}

inline at::DimVector with_last(at::IntArrayRef sizes, int64_t last) {
  at::DimVector result(sizes.begin(), sizes.end());
  result.back() = last;
  return result;
}

}  // namespace scratchnn

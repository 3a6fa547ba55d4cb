#include "conv/complex.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/complex.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/view_as_real.h>

#include <vector>

namespace scratchnn {

at::Tensor real_channels(const at::Tensor& images) {
  return at::view_as_real(images).movedim(-1, 2).flatten(1, 2);
}

at::Tensor complex_channels(const at::Tensor& images, at::MemoryFormat format) {
  const at::Tensor parts = images.unflatten(1, {images.size(1) / 2, 2});
  return at::complex(parts.select(2, 0), parts.select(2, 1)).contiguous(format);
}

at::Tensor real_filters(const at::Tensor& weight, bool transposed) {
  const at::Tensor parts = at::view_as_real(weight), re = parts.select(-1, 0), im = parts.select(-1, 1);
  const at::Tensor minus = im.neg();
  const at::Tensor first = at::stack({re, transposed ? im : minus}, 2);
  const at::Tensor second = at::stack({transposed ? minus : im, re}, 2);
  return at::stack({first, second}, 1).flatten(0, 1).flatten(1, 2);
}

at::Tensor complex_filters(const at::Tensor& products, at::MemoryFormat format) {
  const at::Tensor blocks = products.unflatten(1, {products.size(1) / 2, 2}).unflatten(0, {products.size(0) / 2, 2});
  const auto block = [&](int64_t row, int64_t column) { return blocks.select(1, row).select(2, column); };
  return at::complex(block(0, 0) - block(1, 1), block(0, 1) + block(1, 0)).contiguous(format);
}

at::Tensor real_bias(const at::Tensor& bias) {
  return at::view_as_real(bias).flatten();
}

}  // namespace scratchnn

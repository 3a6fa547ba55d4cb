// The activation operators on the CPU: check, allocate, choose a kernel.
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "activation/kernels.h"
#include "activation/naive.h"
#include "common/tensors.h"

namespace scratchnn {
namespace {

// Elementwise kernels walk memory in order, whatever the order of the dimensions: any layout without gaps will
// do. A copy keeps the order of the dimensions, as torch's own elementwise operations do.
at::Tensor dense(const at::Tensor& tensor) {
  return tensor.is_non_overlapping_and_dense() ? tensor : at::empty_like(tensor).copy_(tensor);
}

void run_relu(const at::Tensor& input, const at::Tensor& output) {
  if (use_fast_kernels(input)) {
    with_fast_type(input, [&](auto zero) {
      using T = decltype(zero);
      relu_kernel<T>(input.const_data_ptr<T>(), output.data_ptr<T>(), input.numel());
    });
  } else {
    naive::relu(input, output);
  }
}

at::Tensor relu(const at::Tensor& input) {
  TORCH_CHECK(input.scalar_type() != at::kBool && !input.is_complex(), "relu: not implemented for ",
              input.scalar_type(), " tensors");
  const at::Tensor x = dense(input);
  const at::Tensor y = at::empty_like(x);
  run_relu(x, y);
  return y;
}

void relu_(at::Tensor input) {
  TORCH_CHECK(input.scalar_type() != at::kBool && !input.is_complex(), "relu_: not implemented for ",
              input.scalar_type(), " tensors");
  if (input.is_non_overlapping_and_dense()) {
    run_relu(input, input);
  } else {
    input.copy_(relu(input));
  }
}

at::Tensor relu_backward(const at::Tensor& grad, const at::Tensor& output) {
  TORCH_CHECK(grad.sizes() == output.sizes(), "relu_backward: expected grad of shape ", output.sizes(), ", but got ",
              grad.sizes());
  check_same_type(grad, "grad", output, "output", "relu_backward");
  const at::Tensor y = dense(output);
  const at::Tensor dx = at::empty_like(y);
  const at::Tensor dy = grad.strides() == y.strides() ? grad : at::empty_like(y).copy_(grad);
  if (use_fast_kernels(y)) {
    with_fast_type(y, [&](auto zero) {
      using T = decltype(zero);
      relu_backward_kernel<T>(dy.const_data_ptr<T>(), y.const_data_ptr<T>(), dx.data_ptr<T>(), y.numel());
    });
  } else {
    naive::relu_backward(dy, y, dx);
  }
  return dx;
}

}  // namespace

TORCH_LIBRARY_IMPL(scratchnn, CPU, library) {
  library.impl("relu", relu);
  library.impl("relu_", relu_);
  library.impl("relu_backward", relu_backward);
}

}  // namespace scratchnn

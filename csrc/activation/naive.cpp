// The activations straight from their formulas, one element at a time. Tensors come dense and laid out alike.
#include "activation/naive.h"

#include <ATen/Dispatch.h>

namespace scratchnn::naive {

// y = max(x, 0). NaN compares false and stays.
void relu(const at::Tensor& input, const at::Tensor& output) {
  AT_DISPATCH_ALL_TYPES_AND2(at::kHalf, at::kBFloat16, input.scalar_type(), "relu", [&] {
    const scalar_t* x = input.const_data_ptr<scalar_t>();
    scalar_t* y = output.data_ptr<scalar_t>();
    const scalar_t zero(0);
    for (int64_t i = 0; i < input.numel(); ++i) y[i] = x[i] < zero ? zero : x[i];
  });
}

// dL/dx = dL/dy where x > 0, which is where y > 0; else 0.
void relu_backward(const at::Tensor& grad, const at::Tensor& output, const at::Tensor& grad_input) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, grad.scalar_type(), "relu_backward", [&] {
    const scalar_t* dy = grad.const_data_ptr<scalar_t>();
    const scalar_t* y = output.const_data_ptr<scalar_t>();
    scalar_t* dx = grad_input.data_ptr<scalar_t>();
    const scalar_t zero(0);
    for (int64_t i = 0; i < grad.numel(); ++i) dx[i] = y[i] <= zero ? zero : dy[i];
  });
}

}  // namespace scratchnn::naive

// The activations straight from their formulas.
#pragma once

#include <ATen/core/Tensor.h>

namespace scratchnn::naive {

void relu(const at::Tensor& input, const at::Tensor& output);
void relu_backward(const at::Tensor& grad, const at::Tensor& output, const at::Tensor& grad_input);

}  // namespace scratchnn::naive

// The fully-connected layers straight from their formulas. Tensors come as matrices: input N x C, weight K x C.
#pragma once

#include <ATen/core/Tensor.h>

namespace scratchnn::naive {

void linear(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& bias, const at::Tensor& output);
void linear_input_grad(const at::Tensor& grad, const at::Tensor& weight, const at::Tensor& grad_input);
void linear_weight_grad(const at::Tensor& grad, const at::Tensor& input, const at::Tensor& grad_weight);

// Of two inputs: first N x I, second N x J, weight K x I x J.
void bilinear(const at::Tensor& first, const at::Tensor& second, const at::Tensor& weight, const at::Tensor& bias,
              const at::Tensor& output);
void bilinear_weight_grad(const at::Tensor& grad, const at::Tensor& first, const at::Tensor& second,
                          const at::Tensor& grad_weight);

}  // namespace scratchnn::naive

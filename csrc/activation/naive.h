// The activations straight from their formulas. Tensors come dense and laid out alike.
#pragma once

#include <ATen/core/Tensor.h>

#include "activation/kernels.h"

namespace scratchnn::naive {

void activation(Activation f, const double* parameters, const at::Tensor& input, const at::Tensor& output);
void activation_backward(Activation f, const double* parameters, const at::Tensor& grad, const at::Tensor& saved,
                         const at::Tensor& grad_input);
void activation_output_backward(Activation f, const double* parameters, const at::Tensor& grad,
                                const at::Tensor& output, const at::Tensor& grad_input);

// Along the dimension that Rows describes.
void softmax(Softmax f, const Rows& rows, const at::Tensor& input, const at::Tensor& output);
void softmax_backward(Softmax f, const Rows& rows, const at::Tensor& grad, const at::Tensor& output,
                      const at::Tensor& grad_input);
void glu(const Rows& rows, const at::Tensor& input, const at::Tensor& output);
void glu_backward(const Rows& rows, const at::Tensor& grad, const at::Tensor& input, const at::Tensor& grad_input);
void prelu(const Rows& rows, const at::Tensor& input, const at::Tensor& weight, const at::Tensor& output);
void prelu_backward(const Rows& rows, const at::Tensor& grad, const at::Tensor& input, const at::Tensor& weight,
                    const at::Tensor& grad_input, const at::Tensor& grad_weight);

}  // namespace scratchnn::naive

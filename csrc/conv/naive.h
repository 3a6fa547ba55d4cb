// Convolution straight from its formula, for any real or complex type and any strides.
#pragma once

#include <ATen/core/Tensor.h>

#include "conv/geometry.h"

namespace scratchnn::naive {

// bias: undefined for none.
void conv(const ConvGeometry& geometry, const at::Tensor& input, const at::Tensor& weight, const at::Tensor& bias,
          const at::Tensor& output);
// The input gradient, and the transposed convolution, of which `grad` is the input.
void conv_input_grad(const ConvGeometry& geometry, const at::Tensor& grad, const at::Tensor& weight,
                     const at::Tensor& bias, const at::Tensor& grad_input);
void conv_weight_grad(const ConvGeometry& geometry, const at::Tensor& grad, const at::Tensor& input,
                      const at::Tensor& grad_weight);

}  // namespace scratchnn::naive

// The formulas of kernels.h as plain loops, for any floating type. Tensors come dense, in the order of `sets`.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "norm/kernels.h"

namespace scratchnn::naive {

void norm_statistics(const IndexSets& sets, const at::Tensor& input, double* mean, double* variance);
void norm_apply(const IndexSets& sets, const at::Tensor& input, const at::Tensor& output, const double* weight,
                const double* bias, double eps, const double* mean, const double* variance);
// What follows: y = min(max(n + r, low), high) over n, where a residual r is given.
void norm_end(const at::Tensor& output, const std::optional<at::Tensor>& residual, double low, double high);
// The gradient of n and r: grad within the limits, by n + r or by y.
void norm_end_backward(const at::Tensor& grad, const at::Tensor& sum, double low, double high,
                       const at::Tensor& passed);
void norm_backward(const IndexSets& sets, const at::Tensor& grad, const at::Tensor& input, const at::Tensor& grad_input,
                   const double* weight, const double* mean, const double* variance, double eps, bool training,
                   double* grad_weight, double* grad_bias);

void local_response_norm(const Window& window, const at::Tensor& input, const at::Tensor& output);
void local_response_norm_backward(const Window& window, const at::Tensor& grad, const at::Tensor& input,
                                  const at::Tensor& grad_input);

}  // namespace scratchnn::naive

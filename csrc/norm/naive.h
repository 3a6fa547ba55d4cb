// The formulas of kernels.h as plain loops, for any floating type. Tensors come dense, in the order of `geometry`.
#pragma once

#include <ATen/core/Tensor.h>

#include "norm/kernels.h"

namespace scratchnn::naive {

void norm_train(const IndexSets& geometry, const at::Tensor& input, const at::Tensor& output, const double* weight,
                const double* bias, double eps, double* mean, double* variance);
void norm_eval(const IndexSets& geometry, const at::Tensor& input, const at::Tensor& output, const double* weight,
               const double* bias, double eps, const double* mean, const double* variance);
void norm_backward(const IndexSets& geometry, const at::Tensor& grad, const at::Tensor& input,
                   const at::Tensor& grad_input, const double* weight, const double* mean, const double* variance,
                   double eps, bool training, double* grad_weight, double* grad_bias);

}  // namespace scratchnn::naive

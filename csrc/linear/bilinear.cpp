// The bilinear operators on the CPU, built on the kernels of the linear layer, an output at a time.
//
// The weight of one output, w[k], is a matrix: y[., k] are the dot products of the rows of (a w[k]) and b, and its
// gradient is (dy[., k] a)^T b. No more than one N x J or N x I matrix is held beside inputs and outputs. The gradients
// of the inputs are bilinear layers themselves, with the weight's dimensions exchanged.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "linear/matrix.h"
#include "linear/naive.h"

namespace scratchnn {
namespace {

void check_inputs(const at::Tensor& a, const char* a_name, const at::Tensor& b, const char* b_name,
                  const char* operation) {
  TORCH_CHECK(a.dim() >= 1 && a.dim() == b.dim() &&
                  a.sizes().slice(0, a.dim() - 1) == b.sizes().slice(0, b.dim() - 1),
              operation, ": expected ", a_name, " and ", b_name, " to agree in all but the last dimension, but got shapes ",
              a.sizes(), " and ", b.sizes());
  check_same_type(a, a_name, b, b_name, operation);
}

at::Tensor bilinear(const at::Tensor& input1, const at::Tensor& input2, const at::Tensor& weight,
                    const std::optional<at::Tensor>& bias) {
  check_inputs(input1, "input1", input2, "input2", "bilinear");
  check_same_type(input1, "input1", weight, "weight", "bilinear");
  TORCH_CHECK(weight.dim() == 3 && weight.size(1) == input1.size(-1) && weight.size(2) == input2.size(-1),
              "bilinear: expected weight of shape [*, ", input1.size(-1), ", ", input2.size(-1), "], but got ",
              weight.sizes());
  if (bias) {
    TORCH_CHECK(bias->dim() == 1 && bias->size(0) == weight.size(0), "bilinear: expected bias of shape [",
                weight.size(0), "], but got ", bias->sizes());
    check_same_type(input1, "input1", *bias, "bias", "bilinear");
  }
  if (is_widened(input1)) {
    return bilinear(input1.to(at::kFloat), input2.to(at::kFloat), weight.to(at::kFloat), widened(bias))
        .to(input1.scalar_type());
  }
  const at::Tensor a = matrix(input1), b = matrix(input2), w = weight.contiguous();
  const at::Tensor start = bias ? bias->contiguous() : at::Tensor();
  const at::Tensor output = at::empty(with_last(input1.sizes(), w.size(0)), a.options());
  if (!use_fast_kernels(a)) {
    naive::bilinear(a, b, w, start, output);
    return output;
  }
  const int64_t rows = a.size(0), outputs = w.size(0);
  const at::Tensor product = at::empty_like(b);
  with_fast_type(a, [&](auto zero) {
    using T = decltype(zero);
    const LinearShape shape{rows, w.size(2), w.size(1)};
    for (int64_t k = 0; k < outputs; ++k) {
      linear_input_grad_kernel<T>(shape, a.const_data_ptr<T>(), w.const_data_ptr<T>() + k * w.size(1) * w.size(2),
                                  product.data_ptr<T>());
      row_dots_kernel<T>(rows, w.size(2), product.const_data_ptr<T>(), b.const_data_ptr<T>(),
                         bias ? start.const_data_ptr<T>()[k] : T(0), output.data_ptr<T>() + k, outputs);
    }
  });
  return output;
}

at::Tensor bilinear_weight_grad(const at::Tensor& grad, const at::Tensor& input1, const at::Tensor& input2) {
  check_inputs(input1, "input1", input2, "input2", "bilinear_weight_grad");
  check_inputs(grad, "grad", input1, "input1", "bilinear_weight_grad");
  if (is_widened(grad)) {
    return bilinear_weight_grad(grad.to(at::kFloat), input1.to(at::kFloat), input2.to(at::kFloat))
        .to(grad.scalar_type());
  }
  const at::Tensor dy = matrix(grad), a = matrix(input1), b = matrix(input2);
  const at::Tensor grad_weight = at::empty({dy.size(1), a.size(1), b.size(1)}, dy.options());
  if (!use_fast_kernels(dy)) {
    naive::bilinear_weight_grad(dy, a, b, grad_weight);
    return grad_weight;
  }
  const int64_t rows = a.size(0), outputs = dy.size(1);
  const at::Tensor scaled = at::empty_like(a);
  with_fast_type(dy, [&](auto zero) {
    using T = decltype(zero);
    const LinearShape shape{rows, b.size(1), a.size(1)};
    for (int64_t k = 0; k < outputs; ++k) {
      scale_rows_kernel<T>(rows, a.size(1), a.const_data_ptr<T>(), dy.const_data_ptr<T>() + k, outputs,
                           scaled.data_ptr<T>());
      linear_weight_grad_kernel<T>(shape, scaled.const_data_ptr<T>(), b.const_data_ptr<T>(),
                                   grad_weight.data_ptr<T>() + k * a.size(1) * b.size(1));
    }
  });
  return grad_weight;
}

}  // namespace

TORCH_LIBRARY_IMPL(scratchnn, CPU, library) {
  library.impl("bilinear", bilinear);
  library.impl("bilinear_weight_grad", bilinear_weight_grad);
}

}  // namespace scratchnn

// The fully-connected layer and its gradients as nested loops. Sums are in double.
//
//   y[n, k]  = b[k] + sum over c of x[n, c] w[k, c]
//   dx[n, c] = sum over k of dy[n, k] w[k, c]
//   dw[k, c] = sum over n of dy[n, k] x[n, c]
#include "linear/naive.h"

#include <ATen/Dispatch.h>

namespace scratchnn::naive {
namespace {

// out[i, j] = start(j) + sum over p of a(i, p) b(p, j)
template <class T, class Start, class A, class B>
void product(int64_t rows, int64_t columns, int64_t reduction, const Start& start, const A& a, const B& b, T* out) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      double sum = start(j);
      for (int64_t p = 0; p < reduction; ++p) sum += static_cast<double>(a(i, p)) * static_cast<double>(b(p, j));
      out[i * columns + j] = static_cast<T>(sum);
    }
  }
}

double zero(int64_t) {
  return 0.0;
}

}  // namespace

void linear(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& bias, const at::Tensor& output) {
  AT_DISPATCH_ALL_TYPES_AND2(at::kHalf, at::kBFloat16, input.scalar_type(), "linear", [&] {
    const int64_t N = input.size(0), C = input.size(1), K = weight.size(0);
    const scalar_t* x = input.const_data_ptr<scalar_t>();
    const scalar_t* w = weight.const_data_ptr<scalar_t>();
    const scalar_t* b = bias.defined() ? bias.const_data_ptr<scalar_t>() : nullptr;
    product(
        N, K, C, [&](int64_t k) { return b == nullptr ? 0.0 : static_cast<double>(b[k]); },
        [&](int64_t n, int64_t c) { return x[n * C + c]; }, [&](int64_t c, int64_t k) { return w[k * C + c]; },
        output.data_ptr<scalar_t>());
  });
}

void linear_input_grad(const at::Tensor& grad, const at::Tensor& weight, const at::Tensor& grad_input) {
  AT_DISPATCH_ALL_TYPES_AND2(at::kHalf, at::kBFloat16, grad.scalar_type(), "linear_input_grad", [&] {
    const int64_t N = grad.size(0), C = weight.size(1), K = weight.size(0);
    const scalar_t* dy = grad.const_data_ptr<scalar_t>();
    const scalar_t* w = weight.const_data_ptr<scalar_t>();
    product(
        N, C, K, zero, [&](int64_t n, int64_t k) { return dy[n * K + k]; },
        [&](int64_t k, int64_t c) { return w[k * C + c]; }, grad_input.data_ptr<scalar_t>());
  });
}

void linear_weight_grad(const at::Tensor& grad, const at::Tensor& input, const at::Tensor& grad_weight) {
  AT_DISPATCH_ALL_TYPES_AND2(at::kHalf, at::kBFloat16, grad.scalar_type(), "linear_weight_grad", [&] {
    const int64_t N = grad.size(0), C = input.size(1), K = grad.size(1);
    const scalar_t* dy = grad.const_data_ptr<scalar_t>();
    const scalar_t* x = input.const_data_ptr<scalar_t>();
    product(
        K, C, N, zero, [&](int64_t k, int64_t n) { return dy[n * K + k]; },
        [&](int64_t n, int64_t c) { return x[n * C + c]; }, grad_weight.data_ptr<scalar_t>());
  });
}

}  // namespace scratchnn::naive

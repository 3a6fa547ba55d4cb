// The fully-connected layers and their gradients as nested loops. Sums are in double, of complex numbers in complex
// double, of whole numbers in 64 bits. The gradients take the conjugate of the factor that stays.
//
// scratchnn.kernels("naive") runs these loops, the tests hold the fast kernels against them, and they serve the types
// that the fast ones do not. With x N x C, w K x C, b K and y N x K, and dy the gradient that arrives at y,
//
//   y[n, k]  = b[k] + sum over c of x[n, c] w[k, c]
//   dx[n, c] = sum over k of dy[n, k] w[k, c]
//   dw[k, c] = sum over n of dy[n, k] x[n, c]
//
// and with two inputs, x N x I and z N x J, and w K x I x J,
//
//   y[n, k]     = b[k] + sum over i, j of w[k, i, j] x[n, i] z[n, j]
//   dw[k, i, j] = sum over n of dy[n, k] x[n, i] z[n, j]
//
// whose dx and dz are the same layer with the dimensions of w exchanged. db is a sum over n: common/channel_sum.h.
#include "linear/naive.h"

#include <ATen/Dispatch.h>

#include <type_traits>

namespace scratchnn::naive {
namespace {

// What a sum of numbers of type T is kept in.
template <class T>
using Sum = std::conditional_t<c10::is_complex<T>::value, c10::complex<double>,
                               std::conditional_t<std::is_integral_v<T>, int64_t, double>>;

template <class T>
Sum<T> wide(T number) {
  return static_cast<Sum<T>>(number);
}

template <class T>
Sum<T> conjugate(T number) {
  if constexpr (c10::is_complex<T>::value) {
    return std::conj(wide(number));
  } else {
    return wide(number);
  }
}

// out[i, j] = start(j) + sum over p of a(i, p) b(p, j)
template <class T, class Start, class A, class B>
void product(int64_t rows, int64_t columns, int64_t reduction, const Start& start, const A& a, const B& b, T* out) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      Sum<T> sum = start(j);
      for (int64_t p = 0; p < reduction; ++p) sum += a(i, p) * b(p, j);
      out[i * columns + j] = static_cast<T>(sum);
    }
  }
}

#define SCRATCHNN_DISPATCH(type, name, ...) \
  AT_DISPATCH_ALL_TYPES_AND_COMPLEX_AND2(at::kHalf, at::kBFloat16, type, name, __VA_ARGS__)

}  // namespace

void linear(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& bias, const at::Tensor& output) {
  SCRATCHNN_DISPATCH(input.scalar_type(), "linear", [&] {
    const int64_t N = input.size(0), C = input.size(1), K = weight.size(0);
    const scalar_t* x = input.const_data_ptr<scalar_t>();
    const scalar_t* w = weight.const_data_ptr<scalar_t>();
    const scalar_t* b = bias.defined() ? bias.const_data_ptr<scalar_t>() : nullptr;
    product(
        N, K, C, [&](int64_t k) { return b == nullptr ? Sum<scalar_t>(0) : wide(b[k]); },
        [&](int64_t n, int64_t c) { return wide(x[n * C + c]); },
        [&](int64_t c, int64_t k) { return wide(w[k * C + c]); }, output.data_ptr<scalar_t>());
  });
}

void linear_input_grad(const at::Tensor& grad, const at::Tensor& weight, const at::Tensor& grad_input) {
  SCRATCHNN_DISPATCH(grad.scalar_type(), "linear_input_grad", [&] {
    const int64_t N = grad.size(0), C = weight.size(1), K = weight.size(0);
    const scalar_t* dy = grad.const_data_ptr<scalar_t>();
    const scalar_t* w = weight.const_data_ptr<scalar_t>();
    product(
        N, C, K, [](int64_t) { return Sum<scalar_t>(0); }, [&](int64_t n, int64_t k) { return wide(dy[n * K + k]); },
        [&](int64_t k, int64_t c) { return conjugate(w[k * C + c]); }, grad_input.data_ptr<scalar_t>());
  });
}

void linear_weight_grad(const at::Tensor& grad, const at::Tensor& input, const at::Tensor& grad_weight) {
  SCRATCHNN_DISPATCH(grad.scalar_type(), "linear_weight_grad", [&] {
    const int64_t N = grad.size(0), C = input.size(1), K = grad.size(1);
    const scalar_t* dy = grad.const_data_ptr<scalar_t>();
    const scalar_t* x = input.const_data_ptr<scalar_t>();
    product(
        K, C, N, [](int64_t) { return Sum<scalar_t>(0); }, [&](int64_t k, int64_t n) { return wide(dy[n * K + k]); },
        [&](int64_t n, int64_t c) { return conjugate(x[n * C + c]); }, grad_weight.data_ptr<scalar_t>());
  });
}

void bilinear(const at::Tensor& first, const at::Tensor& second, const at::Tensor& weight, const at::Tensor& bias,
              const at::Tensor& output) {
  SCRATCHNN_DISPATCH(first.scalar_type(), "bilinear", [&] {
    const int64_t N = first.size(0), K = weight.size(0), I = weight.size(1), J = weight.size(2);
    const scalar_t *x = first.const_data_ptr<scalar_t>(), *z = second.const_data_ptr<scalar_t>();
    const scalar_t* w = weight.const_data_ptr<scalar_t>();
    const scalar_t* start = bias.defined() ? bias.const_data_ptr<scalar_t>() : nullptr;
    scalar_t* y = output.data_ptr<scalar_t>();
    for (int64_t n = 0; n < N; ++n) {
      for (int64_t k = 0; k < K; ++k) {
        Sum<scalar_t> sum = start == nullptr ? Sum<scalar_t>(0) : wide(start[k]);
        for (int64_t i = 0; i < I; ++i) {
          for (int64_t j = 0; j < J; ++j) sum += wide(w[(k * I + i) * J + j]) * wide(x[n * I + i]) * wide(z[n * J + j]);
        }
        y[n * K + k] = static_cast<scalar_t>(sum);
      }
    }
  });
}

void bilinear_weight_grad(const at::Tensor& grad, const at::Tensor& first, const at::Tensor& second,
                          const at::Tensor& grad_weight) {
  SCRATCHNN_DISPATCH(grad.scalar_type(), "bilinear_weight_grad", [&] {
    const int64_t N = grad.size(0), K = grad.size(1), I = first.size(1), J = second.size(1);
    const scalar_t *dy = grad.const_data_ptr<scalar_t>(), *x = first.const_data_ptr<scalar_t>();
    const scalar_t* z = second.const_data_ptr<scalar_t>();
    scalar_t* dw = grad_weight.data_ptr<scalar_t>();
    for (int64_t k = 0; k < K; ++k) {
      for (int64_t i = 0; i < I; ++i) {
        for (int64_t j = 0; j < J; ++j) {
          Sum<scalar_t> sum(0);
          for (int64_t n = 0; n < N; ++n) sum += wide(dy[n * K + k]) * wide(x[n * I + i]) * wide(z[n * J + j]);
          dw[(k * I + i) * J + j] = static_cast<scalar_t>(sum);
        }
      }
    }
  });
}

}  // namespace scratchnn::naive

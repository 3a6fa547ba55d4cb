// The fully-connected operators on the CPU: check the arguments, allocate, choose a kernel.
#include <ATen/ops/complex.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/imag.h>
#include <ATen/ops/real.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/view_as_complex.h>
#include <ATen/ops/view_as_real.h>
#include <torch/library.h>

#include "conv/kernels.h"
#include "linear/matrix.h"
#include "linear/naive.h"

namespace scratchnn {
namespace {

// A complex product is a real one of twice the width. With complex numbers stored as pairs (re, im), as torch does,
//
//     (re, im) of w x  =  | wr -wi | | xr |
//                         | wi  wr | | xi |
//
// so a complex tensor is a real one with twice the features, and a weight has four numbers for one of its own. The
// transposed pairs are those of conj(w): the gradients of the real product are the complex ones.

at::Tensor as_pairs(const at::Tensor& x) {
  return at::view_as_real(x.resolve_conj()).flatten(-2);
}

std::optional<at::Tensor> as_pairs(const std::optional<at::Tensor>& x) {
  return x ? std::optional<at::Tensor>(as_pairs(*x)) : std::nullopt;
}

at::Tensor as_complex(const at::Tensor& pairs) {
  return at::view_as_complex(pairs.unflatten(-1, {pairs.size(-1) / 2, 2}));
}

// K x C complex to 2K x 2C real numbers
at::Tensor as_pair_products(const at::Tensor& w) {
  const at::Tensor resolved = w.resolve_conj(), re = at::real(resolved), im = at::imag(resolved);
  return at::stack({at::stack({re, im.neg()}, -1), at::stack({im, re}, -1)}, 1).reshape({2 * w.size(0), 2 * w.size(1)});
}

// The adjoint of as_pair_products: each number of w counts four times.
at::Tensor from_pair_products(const at::Tensor& grad) {
  const at::Tensor g = grad.reshape({grad.size(0) / 2, 2, grad.size(1) / 2, 2});
  const auto part = [&](int64_t row, int64_t column) { return g.select(3, column).select(1, row); };
  return at::complex(part(0, 0).add(part(1, 1)), part(1, 0).sub(part(0, 1)));
}

bool is_paired(const at::Tensor& tensor) {
  return tensor.is_complex() && !naive_kernels_requested();
}

void check_matrices(const at::Tensor& a, const char* name, int64_t a_features, const at::Tensor& weight,
                    int64_t weight_features, const char* operation) {
  TORCH_CHECK(weight.dim() == 2, operation, ": expected weight to have 2 dimensions, but got shape ", weight.sizes());
  TORCH_CHECK(a.dim() >= 1 && a_features == weight_features, operation,
              ": mat1 and mat2 shapes cannot be multiplied: ", name, " of shape ", a.sizes(), " has ", a_features,
              " features, but weight of shape ", weight.sizes(), " expects ", weight_features);
  check_same_type(a, name, weight, "weight", operation);
}

// A fully-connected layer is a 1x1 convolution whose pixels are the rows. It is computed as one where the processor has
// a unit for matrices of its numbers: the convolution knows how to use that.
template <class S>
bool is_convolution(const LinearShape& s) {
  return std::is_same_v<S, BFloat16> && has_matrix_unit() && s.rows > 0 && s.in_features > 0 && s.out_features > 0;
}

ConvGeometry as_convolution(const LinearShape& s) {
  const Extent ones{1, 1, 1}, rows{1, 1, s.rows};
  return {1, s.in_features, s.out_features, 1, rows, ones, rows, ones, {0, 0, 0}, ones, Border::kZeros};
}

template <class T>
Images<T> as_pixels(T* data, int64_t rows, int64_t features) {
  return {data, features, {1, 1, rows}, true};
}

template <class T>
Filters<T> as_filters(T* data, int64_t features) {
  return {data, features, 1, features};
}

template <class S>
void multiply(const LinearShape& s, const S* input, const S* weight, const S* bias, S* output) {
  if (!is_convolution<S>(s)) return linear_kernel<S>(s, input, weight, bias, output);
  matrix_unit_forward<S>(as_convolution(s), as_pixels(input, s.rows, s.in_features), as_filters(weight, s.in_features),
                         bias, as_pixels(output, s.rows, s.out_features));
}

template <class S>
void multiply_back(const LinearShape& s, const S* grad, const S* weight, S* grad_input) {
  if (!is_convolution<S>(s)) return linear_input_grad_kernel<S>(s, grad, weight, grad_input);
  matrix_unit_input_grad<S>(as_convolution(s), as_pixels(grad, s.rows, s.out_features),
                            as_filters(weight, s.in_features), nullptr, as_pixels(grad_input, s.rows, s.in_features));
}

template <class S>
void multiply_outer(const LinearShape& s, const S* grad, const S* input, S* grad_weight) {
  if (!is_convolution<S>(s)) return linear_weight_grad_kernel<S>(s, grad, input, grad_weight);
  matrix_unit_weight_grad<S>(as_convolution(s), as_pixels(grad, s.rows, s.out_features),
                             as_pixels(input, s.rows, s.in_features), as_filters(grad_weight, s.in_features));
}

at::Tensor linear(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
  TORCH_CHECK(input.dim() >= 1, "linear: expected input to have at least 1 dimension, but got a scalar");
  check_matrices(input, "input", input.size(-1), weight, weight.dim() == 2 ? weight.size(1) : -1, "linear");
  if (bias) {
    TORCH_CHECK(bias->dim() == 1 && bias->size(0) == weight.size(0), "linear: expected bias to have shape [",
                weight.size(0), "], but got ", bias->sizes());
    check_same_type(input, "input", *bias, "bias", "linear");
  }
  if (is_paired(input)) return as_complex(linear(as_pairs(input), as_pair_products(weight), as_pairs(bias)));
  const at::Tensor x = matrix(input), w = weight.contiguous();
  const at::Tensor b = bias ? bias->contiguous() : at::Tensor();
  const at::Tensor output = at::empty(with_last(input.sizes(), weight.size(0)), x.options());
  if (use_vector_kernels(x)) {
    with_memory_type(x, [&](auto number) {
      using S = typename decltype(number)::type;
      multiply<S>({x.size(0), w.size(1), w.size(0)}, read_pointer<S>(x), read_pointer<S>(w),
                  b.defined() ? read_pointer<S>(b) : nullptr, write_pointer<S>(output));
    });
  } else {
    naive::linear(x, w, b, output);
  }
  return output;
}

at::Tensor linear_input_grad(const at::Tensor& grad, const at::Tensor& weight) {
  TORCH_CHECK(grad.dim() >= 1, "linear_input_grad: expected grad to have at least 1 dimension, but got a scalar");
  check_matrices(grad, "grad", grad.size(-1), weight, weight.size(0), "linear_input_grad");
  if (is_paired(grad)) return as_complex(linear_input_grad(as_pairs(grad), as_pair_products(weight)));
  const at::Tensor dy = matrix(grad), w = weight.contiguous();
  const at::Tensor grad_input = at::empty(with_last(grad.sizes(), weight.size(1)), dy.options());
  if (use_vector_kernels(dy)) {
    with_memory_type(dy, [&](auto number) {
      using S = typename decltype(number)::type;
      multiply_back<S>({dy.size(0), w.size(1), w.size(0)}, read_pointer<S>(dy), read_pointer<S>(w),
                       write_pointer<S>(grad_input));
    });
  } else {
    naive::linear_input_grad(dy, w, grad_input);
  }
  return grad_input;
}

at::Tensor linear_weight_grad(const at::Tensor& grad, const at::Tensor& input) {
  TORCH_CHECK(grad.dim() >= 1 && grad.dim() == input.dim() &&
                  grad.sizes().slice(0, grad.dim() - 1) == input.sizes().slice(0, input.dim() - 1),
              "linear_weight_grad: expected grad and input to agree in all but the last dimension, but got shapes ",
              grad.sizes(), " and ", input.sizes());
  check_same_type(grad, "grad", input, "input", "linear_weight_grad");
  if (is_paired(grad)) return from_pair_products(linear_weight_grad(as_pairs(grad), as_pairs(input)));
  const at::Tensor dy = matrix(grad), x = matrix(input);
  const at::Tensor grad_weight = at::empty({dy.size(1), x.size(1)}, dy.options());
  if (use_vector_kernels(dy)) {
    with_memory_type(dy, [&](auto number) {
      using S = typename decltype(number)::type;
      multiply_outer<S>({dy.size(0), x.size(1), dy.size(1)}, read_pointer<S>(dy), read_pointer<S>(x),
                        write_pointer<S>(grad_weight));
    });
  } else {
    naive::linear_weight_grad(dy, x, grad_weight);
  }
  return grad_weight;
}

}  // namespace

TORCH_LIBRARY_IMPL(scratchnn, CPU, library) {
  library.impl("linear", linear);
  library.impl("linear_input_grad", linear_input_grad);
  library.impl("linear_weight_grad", linear_weight_grad);
}

}  // namespace scratchnn

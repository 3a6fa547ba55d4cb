// The operators of the elementwise activations on the CPU: check, allocate, choose a kernel.
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <utility>

#include "activation/naive.h"
#include "activation/tensors.h"

namespace scratchnn {
namespace {

bool serves_integers(Activation f) {
  return f == Activation::relu || f == Activation::threshold || f == Activation::hardtanh;
}

bool serves_complex(Activation f) {
  return f == Activation::sigmoid || f == Activation::tanh || f == Activation::tanhshrink || f == Activation::silu ||
         f == Activation::softsign;
}

void run(Activation f, const double* parameters, const at::Tensor& input, const at::Tensor& output) {
  if (!use_vector_kernels(input)) return naive::activation(f, parameters, input, output);
  with_memory_type(input, [&](auto number) {
    using S = typename decltype(number)::type;
    activation_kernel<S>(f, parameters, read_pointer<S>(input), write_pointer<S>(output), input.numel());
  });
}

template <int>
using Parameter = double;

template <Activation f, int... i>
struct Operators {
  static constexpr double kNone = 0;

  static void check(const at::Tensor& input, const char* name) {
    TORCH_CHECK_NOT_IMPLEMENTED(input.is_floating_point() ||
                                    (serves_integers(f) && at::isIntegralType(input.scalar_type(), false)) ||
                                    (serves_complex(f) && input.is_complex()),
                                name, ": not implemented for ", input.scalar_type(), " tensors");
  }

  static at::Tensor forward(const at::Tensor& input, Parameter<i>... values) {
    check(input, kName);
    const double parameters[] = {values..., kNone};
    const at::Tensor x = dense(input);
    const at::Tensor y = at::empty_like(x);
    run(f, parameters, x, y);
    return y;
  }

  static void in_place(at::Tensor input, Parameter<i>... values) {
    check(input, kName);
    if (input.is_non_overlapping_and_dense()) {
      const double parameters[] = {values..., kNone};
      run(f, parameters, input, input);
    } else {
      input.copy_(forward(input, values...));
    }
  }

  static void check_gradient(const at::Tensor& grad, const at::Tensor& saved) {
    TORCH_CHECK(grad.sizes() == saved.sizes(), kName, "_backward: expected grad of shape ", saved.sizes(), ", but got ",
                grad.sizes());
    check_same_type(grad, "grad", saved, "saved", kName);
    check(grad, kName);
  }

  // dx from dy and what was saved, all laid out alike without gaps; dx may be dy.
  template <bool from_output>
  static void run_backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& dx, Parameter<i>... values) {
    const double parameters[] = {values..., kNone};
    if (!use_vector_kernels(x)) {
      return (from_output ? naive::activation_output_backward : naive::activation_backward)(f, parameters, dy, x, dx);
    }
    with_memory_type(x, [&](auto number) {
      using S = typename decltype(number)::type;
      const auto& kernel = from_output ? activation_output_backward_kernel<S> : activation_backward_kernel<S>;
      kernel(f, parameters, read_pointer<S>(dy), read_pointer<S>(x), write_pointer<S>(dx), x.numel());
    });
  }

  template <bool from_output>
  static at::Tensor backward(const at::Tensor& grad, const at::Tensor& saved, Parameter<i>... values) {
    check_gradient(grad, saved);
    const at::Tensor x = dense(saved), dy = like(x, grad);
    const at::Tensor dx = at::empty_like(x);
    run_backward<from_output>(dy, x, dx, values...);
    return dx;
  }

  template <bool from_output>
  static void backward_in_place(at::Tensor grad, const at::Tensor& saved, Parameter<i>... values) {
    check_gradient(grad, saved);
    if (grad.is_non_overlapping_and_dense()) {
      run_backward<from_output>(grad, like(grad, saved), grad, values...);
    } else {
      grad.copy_(backward<from_output>(grad, saved, values...));
    }
  }

  static const char* const kName;
};

template <Activation f, int... i>
Operators<f, i...> operators(std::integer_sequence<int, i...>);

// The operators of a row, with as many parameters as it has.
template <Activation f>
using OperatorsOf = decltype(operators<f>(std::make_integer_sequence<int, parameter_count(f)>()));

#define SCRATCHNN_SET_NAME(name, parameters) \
  template <>                                \
  const char* const OperatorsOf<Activation::name>::kName = #name;
SCRATCHNN_ACTIVATIONS(SCRATCHNN_SET_NAME)
#undef SCRATCHNN_SET_NAME

}  // namespace

TORCH_LIBRARY_IMPL(scratchnn, CPU, library) {
#define SCRATCHNN_IMPLEMENT(name, parameters)                                      \
  library.impl(#name, OperatorsOf<Activation::name>::forward);                     \
  library.impl(#name "_backward", OperatorsOf<Activation::name>::backward<false>); \
  library.impl(#name "_backward_", OperatorsOf<Activation::name>::backward_in_place<false>);
  SCRATCHNN_ACTIVATIONS(SCRATCHNN_IMPLEMENT)
#undef SCRATCHNN_IMPLEMENT
#define SCRATCHNN_IMPLEMENT(name, parameters) library.impl(#name "_", OperatorsOf<Activation::name>::in_place);
  SCRATCHNN_IN_PLACE_ACTIVATIONS(SCRATCHNN_IMPLEMENT)
#undef SCRATCHNN_IMPLEMENT
#define SCRATCHNN_IMPLEMENT(name, parameters)                                            \
  library.impl(#name "_output_backward", OperatorsOf<Activation::name>::backward<true>); \
  library.impl(#name "_output_backward_", OperatorsOf<Activation::name>::backward_in_place<true>);
  SCRATCHNN_OUTPUT_DERIVATIVES(SCRATCHNN_IMPLEMENT)
#undef SCRATCHNN_IMPLEMENT
}

}  // namespace scratchnn

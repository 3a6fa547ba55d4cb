// The activations straight from their formulas, one element at a time, in double precision.
//
// scratchnn.kernels("naive") runs these loops, the tests hold the fast kernels against them, and they serve the types
// that the fast ones do not. x is an input, y an output, dy the gradient that arrives at it, dx the one that leaves.
// Elementwise, dx = dy f'(x): value and slope of each function are in functions.h, which the fast kernels share.
#include "activation/naive.h"

#include <ATen/Dispatch.h>

#include <algorithm>
#include <complex>
#include <limits>

#include "activation/functions.h"

namespace scratchnn::naive {
namespace {

using Complex = std::complex<double>;

// The functions that also serve complex numbers. A gradient multiplies by the conjugate of the derivative.
struct ComplexFunction {
  Activation f;

  Complex value(Complex x) const {
    switch (f) {
      case Activation::sigmoid:
        return 1.0 / (1.0 + std::exp(-x));
      case Activation::tanh:
        return std::tanh(x);
      case Activation::tanhshrink:
        return x - std::tanh(x);
      case Activation::silu:
        return x / (1.0 + std::exp(-x));
      case Activation::softsign:
        return x / (1.0 + std::abs(x));
      default:
        return std::numeric_limits<double>::quiet_NaN();
    }
  }

  // saved: y of sigmoid and tanh, else x
  Complex gradient(Complex dy, Complex saved) const {
    switch (f) {
      case Activation::sigmoid:
        return dy * std::conj((1.0 - saved) * saved);
      case Activation::tanh:
        return dy * std::conj(1.0 - saved * saved);
      case Activation::tanhshrink: {
        const Complex t = std::tanh(saved);
        return dy * std::conj(t * t);
      }
      case Activation::silu: {
        const Complex s = 1.0 / (1.0 + std::exp(-saved));
        return dy * std::conj(s * (1.0 + saved * (1.0 - s)));
      }
      case Activation::softsign: {  // not analytic, for |x| is not: one term for x, one for |x|
        const double r = std::abs(saved), m = 1.0 + r;
        return r == 0 ? dy : dy / m - saved * ((std::conj(saved) * dy).real() / (r * m * m));
      }
      default:
        return std::numeric_limits<double>::quiet_NaN();
    }
  }
};

// Parameters as the fast kernels take them, rounded to the type that they compute in.
struct RoundedParameters {
  double values[2] = {};
  RoundedParameters(const double* parameters, int64_t count, at::ScalarType type) {
    for (int64_t i = 0; i < count; ++i) {
      values[i] = type == at::kDouble ? parameters[i] : static_cast<double>(static_cast<float>(parameters[i]));
    }
  }
};

// output[i] = f(inputs[i]...), in type V
template <class S, class V, class Function, class... Tensors>
void each(const Function& f, const at::Tensor& output, const Tensors&... inputs) {
  S* out = output.data_ptr<S>();
  for (int64_t i = 0; i < output.numel(); ++i) {
    out[i] = static_cast<S>(f(static_cast<V>(inputs.template const_data_ptr<S>()[i])...));
  }
}

// The piecewise linear functions also serve whole numbers, computed as such.
void activation_of_integers(Activation which, const double* parameters, const at::Tensor& input,
                            const at::Tensor& output) {
  AT_DISPATCH_INTEGRAL_TYPES(input.scalar_type(), "activation", [&] {
    using Limits = std::numeric_limits<scalar_t>;
    double limited[2] = {};
    for (int i = 0; i < parameter_count(which); ++i) {
      limited[i] = std::clamp(parameters[i], static_cast<double>(Limits::lowest()), static_cast<double>(Limits::max()));
    }
    const auto apply = [&](const auto& f) {
      each<scalar_t, scalar_t>([&](scalar_t x) { return f.value(x); }, output, input);
    };
    if (which == Activation::relu) apply(functions::relu<scalar_t>(limited));
    if (which == Activation::threshold) apply(functions::threshold<scalar_t>(limited));
    if (which == Activation::hardtanh) apply(functions::hardtanh<scalar_t>(limited));
  });
}

}  // namespace

void activation(Activation which, const double* parameters, const at::Tensor& input, const at::Tensor& output) {
  if (at::isIntegralType(input.scalar_type(), false)) return activation_of_integers(which, parameters, input, output);
  if (input.is_complex()) {
    AT_DISPATCH_COMPLEX_TYPES(input.scalar_type(), "activation", [&] {
      each<scalar_t, Complex>([&](Complex x) { return ComplexFunction{which}.value(x); }, output, input);
    });
    return;
  }
  const RoundedParameters rounded(parameters, parameter_count(which), input.scalar_type());
  with_function<double>(which, rounded.values, [&](const auto& f) {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, input.scalar_type(), "activation", [&] {
      each<scalar_t, double>([&](double x) { return f.value(x); }, output, input);
    });
  });
}

void activation_backward(Activation which, const double* parameters, const at::Tensor& grad, const at::Tensor& saved,
                         const at::Tensor& grad_input) {
  if (grad.is_complex()) {
    AT_DISPATCH_COMPLEX_TYPES(grad.scalar_type(), "activation_backward", [&] {
      each<scalar_t, Complex>([&](Complex dy, Complex x) { return ComplexFunction{which}.gradient(dy, x); }, grad_input,
                              grad, saved);
    });
    return;
  }
  const RoundedParameters rounded(parameters, parameter_count(which), grad.scalar_type());
  with_function<double>(which, rounded.values, [&](const auto& f) {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, grad.scalar_type(), "activation_backward", [&] {
      each<scalar_t, double>([&](double dy, double x) { return f.gradient(dy, x); }, grad_input, grad, saved);
    });
  });
}

void activation_output_backward(Activation which, const double* parameters, const at::Tensor& grad,
                                const at::Tensor& output, const at::Tensor& grad_input) {
  const RoundedParameters rounded(parameters, parameter_count(which), grad.scalar_type());
  with_function_of_output<double>(which, rounded.values, [&](const auto& f) {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, grad.scalar_type(), "activation_output_backward", [&] {
      each<scalar_t, double>([&](double dy, double y) { return f.gradient_from_output(dy, y); }, grad_input, grad,
                             output);
    });
  });
}

// Rows along one dimension, outer x size x inner in memory: element i of row (o, k) is at (o size + i) inner + k.

// y_i = e^(x_i - most) / sum_j e^(x_j - most), most = max_j x_j: the same as without it, and no exponential overflows.
void softmax(Softmax f, const Rows& r, const at::Tensor& input, const at::Tensor& output) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, input.scalar_type(), "softmax", [&] {
    const double sign = f == Softmax::softmin ? -1 : 1;
    for (int64_t o = 0; o < r.outer; ++o) {
      for (int64_t k = 0; k < r.inner; ++k) {
        const scalar_t* x = input.const_data_ptr<scalar_t>() + o * r.size * r.inner + k;
        scalar_t* y = output.data_ptr<scalar_t>() + o * r.size * r.inner + k;
        double most = -std::numeric_limits<double>::infinity(), sum = 0;
        for (int64_t i = 0; i < r.size; ++i) {
          const double value = sign * static_cast<double>(x[i * r.inner]);
          if (!(value <= most)) most = value;  // NaN too
        }
        for (int64_t i = 0; i < r.size; ++i) sum += std::exp(sign * static_cast<double>(x[i * r.inner]) - most);
        for (int64_t i = 0; i < r.size; ++i) {
          const double above = sign * static_cast<double>(x[i * r.inner]) - most;
          y[i * r.inner] =
              static_cast<scalar_t>(f == Softmax::log_softmax ? above - std::log(sum) : std::exp(above) / sum);
        }
      }
    }
  });
}

// softmax: dx_i = y_i (dy_i - sum_j dy_j y_j), softmin: minus that; log_softmax: dx_i = dy_i - e^(y_i) sum_j dy_j
void softmax_backward(Softmax f, const Rows& r, const at::Tensor& grad, const at::Tensor& output,
                      const at::Tensor& grad_input) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, grad.scalar_type(), "softmax_backward", [&] {
    const double sign = f == Softmax::softmin ? -1 : 1;
    for (int64_t o = 0; o < r.outer; ++o) {
      for (int64_t k = 0; k < r.inner; ++k) {
        const int64_t start = o * r.size * r.inner + k;
        const scalar_t* dy = grad.const_data_ptr<scalar_t>() + start;
        const scalar_t* y = output.const_data_ptr<scalar_t>() + start;
        scalar_t* dx = grad_input.data_ptr<scalar_t>() + start;
        double sum = 0;
        for (int64_t i = 0; i < r.size; ++i) {
          const double g = static_cast<double>(dy[i * r.inner]);
          sum += f == Softmax::log_softmax ? g : g * static_cast<double>(y[i * r.inner]);
        }
        for (int64_t i = 0; i < r.size; ++i) {
          const double g = static_cast<double>(dy[i * r.inner]), v = static_cast<double>(y[i * r.inner]);
          dx[i * r.inner] =
              static_cast<scalar_t>(f == Softmax::log_softmax ? g - std::exp(v) * sum : sign * v * (g - sum));
        }
      }
    }
  });
}

// y = a sigmoid(b), (a, b) the halves of the input, outer x 2 x (size inner)
void glu(const Rows& r, const at::Tensor& input, const at::Tensor& output) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, input.scalar_type(), "glu", [&] {
    const int64_t half = r.size * r.inner;
    for (int64_t o = 0; o < r.outer; ++o) {
      const scalar_t* a = input.const_data_ptr<scalar_t>() + 2 * o * half;
      scalar_t* y = output.data_ptr<scalar_t>() + o * half;
      for (int64_t i = 0; i < half; ++i) {
        y[i] = static_cast<scalar_t>(static_cast<double>(a[i]) * sigmoid(static_cast<double>(a[half + i])));
      }
    }
  });
}

// da = dy sigmoid(b), db = dy a sigmoid(b) (1 - sigmoid(b))
void glu_backward(const Rows& r, const at::Tensor& grad, const at::Tensor& input, const at::Tensor& grad_input) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, input.scalar_type(), "glu_backward", [&] {
    const int64_t half = r.size * r.inner;
    for (int64_t o = 0; o < r.outer; ++o) {
      const scalar_t* dy = grad.const_data_ptr<scalar_t>() + o * half;
      const scalar_t* a = input.const_data_ptr<scalar_t>() + 2 * o * half;
      scalar_t* da = grad_input.data_ptr<scalar_t>() + 2 * o * half;
      for (int64_t i = 0; i < half; ++i) {
        const double g = static_cast<double>(dy[i]), s = sigmoid(static_cast<double>(a[half + i]));
        da[i] = static_cast<scalar_t>(g * s);
        da[half + i] = static_cast<scalar_t>(g * static_cast<double>(a[i]) * s * (1 - s));
      }
    }
  });
}

// y = x for x > 0, else w_c x
void prelu(const Rows& r, const at::Tensor& input, const at::Tensor& weight, const at::Tensor& output) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, input.scalar_type(), "prelu", [&] {
    const scalar_t* w = weight.const_data_ptr<scalar_t>();
    const scalar_t* x = input.const_data_ptr<scalar_t>();
    for (int64_t i = 0; i < input.numel(); ++i) {
      const double slope = static_cast<double>(w[i / r.inner % r.size]), v = static_cast<double>(x[i]);
      output.data_ptr<scalar_t>()[i] = static_cast<scalar_t>(v > 0 ? v : slope * v);
    }
  });
}

// dx = dy for x > 0, else w_c dy; dw_c = sum of dy x where x <= 0
void prelu_backward(const Rows& r, const at::Tensor& grad, const at::Tensor& input, const at::Tensor& weight,
                    const at::Tensor& grad_input, const at::Tensor& grad_weight) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, input.scalar_type(), "prelu_backward", [&] {
    const scalar_t* w = weight.const_data_ptr<scalar_t>();
    const scalar_t* x = input.const_data_ptr<scalar_t>();
    const scalar_t* dy = grad.const_data_ptr<scalar_t>();
    double* dw = grad_weight.data_ptr<double>();
    std::fill(dw, dw + r.size, 0.0);
    for (int64_t i = 0; i < input.numel(); ++i) {
      const int64_t c = i / r.inner % r.size;
      const double g = static_cast<double>(dy[i]), v = static_cast<double>(x[i]);
      grad_input.data_ptr<scalar_t>()[i] = static_cast<scalar_t>(v > 0 ? g : static_cast<double>(w[c]) * g);
      if (!(v > 0)) dw[c] += g * v;
    }
  });
}

}  // namespace scratchnn::naive

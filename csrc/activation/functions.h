// The elementwise activations: for each its value y = f(x), and the gradient dx = dy f'(x).
//
// One struct a function, named as in table.h, with its parameters as members. The formulas are generic: T is the
// type of the parameters, V a vector of T (the fast kernels) or a plain number (the readable ones); `c ? a : b` picks
// lane by lane. They are written so that NaN stays NaN. Where a function has a kink, the derivative is the one torch
// takes. A function that ends on a constant (relu) drops the gradient there, even an infinite one, rather than
// multiply it by zero.
#pragma once

#include "activation/table.h"
#include "common/vector_math.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {
namespace functions {

// y = max(x, 0); saved: y
template <class T>
struct relu {
  explicit relu(const double*) {}
  template <class V>
  SCRATCHNN_MEMBER V value(V x) const {
    return x < T(0) ? V{} : x;
  }
  template <class V>
  SCRATCHNN_MEMBER V gradient(V dy, V y) const {
    return y <= T(0) ? V{} : dy;
  }
};

// y = x for x > 0, else slope x; saved: x, or y where slope >= 0
template <class T>
struct leaky_relu {
  T slope;
  explicit leaky_relu(const double* p) : slope(static_cast<T>(p[0])) {}
  template <class V>
  SCRATCHNN_MEMBER V value(V x) const {
    return x > T(0) ? x : x * slope;
  }
  template <class V>
  SCRATCHNN_MEMBER V gradient(V dy, V x) const {
    return x > T(0) ? dy : dy * slope;
  }
};

// y = x for x > limit, else otherwise; saved: x, or y where otherwise <= limit
template <class T>
struct threshold {
  T limit, otherwise;
  explicit threshold(const double* p) : limit(static_cast<T>(p[0])), otherwise(static_cast<T>(p[1])) {}
  template <class V>
  SCRATCHNN_MEMBER V value(V x) const {
    const V constant = V{} + otherwise;
    return x <= limit ? constant : x;
  }
  template <class V>
  SCRATCHNN_MEMBER V gradient(V dy, V x) const {
    return x <= limit ? V{} : dy;
  }
};

// y = min(max(x, least), most); saved: x or y
template <class T>
struct hardtanh {
  T least, most;
  explicit hardtanh(const double* p) : least(static_cast<T>(p[0])), most(static_cast<T>(p[1])) {}
  template <class V>
  SCRATCHNN_MEMBER V value(V x) const {
    const V low = V{} + least, high = V{} + most;
    const V raised = x < least ? low : x;
    return raised > most ? high : raised;
  }
  template <class V>
  SCRATCHNN_MEMBER V gradient(V dy, V x) const {
    return (x <= least) | (x >= most) ? V{} : dy;
  }
};

// y = x for |x| > limit, else 0
template <class T>
struct hardshrink {
  T limit;
  explicit hardshrink(const double* p) : limit(static_cast<T>(p[0])) {}
  template <class V>
  SCRATCHNN_MEMBER V value(V x) const {
    return (x >= -limit) & (x <= limit) ? V{} : x;
  }
  template <class V>
  SCRATCHNN_MEMBER V gradient(V dy, V x) const {
    return (x >= -limit) & (x <= limit) ? V{} : dy;
  }
};

// y = x - limit for x > limit, x + limit for x < -limit, else 0
template <class T>
struct softshrink {
  T limit;
  explicit softshrink(const double* p) : limit(static_cast<T>(p[0])) {}
  template <class V>
  SCRATCHNN_MEMBER V value(V x) const {
    return x > limit ? x - limit : x < -limit ? x + limit : x * T(0);
  }
  template <class V>
  SCRATCHNN_MEMBER V gradient(V dy, V x) const {
    return (x >= -limit) & (x <= limit) ? V{} : dy;
  }
};

// y = min(max(x + 3, 0), 6) / 6
template <class T>
struct hardsigmoid {
  explicit hardsigmoid(const double*) {}
  template <class V>
  SCRATCHNN_MEMBER V value(V x) const {
    const V up = x + T(3), six = V{} + T(6);
    const V raised = up < T(0) ? V{} : up;
    return (raised > T(6) ? six : raised) / T(6);
  }
  template <class V>
  SCRATCHNN_MEMBER V gradient(V dy, V x) const {
    return (x > T(-3)) & (x < T(3)) ? dy / T(6) : V{};
  }
};

// y = x min(max(x + 3, 0), 6) / 6
template <class T>
struct hardswish {
  explicit hardswish(const double*) {}
  template <class V>
  SCRATCHNN_MEMBER V value(V x) const {
    const V up = x + T(3), six = V{} + T(6);
    const V raised = up < T(0) ? V{} : up;
    return x * (raised > T(6) ? six : raised) / T(6);
  }
  template <class V>
  SCRATCHNN_MEMBER V gradient(V dy, V x) const {
    return x <= T(-3) ? V{} : x < T(3) ? dy * (x / T(3) + T(0.5)) : dy;
  }
};

// y = scale x for x >= 0, else scale alpha (e^(x / width) - 1): elu, celu and selu are all of this form.
template <class T>
struct exponential_unit {
  T alpha, scale, width;
  template <class V>
  SCRATCHNN_MEMBER V value(V x) const {
    const V inner = x < T(0) ? x / width : V{};
    return x < T(0) ? expm1(inner) * (alpha * scale) : x * scale;
  }
  template <class V>
  SCRATCHNN_MEMBER V gradient(V dy, V x) const {
    const V inner = x <= T(0) ? x / width : V{};
    return x <= T(0) ? dy * (alpha * scale / width) * exp(inner) : dy * scale;
  }
  // e^(x / width) = y / (scale alpha) + 1; saved: y, with alpha >= 0
  template <class V>
  SCRATCHNN_MEMBER V gradient_from_output(V dy, V y) const {
    return y <= T(0) ? dy * (y + alpha * scale) / width : dy * scale;
  }
};
template <class T>
struct elu : exponential_unit<T> {
  explicit elu(const double* p) : exponential_unit<T>{static_cast<T>(p[0]), T(1), T(1)} {}
};
template <class T>
struct celu : exponential_unit<T> {
  explicit celu(const double* p) : exponential_unit<T>{static_cast<T>(p[0]), T(1), static_cast<T>(p[0])} {}
};
template <class T>
struct selu : exponential_unit<T> {
  explicit selu(const double*)
      : exponential_unit<T>{T(1.6732632423543772848170429916717), T(1.0507009873554804934193349852946), T(1)} {}
};

// y = 1 / (1 + e^-x); saved: y
template <class T>
struct sigmoid {
  explicit sigmoid(const double*) {}
  template <class V>
  SCRATCHNN_MEMBER V value(V x) const {
    return CPU_CAPABILITY::sigmoid(x);
  }
  template <class V>
  SCRATCHNN_MEMBER V gradient(V dy, V y) const {
    return dy * (T(1) - y) * y;
  }
};

// y = log(1 / (1 + e^-x)) = min(x, 0) - log(1 + e^-|x|)
template <class T>
struct log_sigmoid {
  explicit log_sigmoid(const double*) {}
  template <class V>
  SCRATCHNN_MEMBER V value(V x) const {
    return (x > T(0) ? V{} : x) - log1p(exp(negative_abs(x)));
  }
  template <class V>
  SCRATCHNN_MEMBER V gradient(V dy, V x) const {
    return dy * CPU_CAPABILITY::sigmoid(-x);
  }
};

// y = (e^x - e^-x) / (e^x + e^-x); saved: y
template <class T>
struct tanh {
  explicit tanh(const double*) {}
  template <class V>
  SCRATCHNN_MEMBER V value(V x) const {
    return CPU_CAPABILITY::tanh(x);
  }
  template <class V>
  SCRATCHNN_MEMBER V gradient(V dy, V y) const {
    return dy * (T(1) - y * y);
  }
};

// y = x - tanh(x)
template <class T>
struct tanhshrink {
  explicit tanhshrink(const double*) {}
  template <class V>
  SCRATCHNN_MEMBER V value(V x) const {
    return minus_tanh(x);
  }
  template <class V>
  SCRATCHNN_MEMBER V gradient(V dy, V x) const {
    const V t = CPU_CAPABILITY::tanh(x);
    return dy * (t * t);
  }
};

// y = x / (1 + |x|)
template <class T>
struct softsign {
  explicit softsign(const double*) {}
  template <class V>
  SCRATCHNN_MEMBER V value(V x) const {
    return x / (T(1) - negative_abs(x));
  }
  template <class V>
  SCRATCHNN_MEMBER V gradient(V dy, V x) const {
    const V size = T(1) - negative_abs(x);
    return dy / size / size;
  }
};

// y = log(1 + e^(beta x)) / beta, and x itself where beta x > limit
template <class T>
struct softplus {
  T beta, limit;
  explicit softplus(const double* p) : beta(static_cast<T>(p[0])), limit(static_cast<T>(p[1])) {}
  template <class V>
  SCRATCHNN_MEMBER V value(V x) const {
    const V z = x * beta;
    const V y = ((z < T(0) ? V{} : z) + log1p(exp(negative_abs(z)))) / beta;
    return z > limit ? x : y;
  }
  template <class V>
  SCRATCHNN_MEMBER V gradient(V dy, V x) const {
    const V z = x * beta;
    return z > limit ? dy : dy * CPU_CAPABILITY::sigmoid(z);
  }
};

// y = x sigmoid(x)
template <class T>
struct silu {
  explicit silu(const double*) {}
  template <class V>
  SCRATCHNN_MEMBER V value(V x) const {
    return x * CPU_CAPABILITY::sigmoid(x);
  }
  template <class V>
  SCRATCHNN_MEMBER V gradient(V dy, V x) const {
    const V s = CPU_CAPABILITY::sigmoid(x);
    return dy * (s * (T(1) + x * (T(1) - s)));
  }
};

// y = x tanh(log(1 + e^x)), and with e = e^x: tanh(log(1 + e)) = ((1 + e)^2 - 1) / ((1 + e)^2 + 1) = e (e + 2) / m,
// m = e (e + 2) + 2. From x = 20 on that is 1, and e kept small.
template <class T>
struct mish {
  explicit mish(const double*) {}
  template <class V>
  SCRATCHNN_MEMBER V value(V x) const {
    const V most = V{} + T(40), e = exp(x > T(40) ? most : x), n = e * (e + T(2));
    return x * (n / (n + T(2)));
  }
  // d tanh(log(1 + e)) / dx = 4 e (1 + e) / m^2
  template <class V>
  SCRATCHNN_MEMBER V gradient(V dy, V x) const {
    const V most = V{} + T(40), held = x > T(40) ? most : x, e = exp(held), n = e * (e + T(2)), m = n + T(2);
    return dy * (n / m + held * (T(4) * e * (T(1) + e) / m / m));  // beyond, the second term is less than a rounding
  }
};

// y = x P(x), P the normal distribution's probability of a number below x
template <class T>
struct gelu {
  explicit gelu(const double*) {}
  template <class V>
  SCRATCHNN_MEMBER V value(V x) const {
    return x * normal(x).below;
  }
  template <class V>
  SCRATCHNN_MEMBER V gradient(V dy, V x) const {
    const auto [below, density] = normal(x);
    return dy * (below + x * density);
  }
};

// y = x (1 + tanh(u)) / 2 = x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3)
template <class T>
struct gelu_tanh {
  explicit gelu_tanh(const double*) {}
  static constexpr T linear = T(1.5957691216057308), cubic = T(1.5957691216057308 * 0.044715);  // of 2 u
  template <class V>
  SCRATCHNN_MEMBER V value(V x) const {
    return x * CPU_CAPABILITY::sigmoid(x * (linear + cubic * x * x));
  }
  template <class V>
  SCRATCHNN_MEMBER V gradient(V dy, V x) const {
    const V square = x * x, s = CPU_CAPABILITY::sigmoid(x * (linear + cubic * square));
    return dy * (s + x * s * (T(1) - s) * (linear + T(3) * cubic * square));
  }
};

}  // namespace functions

// Calls body(function) with the struct of a row.
template <class T, class Body>
SCRATCHNN_INLINE void with_function(Activation which, const double* parameters, const Body& body) {
  switch (which) {
#define SCRATCHNN_CASE(name, schema) \
  case Activation::name:             \
    return body(functions::name<T>(parameters));
    SCRATCHNN_ACTIVATIONS(SCRATCHNN_CASE)
#undef SCRATCHNN_CASE
  }
}

// The same for the functions that have gradient_from_output.
template <class T, class Body>
SCRATCHNN_INLINE void with_function_of_output(Activation which, const double* parameters, const Body& body) {
  switch (which) {
#define SCRATCHNN_CASE(name, schema) \
  case Activation::name:             \
    return body(functions::name<T>(parameters));
    SCRATCHNN_OUTPUT_DERIVATIVES(SCRATCHNN_CASE)
#undef SCRATCHNN_CASE
    default:
      return;
  }
}

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

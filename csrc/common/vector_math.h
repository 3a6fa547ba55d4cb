// exp and its relatives on vectors, and under the same names on plain doubles.
//
// The vector versions are written with +, *, / and a few tricks on bits, so they serve every instruction set and
// give each lane the same result wherever in a vector it stands. They err by a few units in the last place at most;
// the coefficients are Chebyshev interpolations of the functions named beside them. NaN stays NaN. Include only in
// files compiled once per instruction set, and where the formulas are wanted on plain numbers.
#pragma once

#include <cmath>

#include "common/simd.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {

template <class T>
struct Constants;

template <>
struct Constants<float> {
  static constexpr float round_to_integer = 12582912.0f;  // 1.5 * 2^23: adding it leaves no room for a fraction
  static constexpr int exponent_bias = 127, mantissa_bits = 23;
  static constexpr uint32_t upper_half = 0xfffff000u;  // of a number's bits: the square of what is left is exact
  static constexpr float exp_least = -104.0f, exp_most = 89.0f;  // beyond: 0 and infinity
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  // (e^r - 1 - r) / r^2 for |r| <= ln(2) / 2
  static constexpr float exp_series[] = {0.5f,           0.16666667163f,   0.041666463017f,
                                         0.00833331048f, 0.0013933881418f, 0.00019891247211f};
  // (log(1 + f) of the atanh series, s = f / (2 + f): log = 2 s + s^3 (c0 + c1 s^2 + ...)
  static constexpr float log_series[] = {0.66666662693f, 0.40000972152f, 0.28498786688f, 0.24279078841f};
  static constexpr float log_ln2_high = 6.9313812256e-01f, log_ln2_low = 9.0580006145e-06f;
  // (1 + 2 z) e^(z^2) erfc(z) in t = (z - 3) / (z + 3)
  static constexpr float erfc_series[] = {1.2530080080f,   -0.1356211007f, -0.0475621559f,  0.1296447217f,
                                          -0.1192752793f,  0.0683131963f,  -0.0237635598f,  0.0025067786f,
                                          0.00187506026f, -0.00073408207f, -0.0000925376880f, 0.0000800745474f};
};

template <>
struct Constants<double> {
  static constexpr double round_to_integer = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr int exponent_bias = 1023, mantissa_bits = 52;
  static constexpr uint64_t upper_half = 0xfffffffff8000000u;
  static constexpr double exp_least = -746.0, exp_most = 710.0;
  static constexpr double ln2_high = 6.93145751953125e-1, ln2_low = 1.42860682030941723212e-6;
  static constexpr double exp_series[] = {
      0.5,
      0.1666666666666667,
      0.04166666666666667,
      0.008333333333325985,
      0.0013888888888883642,
      0.00019841269875342141,
      2.4801587325920163e-05,
      2.7557254740405416e-06,
      2.7557273171941026e-07,
      2.5105490906986696e-08,
      2.091488256348507e-09,
  };
  static constexpr double log_series[] = {6.666666666666735130e-01, 3.999999999940941908e-01, 2.857142874366239149e-01,
                                          2.222219843214978396e-01, 1.818357216161805012e-01, 1.531383769920937332e-01,
                                          1.479819860511658591e-01};
  static constexpr double log_ln2_high = 6.93147180369123816490e-01, log_ln2_low = 1.90821492927058770002e-10;
  static constexpr double erfc_series[] = {
      1.2530080582697296,     -0.13562110612458117,    -0.04756229435345087,    0.1296451587027606,
      -0.11927366341530699,   0.06830802734397848,     -0.023770514918645888,   0.002529391816066239,
      0.0018886903591561553,  -0.0007798322721083991,  -0.00010515979981501177, 0.00012509935235563107,
      4.949484992570595e-06,  -2.0100567931289227e-05, -7.315105164159062e-07,  3.472414602875686e-06,
      3.5683839153992204e-07, -6.166496077604353e-07,  -1.4160064940265987e-07, 1.0187000600072885e-07,
      4.180784698845582e-08,  -1.3326364813003834e-08, -8.500397929772615e-09,  9.885798831139365e-10,
      8.864219016427092e-10,
  };
};

template <class T>
using BitsOf = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
template <class T>
using VecBits = Vec<BitsOf<T>>;

// c[0] + c[1] x + c[2] x^2 + ..., as two shorter sums over x^2 that the processor adds up side by side.
template <class T, int count>
SCRATCHNN_INLINE Vec<T> polynomial(Vec<T> x, const T (&c)[count]) {
  const Vec<T> square = x * x;
  Vec<T> last = broadcast(c[count - 1]), other = broadcast(c[count - 2]);
#pragma GCC unroll 32
  for (int i = count - 3; i >= 0; i -= 2) {
    last = last * square + c[i];
    if (i > 0) other = other * square + c[i - 1];
  }
  return count % 2 == 1 ? last + x * other : other + x * last;
}

template <class T>
SCRATCHNN_INLINE Vec<T> limited(Vec<T> x, T least, T most) {
  x = x < least ? broadcast(least) : x;
  return x > most ? broadcast(most) : x;
}

// 2^n for whole n with a normal result.
template <class T>
SCRATCHNN_INLINE Vec<T> power_of_two(Vec<T> n) {
  using C = Constants<T>;
  return (Vec<T>)((VecBits<T>)(n + (C::round_to_integer + C::exponent_bias)) << C::mantissa_bits);
}

// x = n ln(2) + r with whole n and |r| <= ln(2) / 2; gives e^r - 1.
template <class T>
SCRATCHNN_INLINE Vec<T> reduced_expm1(Vec<T> x, Vec<T> correction, Vec<T>& n) {
  using C = Constants<T>;
  n = (x * T(1.44269504088896341) + C::round_to_integer) - C::round_to_integer;
  const Vec<T> r = ((x - n * C::ln2_high) - n * C::ln2_low) + correction;
  return r + r * r * polynomial<T>(r, C::exp_series);
}

// e^(x + correction) for a small correction.
template <class T>
SCRATCHNN_INLINE Vec<T> exp_of(Vec<T> x, Vec<T> correction) {
  using C = Constants<T>;
  Vec<T> n;
  const Vec<T> p = reduced_expm1<T>(limited<T>(x, C::exp_least, C::exp_most), correction, n);
  // In two steps: 2^n itself may overflow where the result does not, and be subnormal.
  const Vec<T> half = (n * T(0.5) + C::round_to_integer) - C::round_to_integer;
  return (T(1) + p) * power_of_two<T>(half) * power_of_two<T>(n - half);
}

// e^x - 1 for x <= 80; -1 from -50 on downwards.
template <class T>
SCRATCHNN_INLINE Vec<T> expm1_of(Vec<T> x) {
  Vec<T> n;
  const Vec<T> p = reduced_expm1<T>(limited<T>(x, T(-50), T(80)), Vec<T>{}, n);
  const Vec<T> power = power_of_two<T>(n);
  return x == T(0) ? x : power * p + (power - T(1));  // keeps -0
}

// log(1 + x) for 0 <= x <= 1: log(1 + f), or log(2) + log(1 + f), with 1 + f between sqrt(1/2) and sqrt(2).
template <class T>
SCRATCHNN_INLINE Vec<T> log1p_of(Vec<T> x) {
  using C = Constants<T>;
  const auto upper = x > T(0.41421356237309505);
  const Vec<T> f = upper ? (x - T(1)) * T(0.5) : x;
  const Vec<T> s = f / (T(2) + f), square = s * s, half = f * f * T(0.5);
  const Vec<T> rest = s * (half + square * polynomial<T>(square, C::log_series));
  return upper ? C::log_ln2_high - ((half - (rest + C::log_ln2_low)) - f) : f - (half - rest);
}

// The normal distribution: the probability of a number below x, and its density at x.
template <class V>
struct Normal {
  V below;
  V density;
};

template <class T>
SCRATCHNN_INLINE Normal<Vec<T>> normal_of(Vec<T> x) {
  using C = Constants<T>;
  const Vec<T> a = limited<T>(x < T(0) ? -x : x, T(0), T(40));  // beyond 40 nothing is left
  // e^(-a^2 / 2) from an exact square and the rest: the rounding of a^2 would be multiplied by a^2.
  const Vec<T> upper = (Vec<T>)((VecBits<T>)a & C::upper_half);
  const Vec<T> bell = exp_of<T>(upper * upper * T(-0.5), (a - upper) * (a + upper) * T(-0.5));
  const Vec<T> z = a * T(0.70710678118654752);
  const Vec<T> scaled = polynomial<T>((z - T(3)) / (z + T(3)), C::erfc_series);
  const Vec<T> tail = T(0.5) * bell * scaled / (T(1) + T(2) * z);
  return {x < T(0) ? tail : T(1) - tail, bell * T(0.39894228040143268)};
}

#define SCRATCHNN_VECTOR_MATH(T)                                                                \
  SCRATCHNN_INLINE Vec<T> exp(Vec<T> x) { return exp_of<T>(x, Vec<T>{}); }                      \
  SCRATCHNN_INLINE Vec<T> expm1(Vec<T> x) { return expm1_of<T>(x); }                            \
  SCRATCHNN_INLINE Vec<T> log1p(Vec<T> x) { return log1p_of<T>(x); }                            \
  SCRATCHNN_INLINE Normal<Vec<T>> normal(Vec<T> x) { return normal_of<T>(x); }
SCRATCHNN_VECTOR_MATH(float)
SCRATCHNN_VECTOR_MATH(double)
#undef SCRATCHNN_VECTOR_MATH

// The same on plain numbers, for the readable kernels.
SCRATCHNN_INLINE double exp(double x) { return std::exp(x); }
SCRATCHNN_INLINE double expm1(double x) { return std::expm1(x); }
SCRATCHNN_INLINE double log1p(double x) { return std::log1p(x); }
SCRATCHNN_INLINE Normal<double> normal(double x) {
  return {0.5 * std::erfc(-x * 0.70710678118654752), 0.39894228040143268 * std::exp(-0.5 * x * x)};
}

// 1 / (1 + e^-x), without overflow on the way.
template <class V>
SCRATCHNN_INLINE V sigmoid(V x) {
  const V e = exp(x < 0 ? x : -x), one = V{} + 1;
  return (x < 0 ? e : one) / (1 + e);
}

// (e^2x - 1) / (e^2x + 1)
template <class V>
SCRATCHNN_INLINE V tanh(V x) {
  const V twice = x < 0 ? -2 * x : 2 * x, most = V{} + 40;
  const V e = expm1(twice > 40 ? most : twice);
  const V y = e / (e + 2);
  return x < 0 ? -y : x == 0 ? x : y;
}

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

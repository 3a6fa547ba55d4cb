// exp and its relatives on vectors, and under the same names on plain doubles, for x <= 80: what activations need of
// them, who take the exponential of -|x|.
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
  static constexpr uint32_t sign = 0x80000000u;
  static constexpr float exp_least = -87.336540f;  // e^x is the least normal number: what is smaller becomes 0
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  // (e^r - 1 - r) / r^2 for |r| <= ln(2) / 2
  static constexpr float exp_series[] = {0.5f,           0.16666667163f,   0.041666463017f,
                                         0.00833331048f, 0.0013933881418f, 0.00019891247211f};
  // (log(1 + f) of the atanh series, s = f / (2 + f): log = 2 s + s^3 (c0 + c1 s^2 + ...)
  static constexpr float log_series[] = {0.66666662693f, 0.40000972152f, 0.28498786688f, 0.24279078841f};
  static constexpr float log_ln2_high = 6.9313812256e-01f, log_ln2_low = 9.0580006145e-06f;
  // (x - tanh(x)) / x^3 in x^2, for |x| < 3/5
  static constexpr float tanh_series[] = {0.333333343f,   -0.133333132f,  0.0539615527f,
                                          -0.0217883214f, 0.00841007102f, -0.00237076567f};
  // (z + 5/2) e^(z^2) erfc(z) in t = (z - 5/2) / (z + 5/2)
  static constexpr float erfc_series[] = {1.05403185f,     -0.804651916f,   0.453914255f,    -0.171249419f,
                                          0.0283588674f,   0.00838288851f,  -0.00480345497f, -0.00041360379f,
                                          0.000666220789f, 2.68655913e-05f, -7.29214589e-05f};
};

template <>
struct Constants<double> {
  static constexpr double round_to_integer = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr int exponent_bias = 1023, mantissa_bits = 52;
  static constexpr uint64_t upper_half = 0xfffffffff8000000u;
  static constexpr uint64_t sign = 0x8000000000000000u;
  static constexpr double exp_least = -708.39641853226408;
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
  static constexpr double tanh_series[] = {
      0.3333333333333333,     -0.13333333333333333,   0.0539682539682536,    -0.02186948853612935,
      0.008863235528937866,   -0.0035921280149849334, 0.001455834073197924,  -0.0005900243334839051,
      0.00023910757250025918, -9.680943521624041e-05, 3.890849770067712e-05, -1.5014299115711977e-05,
      4.945692670034688e-06,  -9.916372416416241e-07,
  };
  static constexpr double erfc_series[] = {
      1.054031820305718,       -0.8046518494391481,    0.4539141166480972,      -0.1712511452461242,
      0.0283615501319384,      0.008393044304894867,   -0.004818785522145937,   -0.00043920830168962284,
      0.0007026937130735259,   5.830806924447679e-05,  -0.00011260476577313144, -1.9533381081369285e-05,
      1.8244095865799677e-05,  6.75749162798147e-06,   -2.3314874909535433e-06, -1.9683271975506974e-06,
      -7.551414616390503e-09,  4.544747448377953e-07,  1.4005632494206184e-07,  -7.434757091278978e-08,
      -5.425130513143961e-08,  6.5211004909097565e-09, 1.1576263709098254e-08,  -4.492271901913438e-11,
      -1.1752735761572175e-09,
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

// Not less than `least`; NaN stays.
template <class T>
SCRATCHNN_INLINE Vec<T> at_least(Vec<T> x, T least) {
  return x < least ? broadcast(least) : x;
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

// e^(x + correction) for x <= 80 and a small correction.
template <class T>
SCRATCHNN_INLINE Vec<T> exp_of(Vec<T> x, Vec<T> correction) {
  using C = Constants<T>;
  Vec<T> n;
  const Vec<T> p = reduced_expm1<T>(at_least<T>(x, C::exp_least), correction, n);
  const Vec<T> power = power_of_two<T>(n);
  return x < C::exp_least ? Vec<T>{} : power + power * p;
}

// e^x - 1 for x <= 80; -1 from -50 on downwards.
template <class T>
SCRATCHNN_INLINE Vec<T> expm1_of(Vec<T> x) {
  Vec<T> n;
  const Vec<T> p = reduced_expm1<T>(at_least<T>(x, T(-50)), Vec<T>{}, n);
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

template <class T>
SCRATCHNN_INLINE Vec<T> negative_abs_of(Vec<T> x) {
  return (Vec<T>)((VecBits<T>)x | Constants<T>::sign);
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
  const Vec<T> a = -at_least<T>(negative_abs_of<T>(x), T(-40));  // beyond 40 nothing is left
  // e^(-a^2 / 2) from an exact square and the rest: the rounding of a^2 would be multiplied by a^2.
  const Vec<T> upper = (Vec<T>)((VecBits<T>)a & C::upper_half);
  const Vec<T> bell = exp_of<T>(upper * upper * T(-0.5), (a - upper) * (a + upper) * T(-0.5));
  const Vec<T> z = a * T(0.70710678118654752), inverse = T(1) / (z + T(2.5));
  const Vec<T> tail = T(0.5) * bell * (polynomial<T>(T(1) - T(5) * inverse, C::erfc_series) * inverse);
  return {x < T(0) ? tail : T(1) - tail, bell * T(0.39894228040143268)};
}

#define SCRATCHNN_VECTOR_MATH(T)                     \
  SCRATCHNN_INLINE Vec<T> negative_abs(Vec<T> x) {   \
    return negative_abs_of<T>(x);                    \
  }                                                  \
  SCRATCHNN_INLINE Vec<T> exp(Vec<T> x) {            \
    return exp_of<T>(x, Vec<T>{});                   \
  }                                                  \
  SCRATCHNN_INLINE Vec<T> expm1(Vec<T> x) {          \
    return expm1_of<T>(x);                           \
  }                                                  \
  SCRATCHNN_INLINE Vec<T> log1p(Vec<T> x) {          \
    return log1p_of<T>(x);                           \
  }                                                  \
  SCRATCHNN_INLINE Normal<Vec<T>> normal(Vec<T> x) { \
    return normal_of<T>(x);                          \
  }
SCRATCHNN_VECTOR_MATH(float)
SCRATCHNN_VECTOR_MATH(double)
#undef SCRATCHNN_VECTOR_MATH

// The same on plain numbers, for the readable kernels.
SCRATCHNN_INLINE double negative_abs(double x) {
  return -std::abs(x);
}
SCRATCHNN_INLINE double exp(double x) {
  return std::exp(x);
}
SCRATCHNN_INLINE double expm1(double x) {
  return std::expm1(x);
}
SCRATCHNN_INLINE double log1p(double x) {
  return std::log1p(x);
}
SCRATCHNN_INLINE Normal<double> normal(double x) {
  return {0.5 * std::erfc(-x * 0.70710678118654752), 0.39894228040143268 * std::exp(-0.5 * x * x)};
}

// 1 / (1 + e^-x), without overflow on the way.
template <class V>
SCRATCHNN_INLINE V sigmoid(V x) {
  const V e = exp(negative_abs(x)), one = V{} + 1;
  return (x < 0 ? e : one) / (1 + e);
}

// (e^2x - 1) / (e^2x + 1)
template <class V>
SCRATCHNN_INLINE V tanh(V x) {
  const V twice = -2 * negative_abs(x), most = V{} + 40;
  const V e = expm1(twice > 40 ? most : twice), y = e / (e + 2);  // of |x|
  return x > 0 ? y : x < 0 ? -y : x;
}

// x - tanh(x). Near zero by its series: the two are almost the same.
SCRATCHNN_INLINE double minus_tanh(double x) {
  return x - std::tanh(x);
}
template <class T>
SCRATCHNN_INLINE Vec<T> minus_tanh_of(Vec<T> x) {
  const Vec<T> square = x * x;
  return square < T(0.36) ? x * square * polynomial<T>(square, Constants<T>::tanh_series) : x - tanh(x);
}
SCRATCHNN_INLINE Vec<float> minus_tanh(Vec<float> x) {
  return minus_tanh_of<float>(x);
}
SCRATCHNN_INLINE Vec<double> minus_tanh(Vec<double> x) {
  return minus_tanh_of<double>(x);
}

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

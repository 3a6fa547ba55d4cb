// The transforms of Winograd's minimal convolution F(4x4, 3x3) (Lavin & Gray 2015).
//
// A 4x4 tile of outputs of a 3x3 convolution takes 16 x 9 = 144 multiplications; as a product of polynomials,
// evaluated at six points in each direction, it takes 6 x 6 = 36:
//
//   Y = A^T [ (G w G^T) . (B^T x B) ] A          x: 6x6 input tile, w: 3x3 filter, Y: 4x4 outputs
//
// The points are 0, +-a, +-b and infinity. The textbook's a = 1, b = 2 cost four times the rounding error of these;
// a = 5/8, b = 3/2 keep all constants of B and A exact in float32.
//
// Each function below applies one matrix to a column of vectors (a vector holds one position of kLanes channels);
// applied to the rows and then to the columns of a tile it gives the two-dimensional transform.
#pragma once

#include "common/simd.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {
namespace winograd {

constexpr int kOut = 4;                // outputs of a tile, in each direction
constexpr int kTaps = 3;               // taps of the filter
constexpr int kIn = kOut + kTaps - 1;  // inputs of a tile, and points
constexpr int kPoints = kIn * kIn;

constexpr double a = 0.625, b = 1.5;
constexpr double a2 = a * a, b2 = b * b;

// B^T: 6 inputs to 6 points.
template <class T>
SCRATCHNN_INLINE void input_transform(const Vec<T> (&x)[kIn], Vec<T> (&v)[kIn]) {
  const T pa = a, pb = b, qa = a2, qb = b2, product = a2 * b2, sum = a2 + b2;
  const Vec<T> even_a = x[4] - qb * x[2], odd_a = x[3] - qb * x[1];
  const Vec<T> even_b = x[4] - qa * x[2], odd_b = x[3] - qa * x[1];
  v[0] = product * x[0] + (x[4] - sum * x[2]);
  v[1] = even_a + pa * odd_a;
  v[2] = even_a - pa * odd_a;
  v[3] = even_b + pb * odd_b;
  v[4] = even_b - pb * odd_b;
  v[5] = product * x[1] + (x[5] - sum * x[3]);
}

// A^T: 6 points to 4 outputs.
template <class T>
SCRATCHNN_INLINE void output_transform(const Vec<T> (&m)[kIn], Vec<T> (&y)[kOut]) {
  const T pa = a, pb = b, qa = a2, qb = b2, ra = a2 * a, rb = b2 * b;
  const Vec<T> even_a = m[1] + m[2], odd_a = m[1] - m[2], even_b = m[3] + m[4], odd_b = m[3] - m[4];
  y[0] = m[0] + even_a + even_b;
  y[1] = pb * odd_b + pa * odd_a;
  y[2] = qb * even_b + qa * even_a;
  y[3] = rb * odd_b + (ra * odd_a + m[5]);
}

// A: 4 outputs to 6 points, the adjoint of output_transform.
template <class T>
SCRATCHNN_INLINE void output_transform_adjoint(const Vec<T> (&y)[kOut], Vec<T> (&m)[kIn]) {
  const T pa = a, pb = b, qa = a2, qb = b2, ra = a2 * a, rb = b2 * b;
  const Vec<T> even_a = qa * y[2] + y[0], odd_a = ra * y[3] + pa * y[1];
  const Vec<T> even_b = qb * y[2] + y[0], odd_b = rb * y[3] + pb * y[1];
  m[0] = y[0];
  m[1] = even_a + odd_a;
  m[2] = even_a - odd_a;
  m[3] = even_b + odd_b;
  m[4] = even_b - odd_b;
  m[5] = y[3];
}

constexpr double g0 = 1 / (a2 * b2), ga = 1 / (2 * a2 * (a2 - b2)), gb = 1 / (2 * b2 * (b2 - a2));

// G: 3 taps to 6 points.
template <class T>
SCRATCHNN_INLINE void filter_transform(const Vec<T> (&w)[kTaps], Vec<T> (&u)[kIn]) {
  const T pa = a, pb = b, qa = a2, qb = b2, c0 = g0, ca = ga, cb = gb;
  const Vec<T> even_a = qa * w[2] + w[0], odd_a = pa * w[1], even_b = qb * w[2] + w[0], odd_b = pb * w[1];
  u[0] = c0 * w[0];
  u[1] = ca * (even_a + odd_a);
  u[2] = ca * (even_a - odd_a);
  u[3] = cb * (even_b + odd_b);
  u[4] = cb * (even_b - odd_b);
  u[5] = w[2];
}

// G^T: 6 points to 3 taps, the adjoint of filter_transform.
template <class T>
SCRATCHNN_INLINE void filter_transform_adjoint(const Vec<T> (&u)[kIn], Vec<T> (&w)[kTaps]) {
  const T pa = a, pb = b, qa = a2, qb = b2, c0 = g0, ca = ga, cb = gb;
  const Vec<T> even_a = ca * (u[1] + u[2]), odd_a = ca * (u[1] - u[2]);
  const Vec<T> even_b = cb * (u[3] + u[4]), odd_b = cb * (u[3] - u[4]);
  w[0] = c0 * u[0] + (even_a + even_b);
  w[1] = pa * odd_a + pb * odd_b;
  w[2] = qa * even_a + (qb * even_b + u[5]);
}

}  // namespace winograd
}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

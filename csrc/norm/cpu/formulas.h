// What the fast algorithms share: how sums become moments, and what becomes of a number once they are known.
#pragma once

#include <cmath>
#include <limits>

#include "common/simd.h"
#include "norm/kernels.h"

// For a lambda that is called for every vector: gcc otherwise makes a function of those with many callers.
#define SCRATCHNN_INLINE_LAMBDA __attribute__((always_inline))

namespace scratchnn {
inline namespace CPU_CAPABILITY {

// Numbers are summed in their own precision in blocks, and blocks in double. Where x is large beside its
// deviations, sums of x and x^2 would cancel; so sums run over d = x - shift, the shift being the mean of
// what came before (of the first few numbers at the start). That costs no accuracy, for if the block lies far
// from the shift, the variance of everything together is as large as the sum of d^2.
// Where the mean is small beside the deviations there is nothing to cancel, and the shift is zero: taken from numbers
// of one size, a small shift would round them all by the same amount, which in a mean near zero would be seen.
template <class T>
SCRATCHNN_INLINE T shift_of(T mean, T mean_square) {
  return 2 * mean * mean <= mean_square && mean_square <= std::numeric_limits<T>::max() ? T(0) : mean;
}

// Chan, Golub & LeVeque (1979): the mean and the sum of squared deviations of two groups of numbers together,
// `share` being count_b / (count_a + count_b), and `between` share * count_a.
SCRATCHNN_INLINE void merge(double& mean_a, double& squares_a, double mean_b, double squares_b, double share,
                            double between) {
  const double delta = mean_b - mean_a;
  mean_a += delta * share;
  squares_a += squares_b + delta * delta * between;
}

// How the moments of a block join those of the `before` numbers before it.
struct BlockWeights {
  double inverse, share, between;

  BlockWeights(double before, double count)
      : inverse(1 / count), share(count / (before + count)), between(share * before) {}
};

SCRATCHNN_INLINE void merge_block(double& mean, double& squares, double shift, double deviation, double sum_of_squares,
                                  const BlockWeights& weights) {
  merge(mean, squares, shift + deviation * weights.inverse, sum_of_squares - deviation * deviation * weights.inverse,
        weights.share, weights.between);
}

// y = w (x - mean) r + b, written as (x - centre) scale + offset: the centre is the mean rounded to T, and
// what the rounding took away is in the offset, so that a large mean costs nothing.
template <class T>
struct ForwardLine {
  T centre, scale, offset;

  ForwardLine(double weight, double bias, double mean, double variance, double eps) {
    const double r = 1 / std::sqrt(variance + eps);
    centre = static_cast<T>(mean);
    scale = static_cast<T>(weight * r);
    offset = static_cast<T>(bias + (static_cast<double>(centre) - mean) * weight * r);
  }
};

// dx = r (w g - E[w g] - x_hat E[w g x_hat]), written as g grad_scale + ((x - centre) input_scale + offset).
template <class T>
struct BackwardLine {
  T centre, grad_scale, input_scale, offset;

  BackwardLine(double weight, double mean, double variance, double eps, double mean_wg, double mean_wg_x_hat) {
    const double r = 1 / std::sqrt(variance + eps);
    const double slope = -r * r * mean_wg_x_hat;
    centre = static_cast<T>(mean);
    grad_scale = static_cast<T>(weight * r);
    input_scale = static_cast<T>(slope);
    offset = static_cast<T>(slope * (static_cast<double>(centre) - mean) - r * mean_wg);
  }
};

// The sum of g x_hat, from the sums of g and of g (x - centre).
SCRATCHNN_INLINE double sum_g_x_hat(double sum_g, double sum_g_x, double centre, double mean, double variance,
                                    double eps) {
  return (sum_g_x + (centre - mean) * sum_g) / std::sqrt(variance + eps);
}

// True in the last `count` lanes: in the vector that ends with a run, those that no vector before it covers.
template <class T>
SCRATCHNN_INLINE Vec<IntOf<T>> last_lanes(int64_t count) {
  Vec<IntOf<T>> mask;
  for (int lane = 0; lane < kLanes<T>; ++lane) mask[lane] = lane >= kLanes<T> - count ? -1 : 0;
  return mask;
}

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

// Normalization as one function over index sets, and the fast kernels that compute it.
//
// A normalization subtracts a mean and divides by a standard deviation; its members differ only in which numbers
// share them. The input is samples x groups x channels of a group x pixels, and statistics are shared
//
//     by a group, over the batch     batch norm: groups = C, channels = 1
//     by a group of a sample         group norm; instance norm: groups = C, channels = 1;
//                                    layer norm: groups = 1, a sample is a row
//     by a pixel of a sample         layer norm over the channels of an image: groups = 1
//
// while weight and bias have a number for every channel of every group, always. A kernel sees how memory holds
// the sets: `slices` and `columns` where the numbers of a set come in several runs, long or short, `rows` where a
// set is one run, `strips` where a set lies across the planes of an image.
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

#include "common/dispatch.h"

namespace scratchnn {

enum class Sharing { kBatch, kGroup, kPixel };

struct IndexSets {
  int64_t samples, groups, channels, pixels;
  bool channels_last;  // memory holds samples x pixels x groups x channels
  Sharing sharing;
  bool centred = true;  // false: the mean counts as zero (RMS norm)

  int64_t parameters() const { return groups * channels; }
  int64_t size() const { return samples * parameters() * pixels; }
  int64_t sets() const {
    if (sharing == Sharing::kBatch) return groups;
    return samples * (sharing == Sharing::kGroup ? groups : pixels);
  }
  int64_t count() const { return sets() == 0 ? 0 : size() / sets(); }  // numbers in one set
};

// Numbers in memory as x[batch][outer][set][inner]: those with the same batch and set belong together.
//
//     batch norm, N x C x H x W in memory     batch = 1  outer = N      sets = C  inner = H W
//     batch norm, N x H x W x C in memory     batch = 1  outer = N H W  sets = C  inner = 1
//     group norm, N x H x W x C in memory     batch = N  outer = H W    sets = G  inner = C / G
//
// Weights, biases and statistics are arrays of doubles: there are few of them, and nothing is lost between passes.
// Weights are those of a set, or, with `weight_by_position`, of each inner position of a set.
struct Interleaved {
  int64_t batch, outer, sets, inner;
  bool weight_by_position = false;

  int64_t count() const { return outer * inner; }  // numbers in one set
  int64_t size() const { return outer * sets * inner; }
  int64_t parameters() const { return weight_by_position ? sets * inner : sets; }
};

// Runs at least this long are walked as slices (batch norm) or as runs of one parameter (rows).
constexpr int64_t kShortestSlice = 32;

// S is a type in memory: float, double, or BFloat16 or Half (common/half.h), with which one computes in float.

// What follows the normalization: y = min(max(n + r, low), high), n the normalized number and r a residual, laid out as
// the input. No residual adds nothing, and infinite limits are none.
template <class S>
struct Ending {
  const S* residual = nullptr;
  double low = -std::numeric_limits<double>::infinity();
  double high = std::numeric_limits<double>::infinity();
};

// y = weight x_hat + bias, x_hat = (x - mean) / sqrt(variance + eps), and the ending. Mean and variance (biased) are
// results. Without an output, they are the only ones. The output may be the input, or the residual.
template <class S>
using NormTrain = void(const Interleaved& geometry, const S* input, S* output, const double* weight, const double* bias,
                       double eps, double* mean, double* variance, const Ending<S>& ending);

// The same with mean and variance given.
template <class S>
using NormEval = void(const Interleaved& geometry, const S* input, S* output, const double* weight, const double* bias,
                      double eps, const double* mean, const double* variance, const Ending<S>& ending);

// What the gradient of an ending with limits is taken by: the bias of the normalization, with which n + r is computed
// again, or in its place the output. The gradient of n, and of r, is stored in `passed`, which may be grad_input.
template <class S>
struct Gate {
  const double* bias = nullptr;
  const S* output = nullptr;
  S* passed = nullptr;  // null: no limits, the gradient arrives as it is
};

// What mean and variance are to the input: constants, as in evaluation; its own; or its own, but the mean rounded when
// it was saved, or only a number near it. A rounded mean is measured again, beside the other sums.
enum class Origin { kConstants, kExact, kRounded };

// grad_weight = sum of g x_hat, grad_bias = sum of g, and, r being 1 / sqrt(variance + eps),
// grad_input = r (weight g - E[weight g] - x_hat E[weight g x_hat]) where mean and variance are the input's own,
// grad_input = weight r g where they are constants. Beside a gate they are not rounded.
template <class S>
using NormBackward = void(const Interleaved& geometry, const S* grad, const S* input, S* grad_input,
                          const double* weight, const double* mean, const double* variance, double eps, Origin origin,
                          double* grad_weight, double* grad_bias, const Ending<S>& ending, const Gate<S>& gate);

template <class S>
inline Kernel<NormTrain<S>> norm_train_slices;
template <class S>
inline Kernel<NormTrain<S>> norm_train_columns;
template <class S>
inline Kernel<NormEval<S>> norm_eval_slices;
template <class S>
inline Kernel<NormEval<S>> norm_eval_columns;
template <class S>
inline Kernel<NormBackward<S>> norm_backward_slices;
template <class S>
inline Kernel<NormBackward<S>> norm_backward_columns;

// Each set is one run of `length()` numbers: number i of row r has parameter r % cycle * parameters + i / run.
//
//     layer norm                                  rows = N    cycle = 1  parameters = D      run = 1
//     group norm, N x C x H x W in memory         rows = N G  cycle = G  parameters = C / G  run = H W
//
// There are many rows, so their statistics are kept in T; `mean` is null where it counts as zero.
struct Rows {
  int64_t rows, cycle, parameters, run;

  int64_t length() const { return parameters * run; }
  int64_t all_parameters() const { return cycle * parameters; }
};

// Each set is a pixel with all its channels: x[sample][channel][pixel], with at least kFewestPixels of these.
struct Planes {
  int64_t samples, channels, pixels;
};
constexpr int64_t kFewestPixels = 16;

// What a type in memory is computed in, as Wide is in the kernels (common/half.h).
template <class S>
using Computed = std::conditional_t<std::is_same_v<S, double>, double, float>;

// Weight and bias may be null: ones and zeros. So may be grad_weight and grad_bias, together: not asked for.
template <class Geometry, class S, class T = Computed<S>>
using SetsForward = void(const Geometry& geometry, const S* input, S* output, const T* weight, const T* bias,
                         double eps, T* mean, T* variance);
template <class Geometry, class S, class T = Computed<S>>
using SetsBackward = void(const Geometry& geometry, const S* grad, const S* input, S* grad_input, const T* weight,
                          const T* mean, const T* variance, double eps, double* grad_weight, double* grad_bias);

template <class S>
inline Kernel<SetsForward<Rows, S>> norm_rows;
template <class S>
inline Kernel<SetsBackward<Rows, S>> norm_rows_backward;
template <class S>
inline Kernel<SetsForward<Planes, S>> norm_strips;
template <class S>
inline Kernel<SetsBackward<Planes, S>> norm_strips_backward;

// Local response normalization: y = x s^-beta, where s = k + scale * (the sum of x^2 over the channels from
// `before` before to `after` after one's own, as far as there are any).
struct Window {
  int64_t samples, channels, pixels;
  bool channels_last;
  int64_t before, after;
  double scale, beta, k;
};

template <class T>
inline Kernel<void(const Window& window, const T* input, T* output)> local_response_norm_kernel;
// dx = g s^-beta - 2 scale beta x (the sum of g x s^(-beta - 1) over the channels whose window one is in)
template <class T>
inline Kernel<void(const Window& window, const T* grad, const T* input, T* grad_input)>
    local_response_norm_backward_kernel;

}  // namespace scratchnn

// The fast normalization kernels, over index sets.
//
// A normalization subtracts a mean and divides by a standard deviation; its members differ only in which
// numbers share them. In memory the numbers are x[outer][set][inner], and those with the same `set` belong
// together:
//
//     batch norm, N x C x H x W in memory     outer = N      sets = C   inner = H W
//     batch norm, N x H x W x C in memory     outer = N H W  sets = C   inner = 1
//
// Each kernel exists twice: `slices` where the runs of one set are long, `columns` where they are short.
// Weights, biases and statistics are arrays of `sets` doubles: there are few of them, and nothing is lost
// between passes.
#pragma once

#include <cstdint>

#include "common/dispatch.h"

namespace scratchnn {

struct IndexSets {
  int64_t outer, sets, inner;

  int64_t count() const { return outer * inner; }  // numbers in one set
  int64_t size() const { return outer * sets * inner; }
};

// Runs at least this long are walked as slices.
constexpr int64_t kShortestSlice = 32;

// y = weight x_hat + bias, x_hat = (x - mean) / sqrt(variance + eps). Mean and variance (biased) are results.
template <class T>
using NormTrain = void(const IndexSets& geometry, const T* input, T* output, const double* weight, const double* bias,
                       double eps, double* mean, double* variance);

// The same with mean and variance given.
template <class T>
using NormEval = void(const IndexSets& geometry, const T* input, T* output, const double* weight, const double* bias,
                      double eps, const double* mean, const double* variance);

// grad_weight = sum of g x_hat, grad_bias = sum of g, and, r being 1 / sqrt(variance + eps),
// grad_input = weight r (g - E[g] - x_hat E[g x_hat]) where mean and variance are the input's own (training),
// grad_input = weight r g where they are constants.
template <class T>
using NormBackward = void(const IndexSets& geometry, const T* grad, const T* input, T* grad_input, const double* weight,
                          const double* mean, const double* variance, double eps, bool training, double* grad_weight,
                          double* grad_bias);

template <class T>
inline Kernel<NormTrain<T>> norm_train_slices;
template <class T>
inline Kernel<NormTrain<T>> norm_train_columns;
template <class T>
inline Kernel<NormEval<T>> norm_eval_slices;
template <class T>
inline Kernel<NormEval<T>> norm_eval_columns;
template <class T>
inline Kernel<NormBackward<T>> norm_backward_slices;
template <class T>
inline Kernel<NormBackward<T>> norm_backward_columns;

}  // namespace scratchnn

// The fast kernels of the fully-connected layer. All matrices are row-major without gaps:
// input N x C, weight K x C, grad (dy) N x K. S is what the numbers are in memory: float, double, BFloat16 or Half
// (common/half.h).
#pragma once

#include <cstdint>

#include "common/dispatch.h"

namespace scratchnn {

struct LinearShape {
  int64_t rows;          // N, the batch
  int64_t in_features;   // C
  int64_t out_features;  // K
};

// output[n, k] = bias[k] + sum over c of input[n, c] weight[k, c]; bias may be null.
template <class S>
inline Kernel<void(const LinearShape&, const S* input, const S* weight, const S* bias, S* output)> linear_kernel;

// grad_input[n, c] = sum over k of grad[n, k] weight[k, c]
template <class S>
inline Kernel<void(const LinearShape&, const S* grad, const S* weight, S* grad_input)> linear_input_grad_kernel;

// grad_weight[k, c] = sum over n of grad[n, k] input[n, c]
template <class S>
inline Kernel<void(const LinearShape&, const S* grad, const S* input, S* grad_weight)> linear_weight_grad_kernel;

// The parts of a bilinear layer that are not products of matrices.
//
// output[n * stride] = start + sum over c of a[n, c] b[n, c]
template <class T>
inline Kernel<void(int64_t rows, int64_t columns, const T* a, const T* b, T start, T* output, int64_t stride)>
    row_dots_kernel;

// output[n, c] = factors[n * stride] a[n, c]
template <class T>
inline Kernel<void(int64_t rows, int64_t columns, const T* a, const T* factors, int64_t stride, T* output)>
    scale_rows_kernel;

}  // namespace scratchnn

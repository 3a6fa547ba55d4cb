// The fast convolution kernels: one algorithm a file in conv/cpu, chosen by geometry and type in choice.cpp.
//
// S is what the numbers are in memory: float, double, BFloat16 or Half (common/half.h).
#pragma once

#include "common/dispatch.h"
#include "conv/geometry.h"

namespace scratchnn {

// y from x and w; bias may be null.
template <class S>
using ConvForward =
    Kernel<void(const ConvGeometry&, Images<const S> input, Filters<const S> weight, const S* bias, Images<S> output)>;

// dx from dy, the gradient of y, and w, which is a transposed convolution: it may have a bias. The border counts as
// zeros; add_border_grad (border.h) does the rest.
template <class S>
using ConvInputGrad = Kernel<void(const ConvGeometry&, Images<const S> grad, Filters<const S> weight, const S* bias,
                                  Images<S> grad_input)>;

// dw from dy and x.
template <class S>
using ConvWeightGrad =
    Kernel<void(const ConvGeometry&, Images<const S> grad, Images<const S> input, Filters<S> grad_weight)>;

// Any convolution, as matrix products over blocks of pixels (implicit_gemm.cpp, weight_grad.cpp).
template <class S>
inline ConvForward<S> implicit_gemm_forward;
template <class S>
inline ConvInputGrad<S> implicit_gemm_input_grad;
template <class S>
inline ConvWeightGrad<S> implicit_gemm_weight_grad;

// The same by a processor's unit for matrices, where has_matrix_unit() says that there is one: for bfloat16 only
// (matrix_unit.cpp, matrix_unit_weight_grad.cpp).
template <class S>
inline ConvForward<S> matrix_unit_forward;
template <class S>
inline ConvInputGrad<S> matrix_unit_input_grad;
template <class S>
inline ConvWeightGrad<S> matrix_unit_weight_grad;

// Every channel convolved with a filter of its own: groups = input channels = output channels (depthwise.cpp,
// depthwise_weight_grad.cpp).
template <class S>
inline ConvForward<S> depthwise_forward;
template <class S>
inline ConvInputGrad<S> depthwise_input_grad;
template <class S>
inline ConvWeightGrad<S> depthwise_weight_grad;

// Groups of few channels, several of them in a vector (grouped.cpp, grouped_weight_grad.cpp).
template <class S>
inline ConvForward<S> grouped_forward;
template <class S>
inline ConvInputGrad<S> grouped_input_grad;
template <class S>
inline ConvWeightGrad<S> grouped_weight_grad;

// 3x3 in height and width, stride 1, by Winograd's F(4x4, 3x3) (winograd.cpp, winograd_weight_grad.cpp), where
// choice.cpp says it serves.
template <class S>
inline ConvForward<S> winograd_forward;
template <class S>
inline ConvInputGrad<S> winograd_input_grad;
template <class S>
inline ConvWeightGrad<S> winograd_weight_grad;

// The same of few channels, or of groups of few (winograd_narrow.cpp, winograd_narrow_weight_grad.cpp).
template <class S>
inline ConvForward<S> narrow_winograd_forward;
template <class S>
inline ConvInputGrad<S> narrow_winograd_input_grad;
template <class S>
inline ConvWeightGrad<S> narrow_winograd_weight_grad;

}  // namespace scratchnn

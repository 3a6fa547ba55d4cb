// The fast convolution kernels: one algorithm a file in conv/cpu, chosen by geometry alone in choice.cpp.
#pragma once

#include "common/dispatch.h"
#include "conv/geometry.h"

namespace scratchnn {

// y from x and w; bias may be null.
template <class T>
using ConvForward =
    Kernel<void(const ConvGeometry&, Images<const T> input, Filters<const T> weight, const T* bias, Images<T> output)>;

// dL/dx from dL/dy and w, which is a transposed convolution: it may have a bias. The border counts as zeros;
// add_border_grad (border.h) does the rest.
template <class T>
using ConvInputGrad = Kernel<void(const ConvGeometry&, Images<const T> grad, Filters<const T> weight, const T* bias,
                                  Images<T> grad_input)>;

// dL/dw from dL/dy and x.
template <class T>
using ConvWeightGrad =
    Kernel<void(const ConvGeometry&, Images<const T> grad, Images<const T> input, Filters<T> grad_weight)>;

// Any convolution, as matrix products over blocks of pixels (implicit_gemm.cpp, weight_grad.cpp).
template <class T>
inline ConvForward<T> implicit_gemm_forward;
template <class T>
inline ConvInputGrad<T> implicit_gemm_input_grad;
template <class T>
inline ConvWeightGrad<T> implicit_gemm_weight_grad;

// Every channel convolved with a filter of its own: groups = input channels = output channels (depthwise.cpp,
// depthwise_weight_grad.cpp).
template <class T>
inline ConvForward<T> depthwise_forward;
template <class T>
inline ConvInputGrad<T> depthwise_input_grad;
template <class T>
inline ConvWeightGrad<T> depthwise_weight_grad;

// 3x3 of stride 1, by Winograd's F(4x4, 3x3) (winograd.cpp, winograd_weight_grad.cpp), where choice.cpp says
// it serves.
template <class T>
inline ConvForward<T> winograd_forward;
template <class T>
inline ConvInputGrad<T> winograd_input_grad;
template <class T>
inline ConvWeightGrad<T> winograd_weight_grad;

}  // namespace scratchnn

// Everything that can be wrong with the arguments of a convolution, in torch's words and with the numbers.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>

#include "conv/geometry.h"

namespace scratchnn {

// The numbers of a convolution beside its tensors. `padding` has the amounts before and after each dimension in turn;
// a negative amount leaves out pixels of the image.
struct Window {
  at::IntArrayRef stride, padding, dilation;
  int64_t groups;
  std::string_view padding_mode;  // zeros, reflect, replicate, circular
};

// Of the convolution of an input with a weight; sizes are N x C x spatial.
ConvGeometry conv_geometry(at::IntArrayRef input, at::IntArrayRef weight, const Window& window);

// Of the convolution that gives `input` back from an output of `output_size`, which is what a transposed convolution
// is the transpose of.
ConvGeometry conv_transpose_geometry(at::IntArrayRef input, at::IntArrayRef weight, at::IntArrayRef output_size,
                                     const Window& window);

// The bias, if any, has one number for each output channel, of the input's type.
void check_bias(const std::optional<at::Tensor>& bias, const at::Tensor& input, const at::Tensor& weight,
                int64_t channels);

// N x C x spatial sizes of `rank` dimensions.
at::DimVector sizes_of(int64_t outer, int64_t inner, const Extent& extent, int64_t rank);

}  // namespace scratchnn

// A complex convolution as a real one of twice the channels: real and imaginary part of a channel, side by side.
//
//     (wr + i wi) (xr + i xi) = (wr xr - wi xi) + i (wi xr + wr xi)
//
// so each complex weight becomes the 2x2 block [[wr, -wi], [wi, wr]]. Groups stay groups, and channels_last numbers
// are used where they are.
#pragma once

#include <ATen/core/Tensor.h>

namespace scratchnn {

// N x C x ... complex -> N x 2C x ... real.
at::Tensor real_channels(const at::Tensor& images);
// N x 2C x ... real -> N x C x ... complex, in the given layout.
at::Tensor complex_channels(const at::Tensor& images, at::MemoryFormat format);

// K x C x ... complex -> 2K x 2C x ... real, as the convolution needs it, or (`transposed`) the transposed convolution,
// which sums over K: there the block is turned.
at::Tensor real_filters(const at::Tensor& weight, bool transposed);
// The weight gradient: of each 2x2 block of products of real and imaginary parts, the complex product.
at::Tensor complex_filters(const at::Tensor& products, at::MemoryFormat format);

// C complex -> 2C real.
at::Tensor real_bias(const at::Tensor& bias);

}  // namespace scratchnn

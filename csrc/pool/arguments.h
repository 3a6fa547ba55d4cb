// What the pooling operators share: the checks of their arguments, and their new tensors.
#pragma once

#include <ATen/core/DimVector.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <vector>

#include "common/tensors.h"
#include "pool/relation.h"

namespace scratchnn {

// Checks every argument of sliding windows, with torch's conditions.
Window check_window(const char* name, at::IntArrayRef kernel, at::IntArrayRef stride, at::IntArrayRef padding,
                    at::IntArrayRef dilation);

// The output size of sliding windows: the rule of every such layer, and in ceil mode one window more where
// that covers what is left over, provided it starts inside the input or its left padding.
Extent pooled_size(const char* name, const PoolShape& shape, const Window& window, bool ceil_mode);

inline void check_rank(const char* name, const char* what, at::IntArrayRef sizes) {
  TORCH_CHECK(!sizes.empty() && sizes.size() <= kSpatialRank, name, ": expected ", what,
              " for 1 to 3 dimensions, but got ", sizes);
}

inline PoolShape check_input(const char* name, const at::Tensor& input, int64_t rank) {
  TORCH_CHECK(input.dim() == rank + 2, name, ": expected input of ", rank + 2, " dimensions (batch, channels, and ",
              rank, " spatial), but got ", input.sizes());
  PoolShape shape{};
  shape.images = input.size(0);
  shape.channels = input.size(1);
  shape.channels_last = is_channels_last(memory_format(input));
  shape.input = spatial_extent(input.sizes().slice(2), 1);
  return shape;
}

inline void check_output_size(const char* name, const PoolShape& shape) {
  TORCH_CHECK(shape.output[0] >= 0 && shape.output[1] >= 0 && shape.output[2] >= 0, name,
              ": elements of output_size must be greater than or equal to 0, but got ", at::IntArrayRef(shape.output));
}

inline at::MemoryFormat format_of(int64_t rank, bool channels_last) {
  if (!channels_last) return at::MemoryFormat::Contiguous;
  return rank == 3 ? at::MemoryFormat::ChannelsLast3d : at::MemoryFormat::ChannelsLast;
}

// New tensors of a batch of images: `size` gives the spatial dimensions, the last `rank` of which exist.
inline at::Tensor empty_images(const PoolShape& shape, const Extent& size, int64_t rank, at::TensorOptions options) {
  at::DimVector sizes{shape.images, shape.channels};
  sizes.append(size.end() - rank, size.end());
  return at::empty(sizes, options.memory_format(format_of(rank, shape.channels_last)));
}

inline at::Tensor in_format(const at::Tensor& tensor, bool channels_last) {
  return tensor.contiguous(format_of(tensor.dim() - 2, channels_last));
}

}  // namespace scratchnn

#include "pool/arguments.h"

namespace scratchnn {

Window check_window(const char* name, at::IntArrayRef kernel, at::IntArrayRef stride, at::IntArrayRef padding,
                    at::IntArrayRef dilation) {
  const size_t rank = kernel.size();
  check_rank(name, "kernel_size", kernel);
  TORCH_CHECK(stride.size() == rank && padding.size() == rank && dilation.size() == rank, name,
              ": expected kernel_size, stride, padding and dilation of one length, but got ", kernel, ", ", stride,
              ", ", padding, " and ", dilation);
  for (size_t i = 0; i < rank; ++i) {
    TORCH_CHECK(kernel[i] > 0, name, ": kernel_size should be greater than zero, but got ", kernel);
    TORCH_CHECK(stride[i] > 0, name, ": stride should be greater than zero, but got ", stride);
    TORCH_CHECK(padding[i] >= 0, name, ": padding must be non-negative, but got ", padding);
    TORCH_CHECK(dilation[i] > 0, name, ": dilation should be greater than zero, but got ", dilation);
    TORCH_CHECK(padding[i] <= kernel[i] / 2, name, ": padding should be at most half of kernel_size, but got padding ",
                padding, " and kernel_size ", kernel);
  }
  return {spatial_extent(kernel, 1), spatial_extent(stride, 1), spatial_extent(padding, 0),
          spatial_extent(dilation, 1)};
}

Extent pooled_size(const char* name, const PoolShape& shape, const Window& window, bool ceil_mode) {
  Extent output;
  for (int dim = 0; dim < kSpatialRank; ++dim) {
    const int64_t size = shape.input[dim], padding = window.padding[dim], stride = window.stride[dim];
    const int64_t rounding = ceil_mode ? stride - 1 : 0;
    output[dim] = output_size(size, window.kernel[dim], 2 * padding + rounding, stride, window.dilation[dim]);
    if (ceil_mode && (output[dim] - 1) * stride >= size + padding) --output[dim];
  }
  TORCH_CHECK(shape.channels > 0 && volume(shape.input) > 0, name,
              ": expected input with non-empty channels and spatial dimensions, but got ", shape.channels,
              " channels of size ", at::IntArrayRef(shape.input));
  TORCH_CHECK(output[0] > 0 && output[1] > 0 && output[2] > 0, name, ": given input size ",
              at::IntArrayRef(shape.input), " the calculated output size is ", at::IntArrayRef(output),
              ", which is too small");
  return output;
}

}  // namespace scratchnn

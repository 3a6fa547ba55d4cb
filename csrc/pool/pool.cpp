// The pooling operators on the CPU: check, allocate, choose a kernel.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <limits>
#include <optional>

#include "common/tensors.h"
#include "pool/kernels.h"
#include "pool/naive.h"
#include "pool/relation.h"

namespace scratchnn {
namespace {

constexpr int64_t kByteTaps = 256;  // windows of up to this many taps have their offsets stored in bytes

// Checks every argument of sliding windows, with torch's conditions.
Window check_window(const char* name, at::IntArrayRef kernel, at::IntArrayRef stride, at::IntArrayRef padding,
                    at::IntArrayRef dilation) {
  const size_t rank = kernel.size();
  TORCH_CHECK(rank >= 1 && rank <= kSpatialRank, name, ": expected kernel_size for 1 to 3 dimensions, but got ",
              kernel);
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

PoolShape check_input(const char* name, const at::Tensor& input, int64_t rank) {
  TORCH_CHECK(input.dim() == rank + 2, name, ": expected input of ", rank + 2, " dimensions (batch, channels, and ",
              rank, " spatial), but got ", input.sizes());
  PoolShape shape{};
  shape.images = input.size(0);
  shape.channels = input.size(1);
  shape.channels_last = is_channels_last(memory_format(input));
  shape.input = spatial_extent(input.sizes().slice(2), 1);
  return shape;
}

// The output size of sliding windows: the rule of every such layer, and in ceil mode one window more where
// that covers what is left over, provided it starts inside the input or its left padding.
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

// New tensors of a batch of images: `size` gives the spatial dimensions, the last `rank` of which exist.
at::Tensor empty_images(const PoolShape& shape, const Extent& size, int64_t rank, at::TensorOptions options) {
  std::vector<int64_t> sizes{shape.images, shape.channels};
  sizes.insert(sizes.end(), size.end() - rank, size.end());
  auto format = at::MemoryFormat::Contiguous;
  if (shape.channels_last) format = rank == 3 ? at::MemoryFormat::ChannelsLast3d : at::MemoryFormat::ChannelsLast;
  return at::empty(sizes, options.memory_format(format));
}

at::Tensor in_format(const at::Tensor& tensor, bool channels_last) {
  auto format = at::MemoryFormat::Contiguous;
  if (channels_last) {
    format = tensor.dim() == 5 ? at::MemoryFormat::ChannelsLast3d : at::MemoryFormat::ChannelsLast;
  }
  return tensor.contiguous(format);
}

at::ScalarType offset_type(const char* name, const Window& window) {
  const int64_t taps = volume(window.kernel);
  TORCH_CHECK(taps <= std::numeric_limits<int32_t>::max(), name, ": windows of ", taps,
              " taps are too large to keep track of");
  return taps <= kByteTaps ? at::kByte : at::kInt;
}

void check_offsets(const char* name, const at::Tensor& offsets, const Window& window) {
  TORCH_CHECK(offsets.scalar_type() == offset_type(name, window), name, ": expected offsets of dtype ",
              offset_type(name, window), ", but got ", offsets.scalar_type());
}

// Calls body(T(), Offset()) with the types of the kernel.
template <class Body>
void with_types(const at::Tensor& tensor, at::ScalarType offset, const Body& body) {
  with_fast_type(tensor, [&](auto value) {
    if (offset == at::kByte) {
      body(value, uint8_t());
    } else {
      body(value, int32_t());
    }
  });
}

at::Tensor run_max_pool(const at::Tensor& input, at::IntArrayRef kernel, at::IntArrayRef stride,
                        at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode, at::Tensor* offsets) {
  constexpr auto name = "max_pool";
  const Window window = check_window(name, kernel, stride, padding, dilation);
  const auto rank = static_cast<int64_t>(kernel.size());
  PoolShape shape = check_input(name, input, rank);
  shape.output = pooled_size(name, shape, window, ceil_mode);
  const at::Tensor x = in_format(input, shape.channels_last);
  const at::Tensor y = empty_images(shape, shape.output, rank, x.options());
  if (offsets != nullptr) {
    *offsets = empty_images(shape, shape.output, rank, x.options().dtype(offset_type(name, window)));
  }
  if (y.numel() == 0) return y;
  if (use_fast_kernels(x)) {
    const RelationTables forward = RelationTables::forward(shape, window);
    with_types(x, offsets != nullptr ? offsets->scalar_type() : at::kByte, [&](auto value, auto offset) {
      using T = decltype(value);
      using Offset = decltype(offset);
      max_pool_kernel<T, Offset>(x.const_data_ptr<T>(), y.data_ptr<T>(),
                                 offsets != nullptr ? offsets->data_ptr<Offset>() : nullptr, forward.view());
    });
  } else {
    naive::max_pool(x, y, offsets != nullptr ? *offsets : at::Tensor(), shape, window);
  }
  return y;
}

at::Tensor max_pool(const at::Tensor& input, at::IntArrayRef kernel, at::IntArrayRef stride, at::IntArrayRef padding,
                    at::IntArrayRef dilation, bool ceil_mode) {
  return run_max_pool(input, kernel, stride, padding, dilation, ceil_mode, nullptr);
}

std::tuple<at::Tensor, at::Tensor> max_pool_with_offsets(const at::Tensor& input, at::IntArrayRef kernel,
                                                         at::IntArrayRef stride, at::IntArrayRef padding,
                                                         at::IntArrayRef dilation, bool ceil_mode) {
  at::Tensor offsets;
  at::Tensor output = run_max_pool(input, kernel, stride, padding, dilation, ceil_mode, &offsets);
  return {output, offsets};
}

// The shape of a pooling whose offsets are known, for an input of spatial size `size`.
PoolShape shape_of_offsets(const char* name, const at::Tensor& offsets, at::IntArrayRef size, const Window& window,
                           int64_t rank) {
  check_offsets(name, offsets, window);
  PoolShape shape = check_input(name, offsets, rank);
  TORCH_CHECK(static_cast<int64_t>(size.size()) == rank, name, ": expected ", rank, " input sizes, but got ", size);
  shape.output = shape.input;
  shape.input = spatial_extent(size, 1);
  return shape;
}

at::Tensor max_pool_backward(const at::Tensor& grad, const at::Tensor& offsets, at::IntArrayRef size,
                             at::IntArrayRef kernel, at::IntArrayRef stride, at::IntArrayRef padding,
                             at::IntArrayRef dilation) {
  constexpr auto name = "max_pool_backward";
  const Window window = check_window(name, kernel, stride, padding, dilation);
  const auto rank = static_cast<int64_t>(kernel.size());
  const PoolShape shape = shape_of_offsets(name, offsets, size, window, rank);
  TORCH_CHECK(grad.sizes() == offsets.sizes(), name, ": expected grad of shape ", offsets.sizes(), ", but got ",
              grad.sizes());
  const at::Tensor taps = in_format(offsets, shape.channels_last);
  const at::Tensor dy = in_format(grad, shape.channels_last);
  const at::Tensor dx = empty_images(shape, shape.input, rank, dy.options());
  if (dx.numel() == 0) return dx;
  if (use_fast_kernels(dy)) {
    const RelationTables backward = RelationTables::backward(shape, window);
    with_types(dy, taps.scalar_type(), [&](auto value, auto offset) {
      using T = decltype(value);
      using Offset = decltype(offset);
      max_pool_backward_kernel<T, Offset>(dy.const_data_ptr<T>(), taps.const_data_ptr<Offset>(), dx.data_ptr<T>(),
                                          shape, window, backward.view());
    });
  } else {
    naive::max_pool_backward(dy, taps, dx, shape, window);
  }
  return dx;
}

at::Tensor max_pool_gather(const at::Tensor& input, const at::Tensor& offsets, at::IntArrayRef kernel,
                           at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation) {
  constexpr auto name = "max_pool_gather";
  const Window window = check_window(name, kernel, stride, padding, dilation);
  const auto rank = static_cast<int64_t>(kernel.size());
  TORCH_CHECK(input.dim() == rank + 2 && offsets.dim() == rank + 2 && input.size(0) == offsets.size(0) &&
                  input.size(1) == offsets.size(1),
              name, ": expected input and offsets of the same batch and channels, but got ", input.sizes(), " and ",
              offsets.sizes());
  const PoolShape shape = shape_of_offsets(name, offsets, input.sizes().slice(2), window, rank);
  const at::Tensor x = in_format(input, shape.channels_last);
  const at::Tensor y = empty_images(shape, shape.output, rank, x.options());
  if (y.numel() == 0) return y;
  naive::max_pool_gather(x, in_format(offsets, shape.channels_last), y, shape, window);
  return y;
}

at::Tensor max_pool_indices(const at::Tensor& offsets, at::IntArrayRef size, at::IntArrayRef kernel,
                            at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation) {
  constexpr auto name = "max_pool_indices";
  const Window window = check_window(name, kernel, stride, padding, dilation);
  const auto rank = static_cast<int64_t>(kernel.size());
  const PoolShape shape = shape_of_offsets(name, offsets, size, window, rank);
  const at::Tensor indices = empty_images(shape, shape.output, rank, offsets.options().dtype(at::kLong));
  naive::max_pool_indices(in_format(offsets, shape.channels_last), indices, shape, window);
  return indices;
}

at::Tensor run_average(const at::Tensor& input, const PoolShape& shape, const Spans& spans, int64_t rank) {
  const at::Tensor x = in_format(input, shape.channels_last);
  const at::Tensor y = empty_images(shape, shape.output, rank, x.options());
  if (y.numel() == 0) return y;
  if (use_fast_kernels(x)) {
    const RelationTables forward = RelationTables::forward(shape, spans);
    with_fast_type(x, [&](auto value) {
      using T = decltype(value);
      average_kernel<T>(x.const_data_ptr<T>(), y.data_ptr<T>(), forward.view());
    });
  } else {
    naive::average(x, y, shape, spans);
  }
  return y;
}

at::Tensor run_average_backward(const at::Tensor& grad, const PoolShape& shape, const Spans& spans, int64_t rank) {
  const at::Tensor dy = in_format(grad, shape.channels_last);
  const at::Tensor dx = empty_images(shape, shape.input, rank, dy.options());
  if (dx.numel() == 0) return dx;
  if (use_fast_kernels(dy)) {
    const RelationTables backward = RelationTables::backward(shape, spans);
    with_fast_type(dy, [&](auto value) {
      using T = decltype(value);
      average_backward_kernel<T>(dy.const_data_ptr<T>(), dx.data_ptr<T>(), backward.view());
    });
  } else {
    naive::average_backward(dy, dx, shape, spans);
  }
  return dx;
}

// The windows of avg_pool: clipped to the input, and divided by divisor_override, or else by the number of
// positions they cover with padding (but not what ceil mode hangs over beyond it) or without.
Spans sliding_spans(const PoolShape& shape, const Window& window, bool count_include_pad,
                    std::optional<int64_t> divisor_override) {
  Spans spans;
  for (int dim = 0; dim < kSpatialRank; ++dim) {
    const int64_t size = shape.input[dim], padding = window.padding[dim];
    for (int64_t o = 0; o < shape.output[dim]; ++o) {
      const int64_t start = o * window.stride[dim] - padding;
      const int64_t end = std::min(start + window.kernel[dim], size + padding);
      Span span{std::max<int64_t>(start, 0), std::min(end, size), end - start};
      if (!count_include_pad) span.divisor = span.end - span.begin;
      if (divisor_override.has_value()) span.divisor = dim == 0 ? *divisor_override : 1;
      spans[dim].push_back(span);
    }
  }
  return spans;
}

// The windows of adaptive pooling: output o of O covers inputs floor(o I / O) to ceil((o + 1) I / O).
Spans adaptive_spans(const PoolShape& shape) {
  Spans spans;
  for (int dim = 0; dim < kSpatialRank; ++dim) {
    const int64_t in = shape.input[dim], out = shape.output[dim];
    for (int64_t o = 0; o < out; ++o) {
      // o in / out, without overflow.
      const int64_t begin = o / out * in + o % out * in / out;
      const int64_t end = 1 + ((o + 1) * in - 1) / out;
      spans[dim].push_back({begin, end, end - begin});
    }
  }
  return spans;
}

void check_divisor(const char* name, std::optional<int64_t> divisor_override) {
  TORCH_CHECK(!divisor_override.has_value() || *divisor_override != 0, name,
              ": divisor_override must not be zero, but got 0");
}

at::Tensor avg_pool(const at::Tensor& input, at::IntArrayRef kernel, at::IntArrayRef stride, at::IntArrayRef padding,
                    bool ceil_mode, bool count_include_pad, std::optional<int64_t> divisor_override) {
  constexpr auto name = "avg_pool";
  const std::vector<int64_t> dilation(kernel.size(), 1);
  const Window window = check_window(name, kernel, stride, padding, dilation);
  check_divisor(name, divisor_override);
  const auto rank = static_cast<int64_t>(kernel.size());
  PoolShape shape = check_input(name, input, rank);
  shape.output = pooled_size(name, shape, window, ceil_mode);
  return run_average(input, shape, sliding_spans(shape, window, count_include_pad, divisor_override), rank);
}

// grad's shape, to which the input's spatial sizes are added.
PoolShape shape_of_grad(const char* name, const at::Tensor& grad, at::IntArrayRef size, bool channels_last) {
  const auto rank = static_cast<int64_t>(size.size());
  TORCH_CHECK(rank >= 1 && rank <= kSpatialRank, name, ": expected 1 to 3 input sizes, but got ", size);
  PoolShape shape = check_input(name, grad, rank);
  shape.channels_last = channels_last && rank > 1;
  shape.output = shape.input;
  shape.input = spatial_extent(size, 1);
  return shape;
}

at::Tensor avg_pool_backward(const at::Tensor& grad, at::IntArrayRef size, at::IntArrayRef kernel,
                             at::IntArrayRef stride, at::IntArrayRef padding, bool ceil_mode, bool count_include_pad,
                             std::optional<int64_t> divisor_override, bool channels_last) {
  constexpr auto name = "avg_pool_backward";
  const std::vector<int64_t> dilation(kernel.size(), 1);
  const Window window = check_window(name, kernel, stride, padding, dilation);
  check_divisor(name, divisor_override);
  TORCH_CHECK(size.size() == kernel.size(), name, ": expected ", kernel.size(), " input sizes, but got ", size);
  const PoolShape shape = shape_of_grad(name, grad, size, channels_last);
  TORCH_CHECK(shape.output == pooled_size(name, shape, window, ceil_mode), name, ": expected grad of spatial size ",
              at::IntArrayRef(pooled_size(name, shape, window, ceil_mode)), ", but got ", grad.sizes());
  return run_average_backward(grad, shape, sliding_spans(shape, window, count_include_pad, divisor_override),
                              size.size());
}

void check_adaptive(const char* name, const PoolShape& shape) {
  TORCH_CHECK(shape.output[0] >= 0 && shape.output[1] >= 0 && shape.output[2] >= 0, name,
              ": elements of output_size must be greater than or equal to 0, but got ", at::IntArrayRef(shape.output));
  TORCH_CHECK(volume(shape.input) > 0, name, ": expected input with non-empty spatial dimensions, but got size ",
              at::IntArrayRef(shape.input));
}

at::Tensor adaptive_avg_pool(const at::Tensor& input, at::IntArrayRef output_size) {
  constexpr auto name = "adaptive_avg_pool";
  const auto rank = static_cast<int64_t>(output_size.size());
  TORCH_CHECK(rank >= 1 && rank <= kSpatialRank, name, ": expected 1 to 3 output sizes, but got ", output_size);
  TORCH_CHECK_NOT_IMPLEMENTED(input.is_floating_point(), name, ": not implemented for ", input.scalar_type(),
                              " tensors");
  PoolShape shape = check_input(name, input, rank);
  shape.output = spatial_extent(output_size, 1);
  check_adaptive(name, shape);
  return run_average(input, shape, adaptive_spans(shape), rank);
}

at::Tensor adaptive_avg_pool_backward(const at::Tensor& grad, at::IntArrayRef size, bool channels_last) {
  constexpr auto name = "adaptive_avg_pool_backward";
  const PoolShape shape = shape_of_grad(name, grad, size, channels_last);
  check_adaptive(name, shape);
  return run_average_backward(grad, shape, adaptive_spans(shape), size.size());
}

}  // namespace

TORCH_LIBRARY_IMPL(scratchnn, CPU, library) {
  library.impl("max_pool", max_pool);
  library.impl("max_pool_with_offsets", max_pool_with_offsets);
  library.impl("max_pool_backward", max_pool_backward);
  library.impl("max_pool_gather", max_pool_gather);
  library.impl("max_pool_indices", max_pool_indices);
  library.impl("avg_pool", avg_pool);
  library.impl("avg_pool_backward", avg_pool_backward);
  library.impl("adaptive_avg_pool", adaptive_avg_pool);
  library.impl("adaptive_avg_pool_backward", adaptive_avg_pool_backward);
}

}  // namespace scratchnn

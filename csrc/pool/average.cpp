// The average pooling operators on the CPU: check, allocate, choose a kernel.
#include <torch/library.h>

#include <limits>
#include <optional>

#include "pool/arguments.h"
#include "pool/kernels.h"
#include "pool/naive.h"

namespace scratchnn {
namespace {

at::Tensor run_average(const at::Tensor& input, const PoolShape& shape, const Spans& spans, const EvenColumns& columns,
                       int64_t rank) {
  const at::Tensor x = in_format(input, shape.channels_last);
  const at::Tensor y = empty_images(shape, shape.output, rank, x.options());
  if (y.numel() == 0) return y;
  if (volume(shape.input) == 0) return y.fill_(std::numeric_limits<double>::quiet_NaN());
  if (use_vector_kernels(x)) {
    const RelationTables forward = RelationTables::forward(shape, spans, columns);
    with_memory_type(x, [&](auto type) {
      using S = typename decltype(type)::type;
      average_kernel<S>(read_pointer<S>(x), write_pointer<S>(y), forward.view());
    });
  } else {
    naive::average(x, y, shape, spans);
  }
  return y;
}

at::Tensor run_average_backward(const at::Tensor& grad, const PoolShape& shape, const Spans& spans,
                                const EvenColumns& columns, int64_t rank) {
  const at::Tensor dy = in_format(grad, shape.channels_last);
  const at::Tensor dx = empty_images(shape, shape.input, rank, dy.options());
  if (dx.numel() == 0) return dx;
  if (dy.numel() == 0) return dx.zero_();
  if (use_vector_kernels(dy)) {
    const RelationTables backward = RelationTables::backward(shape, spans, columns);
    with_memory_type(dy, [&](auto type) {
      using S = typename decltype(type)::type;
      average_backward_kernel<S>(read_pointer<S>(dy), write_pointer<S>(dx), backward.view());
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
    spans[dim].reserve(shape.output[dim]);
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

EvenColumns sliding_columns(const Window& window) {
  return {window.kernel[2], window.stride[2], 1, window.padding[2]};
}
EvenColumns adaptive_columns(const PoolShape& shape) {
  const int64_t in = shape.input[2], out = shape.output[2];
  return out > 0 && in % out == 0 ? EvenColumns{in / out, in / out, 1, 0} : EvenColumns{};
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
  TORCH_CHECK_NOT_IMPLEMENTED(input.is_floating_point() || input.scalar_type() == at::kLong, name,
                              ": not implemented for ", input.scalar_type(), " tensors");
  const auto rank = static_cast<int64_t>(kernel.size());
  PoolShape shape = check_input(name, input, rank);
  // Of volumes, and of no others, torch demands more than that there is an output.
  TORCH_CHECK(rank < 3 || (shape.input[0] >= kernel[0] && shape.input[1] >= kernel[1] && shape.input[2] >= kernel[2]),
              name, ": expected input of at least kernel_size ", kernel, ", but got ", input.sizes());
  shape.output = pooled_size(name, shape, window, ceil_mode);
  return run_average(input, shape, sliding_spans(shape, window, count_include_pad, divisor_override),
                     sliding_columns(window), rank);
}

// grad's shape, to which the input's spatial sizes are added.
PoolShape shape_of_grad(const char* name, const at::Tensor& grad, at::IntArrayRef size, bool channels_last) {
  const auto rank = static_cast<int64_t>(size.size());
  check_rank(name, "input sizes", size);
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
                              sliding_columns(window), size.size());
}

void check_adaptive(const char* name, const PoolShape& shape) {
  check_output_size(name, shape);
  // The mean of nothing is NaN; other windows of nothing have no place.
  TORCH_CHECK(volume(shape.input) > 0 || shape.output == Extent({1, 1, 1}), name,
              ": expected input with non-empty spatial dimensions, but got size ", at::IntArrayRef(shape.input));
}

at::Tensor adaptive_avg_pool(const at::Tensor& input, at::IntArrayRef output_size) {
  constexpr auto name = "adaptive_avg_pool";
  check_rank(name, "output_size", output_size);
  TORCH_CHECK_NOT_IMPLEMENTED(input.is_floating_point(), name, ": not implemented for ", input.scalar_type(),
                              " tensors");
  const auto rank = static_cast<int64_t>(output_size.size());
  PoolShape shape = check_input(name, input, rank);
  shape.output = spatial_extent(output_size, 1);
  check_adaptive(name, shape);
  return run_average(input, shape, adaptive_spans(shape), adaptive_columns(shape), rank);
}

at::Tensor adaptive_avg_pool_backward(const at::Tensor& grad, at::IntArrayRef size, bool channels_last) {
  constexpr auto name = "adaptive_avg_pool_backward";
  const PoolShape shape = shape_of_grad(name, grad, size, channels_last);
  check_adaptive(name, shape);
  return run_average_backward(grad, shape, adaptive_spans(shape), adaptive_columns(shape), size.size());
}

}  // namespace

TORCH_LIBRARY_IMPL(scratchnn, CPU, library) {
  library.impl("avg_pool", avg_pool);
  library.impl("avg_pool_backward", avg_pool_backward);
  library.impl("adaptive_avg_pool", adaptive_avg_pool);
  library.impl("adaptive_avg_pool_backward", adaptive_avg_pool_backward);
}

}  // namespace scratchnn

// The max pooling operators on the CPU, for the windows of all three kinds: check, allocate, choose a kernel.
//
// Sliding, adaptive and fractional pooling differ in where their windows lie, and in nothing else.
#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <cmath>
#include <limits>

#include "pool/arguments.h"
#include "pool/chosen.h"
#include "pool/kernels.h"
#include "pool/naive.h"

namespace scratchnn {
namespace {

constexpr int64_t kByteTaps = 256;  // windows of up to this many taps have their offsets stored in bytes

at::ScalarType offset_type(const char* name, const Extent& taps) {
  TORCH_CHECK(volume(taps) <= std::numeric_limits<int32_t>::max(), name, ": windows of ", volume(taps),
              " taps are too large to keep track of");
  return volume(taps) <= kByteTaps ? at::kByte : at::kInt;
}

// A pooling of any kind: its shape, its windows, and whether all planes have the same.
struct Pooling {
  const char* name;
  PoolShape shape;
  int64_t rank;
  WindowTables windows;
};

// Calls body(MemoryType of the tensor's numbers, Offset()) with the types of the kernel.
template <class Body>
void with_types(const at::Tensor& tensor, at::ScalarType offset, const Body& body) {
  with_memory_type(tensor, [&](auto type) {
    if (offset == at::kByte) {
      body(type, uint8_t());
    } else {
      body(type, int32_t());
    }
  });
}

struct Maxima {
  at::Tensor output, offsets;  // the offsets are undefined where nobody asked for them
};

Maxima run_max(const at::Tensor& input, Pooling pooling, bool with_offsets) {
  const PlaneWindows windows = pooling.windows.view();
  const PoolShape& shape = pooling.shape;
  const at::Tensor x = in_format(input, shape.channels_last);
  const at::Tensor y = empty_images(shape, shape.output, pooling.rank, x.options());
  const at::ScalarType offset_dtype = offset_type(pooling.name, pooling.windows.taps());
  at::Tensor offsets;
  if (with_offsets) offsets = empty_images(shape, shape.output, pooling.rank, x.options().dtype(offset_dtype));
  if (y.numel() == 0) return {y, offsets};
  if (use_vector_kernels(x) && windows.same) {
    const RelationTables forward = RelationTables::forward(shape, windows.of(0));
    with_types(x, offset_dtype, [&](auto type, auto offset) {
      using S = typename decltype(type)::type;
      using Offset = decltype(offset);
      max_pool_kernel<S, Offset>(read_pointer<S>(x), write_pointer<S>(y),
                                 with_offsets ? offsets.data_ptr<Offset>() : nullptr, forward.view());
    });
  } else {
    naive::max_pool(x, y, offsets, shape, windows);
  }
  return {y, offsets};
}

void check_offsets(const at::Tensor& offsets, const Pooling& pooling) {
  const at::ScalarType type = offset_type(pooling.name, pooling.windows.taps());
  TORCH_CHECK(offsets.scalar_type() == type, pooling.name, ": expected offsets of dtype ", type, ", but got ",
              offsets.scalar_type());
}

at::Tensor run_max_backward(const at::Tensor& grad, const at::Tensor& offsets, Pooling pooling) {
  check_offsets(offsets, pooling);
  TORCH_CHECK(grad.sizes() == offsets.sizes(), pooling.name, ": expected grad of shape ", offsets.sizes(), ", but got ",
              grad.sizes());
  const PoolShape& shape = pooling.shape;
  const PlaneWindows windows = pooling.windows.view();
  const bool gathered = windows.same && grad.numel() > 0 && is_gathered(shape, windows.of(0));
  if (is_widened(grad) && !gathered) {
    return run_max_backward(grad.to(at::kFloat), offsets, std::move(pooling)).to(grad.scalar_type());
  }
  const at::Tensor taps = in_format(offsets, shape.channels_last);
  const at::Tensor dy = in_format(grad, shape.channels_last);
  const at::Tensor dx = empty_images(shape, shape.input, pooling.rank, dy.options());
  if (dx.numel() == 0) return dx;
  if (dy.numel() == 0) return dx.zero_();
  if (!use_vector_kernels(dy)) {
    naive::max_pool_backward(dy, taps, dx, shape, windows);
  } else if (gathered) {
    const RelationTables backward = RelationTables::backward(shape, windows.of(0));
    with_types(dy, taps.scalar_type(), [&](auto type, auto offset) {
      using S = typename decltype(type)::type;
      using Offset = decltype(offset);
      max_pool_backward_kernel<S, Offset>(read_pointer<S>(dy), taps.const_data_ptr<Offset>(), write_pointer<S>(dx),
                                          backward.view());
    });
  } else {
    with_fast_type(dy, [&](auto value) {
      using T = decltype(value);
      const auto scatter = [&](const auto* chosen) {
        scatter_gradients(dy.const_data_ptr<T>(), chosen, dx.data_ptr<T>(), shape, windows);
      };
      taps.scalar_type() == at::kByte ? scatter(taps.const_data_ptr<uint8_t>())
                                      : scatter(taps.const_data_ptr<int32_t>());
    });
  }
  return dx;
}

at::Tensor run_gather(const at::Tensor& input, const at::Tensor& offsets, Pooling pooling) {
  check_offsets(offsets, pooling);
  const PoolShape& shape = pooling.shape;
  const PlaneWindows windows = pooling.windows.view();
  const at::Tensor taps = in_format(offsets, shape.channels_last);
  const at::Tensor x = in_format(input, shape.channels_last);
  const at::Tensor y = empty_images(shape, shape.output, pooling.rank, x.options());
  if (y.numel() == 0) return y;
  if (naive_kernels_requested()) {
    naive::max_pool_gather(x, taps, y, shape, windows);
    return y;
  }
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "max_pool_gather", [&] {
    const auto* from = x.const_data_ptr<scalar_t>();
    if (taps.scalar_type() == at::kByte) {
      gather_chosen(from, taps.const_data_ptr<uint8_t>(), y.data_ptr<scalar_t>(), shape, windows);
    } else {
      gather_chosen(from, taps.const_data_ptr<int32_t>(), y.data_ptr<scalar_t>(), shape, windows);
    }
  });
  return y;
}

at::Tensor run_indices(const at::Tensor& offsets, Pooling pooling) {
  check_offsets(offsets, pooling);
  const PoolShape& shape = pooling.shape;
  const PlaneWindows windows = pooling.windows.view();
  const at::Tensor taps = in_format(offsets, shape.channels_last);
  const at::Tensor indices = empty_images(shape, shape.output, pooling.rank, taps.options().dtype(at::kLong));
  if (indices.numel() == 0) return indices;
  if (naive_kernels_requested()) {
    naive::max_pool_indices(taps, indices, shape, windows);
  } else if (taps.scalar_type() == at::kByte) {
    chosen_indices(taps.const_data_ptr<uint8_t>(), indices.data_ptr<int64_t>(), shape, windows);
  } else {
    chosen_indices(taps.const_data_ptr<int32_t>(), indices.data_ptr<int64_t>(), shape, windows);
  }
  return indices;
}

// The shape of a pooling whose offsets are known, for an input of spatial size `size`.
PoolShape shape_of_offsets(const char* name, const at::Tensor& offsets, at::IntArrayRef size) {
  check_rank(name, "input sizes", size);
  PoolShape shape = check_input(name, offsets, static_cast<int64_t>(size.size()));
  shape.output = shape.input;
  shape.input = spatial_extent(size, 1);
  return shape;
}

at::IntArrayRef spatial_sizes(const char* name, const at::Tensor& input, const at::Tensor& offsets) {
  TORCH_CHECK(input.dim() >= 3 && input.dim() == offsets.dim() && input.size(0) == offsets.size(0) &&
                  input.size(1) == offsets.size(1),
              name, ": expected input and offsets of the same batch and channels, but got ", input.sizes(), " and ",
              offsets.sizes());
  return input.sizes().slice(2);
}

// Sliding windows

Pooling sliding(const char* name, const at::Tensor& input, at::IntArrayRef kernel, at::IntArrayRef stride,
                at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode) {
  const Window window = check_window(name, kernel, stride, padding, dilation);
  const auto rank = static_cast<int64_t>(kernel.size());
  PoolShape shape = check_input(name, input, rank);
  shape.output = pooled_size(name, shape, window, ceil_mode);
  return {name, shape, rank, WindowTables::sliding(shape, window)};
}

Pooling sliding_of_offsets(const char* name, const at::Tensor& offsets, at::IntArrayRef size, at::IntArrayRef kernel,
                           at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation) {
  const Window window = check_window(name, kernel, stride, padding, dilation);
  TORCH_CHECK(size.size() == kernel.size(), name, ": expected ", kernel.size(), " input sizes, but got ", size);
  const PoolShape shape = shape_of_offsets(name, offsets, size);
  return {name, shape, static_cast<int64_t>(size.size()), WindowTables::sliding(shape, window)};
}

at::Tensor max_pool(const at::Tensor& input, at::IntArrayRef kernel, at::IntArrayRef stride, at::IntArrayRef padding,
                    at::IntArrayRef dilation, bool ceil_mode) {
  return run_max(input, sliding("max_pool", input, kernel, stride, padding, dilation, ceil_mode), false).output;
}

std::tuple<at::Tensor, at::Tensor> max_pool_with_offsets(const at::Tensor& input, at::IntArrayRef kernel,
                                                         at::IntArrayRef stride, at::IntArrayRef padding,
                                                         at::IntArrayRef dilation, bool ceil_mode) {
  auto [output, offsets] =
      run_max(input, sliding("max_pool", input, kernel, stride, padding, dilation, ceil_mode), true);
  return {output, offsets};
}

at::Tensor max_pool_backward(const at::Tensor& grad, const at::Tensor& offsets, at::IntArrayRef size,
                             at::IntArrayRef kernel, at::IntArrayRef stride, at::IntArrayRef padding,
                             at::IntArrayRef dilation) {
  return run_max_backward(grad, offsets,
                          sliding_of_offsets("max_pool_backward", offsets, size, kernel, stride, padding, dilation));
}

at::Tensor max_pool_gather(const at::Tensor& input, const at::Tensor& offsets, at::IntArrayRef kernel,
                           at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation) {
  constexpr auto name = "max_pool_gather";
  const at::IntArrayRef size = spatial_sizes(name, input, offsets);
  return run_gather(input, offsets, sliding_of_offsets(name, offsets, size, kernel, stride, padding, dilation));
}

at::Tensor max_pool_indices(const at::Tensor& offsets, at::IntArrayRef size, at::IntArrayRef kernel,
                            at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation) {
  return run_indices(offsets, sliding_of_offsets("max_pool_indices", offsets, size, kernel, stride, padding, dilation));
}

// Adaptive windows

Pooling adaptive(const char* name, const at::Tensor& input, at::IntArrayRef output_size) {
  check_rank(name, "output_size", output_size);
  TORCH_CHECK_NOT_IMPLEMENTED(input.is_floating_point(), name, ": not implemented for ", input.scalar_type(),
                              " tensors");
  const auto rank = static_cast<int64_t>(output_size.size());
  PoolShape shape = check_input(name, input, rank);
  shape.output = spatial_extent(output_size, 1);
  check_output_size(name, shape);
  TORCH_CHECK(volume(shape.input) > 0, name, ": expected input with non-empty spatial dimensions, but got size ",
              at::IntArrayRef(shape.input));
  return {name, shape, rank, WindowTables::adaptive(shape)};
}

Pooling adaptive_of_offsets(const char* name, const at::Tensor& offsets, at::IntArrayRef size) {
  const PoolShape shape = shape_of_offsets(name, offsets, size);
  TORCH_CHECK(volume(shape.input) > 0, name, ": expected input with non-empty spatial dimensions, but got size ", size);
  return {name, shape, static_cast<int64_t>(size.size()), WindowTables::adaptive(shape)};
}

at::Tensor adaptive_max_pool(const at::Tensor& input, at::IntArrayRef output_size) {
  return run_max(input, adaptive("adaptive_max_pool", input, output_size), false).output;
}

std::tuple<at::Tensor, at::Tensor> adaptive_max_pool_with_offsets(const at::Tensor& input,
                                                                  at::IntArrayRef output_size) {
  auto [output, offsets] = run_max(input, adaptive("adaptive_max_pool", input, output_size), true);
  return {output, offsets};
}

at::Tensor adaptive_max_pool_backward(const at::Tensor& grad, const at::Tensor& offsets, at::IntArrayRef size) {
  return run_max_backward(grad, offsets, adaptive_of_offsets("adaptive_max_pool_backward", offsets, size));
}

at::Tensor adaptive_max_pool_gather(const at::Tensor& input, const at::Tensor& offsets) {
  constexpr auto name = "adaptive_max_pool_gather";
  return run_gather(input, offsets, adaptive_of_offsets(name, offsets, spatial_sizes(name, input, offsets)));
}

at::Tensor adaptive_max_pool_indices(const at::Tensor& offsets, at::IntArrayRef size) {
  return run_indices(offsets, adaptive_of_offsets("adaptive_max_pool_indices", offsets, size));
}

// Fractional windows

// Where the windows along one dimension begin: floor((o + u) a) - floor(u a) with a = (I - K) / (O - 1), and the last
// at the end. u: a random number for each plane. In the arithmetic of T, as in torch, or the windows would differ.
template <class T>
void append_beginnings(T sample, int64_t in, int64_t out, int64_t kernel, Short<int64_t>& begin) {
  const T step = out > 1 ? static_cast<T>(in - kernel) / static_cast<T>(out - 1) : T(0);
  const auto whole = [](T x) { return std::trunc(static_cast<double>(x)); };
  for (int64_t o = 0; o + 1 < out; ++o) {
    const double at = whole((static_cast<T>(o) + sample) * step) - whole(sample * step);
    TORCH_CHECK(at >= 0 && at <= in - kernel, "fractional_max_pool: expected random samples in [0, 1), but ",
                static_cast<double>(sample), " puts a window at ", at, " of an input of size ", in);
    begin.push_back(static_cast<int64_t>(at));
  }
  if (out > 0) begin.push_back(in - kernel);
}

WindowTables fractional_windows(const PoolShape& shape, const Extent& kernel, const at::Tensor& samples, int64_t rank) {
  std::array<Short<int64_t>, kSpatialRank> begin;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, samples.scalar_type(), "fractional_max_pool", [&] {
    const at::Tensor dense = samples.contiguous();
    const auto* sample = dense.const_data_ptr<scalar_t>();
    for (int64_t plane = 0; plane < shape.images * shape.channels; ++plane, sample += rank) {
      for (int dim = 0; dim < kSpatialRank; ++dim) {
        const int64_t axis = dim - (kSpatialRank - rank);
        // Two dimensions take their samples in torch's order: width first.
        const scalar_t u = axis < 0 ? scalar_t(0) : sample[rank == 2 ? 1 - axis : axis];
        append_beginnings(u, shape.input[dim], shape.output[dim], kernel[dim], begin[dim]);
      }
    }
  });
  return WindowTables::fractional(shape, kernel, std::move(begin));
}

// Checks what is common to the forward and the backward passes, with torch's conditions.
Pooling fractional_of(const char* name, PoolShape shape, const at::Tensor& samples, at::IntArrayRef kernel_size) {
  const auto rank = static_cast<int64_t>(kernel_size.size());
  const Extent kernel = spatial_extent(kernel_size, 1), in = shape.input, out = shape.output;
  TORCH_CHECK(kernel[0] > 0 && kernel[1] > 0 && kernel[2] > 0, name,
              ": kernel_size should be greater than zero, but got ", kernel_size);
  check_output_size(name, shape);
  for (int dim = 0; dim < kSpatialRank; ++dim) {
    TORCH_CHECK(out[dim] + kernel[dim] - 1 <= in[dim], name, ": windows of kernel_size ", kernel_size,
                " are too large for output size ", at::IntArrayRef(out), " of an input of size ", at::IntArrayRef(in));
  }
  TORCH_CHECK(samples.dim() == 3 && samples.size(0) >= shape.images && samples.size(1) == shape.channels &&
                  samples.size(2) == rank,
              name, ": expected _random_samples of shape [", shape.images, ", ", shape.channels, ", ", rank,
              "], but got ", samples.sizes());
  shape.channels_last = false;  // planes are worked on one by one, each with windows of its own
  return {name, shape, rank, fractional_windows(shape, kernel, samples, rank)};
}

// A contiguous result in the layout of the tensor it was computed from.
at::Tensor in_format_of(const at::Tensor& result, const at::Tensor& source) {
  return result.contiguous(memory_format(source));
}

std::tuple<at::Tensor, at::Tensor> fractional_max_pool(const at::Tensor& input, const at::Tensor& samples,
                                                       at::IntArrayRef kernel, at::IntArrayRef output_size) {
  constexpr auto name = "fractional_max_pool";
  check_rank(name, "kernel_size", kernel);
  TORCH_CHECK(output_size.size() == kernel.size(), name, ": expected kernel_size and output_size of one length, but ",
              "got ", kernel, " and ", output_size);
  check_same_type(samples, "_random_samples", input, "input", name);
  TORCH_CHECK_NOT_IMPLEMENTED(input.is_floating_point(), name, ": not implemented for ", input.scalar_type(),
                              " tensors");
  PoolShape shape = check_input(name, input, static_cast<int64_t>(kernel.size()));
  shape.output = spatial_extent(output_size, 1);
  TORCH_CHECK(volume(shape.input) > 0, name, ": expected input with non-empty spatial dimensions, but got ",
              input.sizes());
  auto [output, offsets] = run_max(input, fractional_of(name, shape, samples, kernel), true);
  return {in_format_of(output, input), in_format_of(offsets, input)};
}

Pooling fractional_of_offsets(const char* name, const at::Tensor& offsets, const at::Tensor& samples,
                              at::IntArrayRef size, at::IntArrayRef kernel) {
  TORCH_CHECK(size.size() == kernel.size(), name, ": expected ", kernel.size(), " input sizes, but got ", size);
  return fractional_of(name, shape_of_offsets(name, offsets, size), samples, kernel);
}

at::Tensor fractional_max_pool_backward(const at::Tensor& grad, const at::Tensor& offsets, const at::Tensor& samples,
                                        at::IntArrayRef size, at::IntArrayRef kernel) {
  constexpr auto name = "fractional_max_pool_backward";
  const Pooling pooling = fractional_of_offsets(name, offsets, samples, size, kernel);
  return in_format_of(run_max_backward(grad, offsets, pooling), offsets);
}

at::Tensor fractional_max_pool_gather(const at::Tensor& input, const at::Tensor& offsets, const at::Tensor& samples,
                                      at::IntArrayRef kernel) {
  constexpr auto name = "fractional_max_pool_gather";
  const at::IntArrayRef size = spatial_sizes(name, input, offsets);
  const Pooling pooling = fractional_of_offsets(name, offsets, samples, size, kernel);
  return in_format_of(run_gather(input, offsets, pooling), offsets);
}

at::Tensor fractional_max_pool_indices(const at::Tensor& offsets, const at::Tensor& samples, at::IntArrayRef size,
                                       at::IntArrayRef kernel) {
  constexpr auto name = "fractional_max_pool_indices";
  const Pooling pooling = fractional_of_offsets(name, offsets, samples, size, kernel);
  return in_format_of(run_indices(offsets, pooling), offsets);
}

}  // namespace

TORCH_LIBRARY_IMPL(scratchnn, CPU, library) {
  library.impl("max_pool", max_pool);
  library.impl("max_pool_with_offsets", max_pool_with_offsets);
  library.impl("max_pool_backward", max_pool_backward);
  library.impl("max_pool_gather", max_pool_gather);
  library.impl("max_pool_indices", max_pool_indices);
  library.impl("adaptive_max_pool", adaptive_max_pool);
  library.impl("adaptive_max_pool_with_offsets", adaptive_max_pool_with_offsets);
  library.impl("adaptive_max_pool_backward", adaptive_max_pool_backward);
  library.impl("adaptive_max_pool_gather", adaptive_max_pool_gather);
  library.impl("adaptive_max_pool_indices", adaptive_max_pool_indices);
  library.impl("fractional_max_pool", fractional_max_pool);
  library.impl("fractional_max_pool_backward", fractional_max_pool_backward);
  library.impl("fractional_max_pool_gather", fractional_max_pool_gather);
  library.impl("fractional_max_pool_indices", fractional_max_pool_indices);
}

}  // namespace scratchnn

// Max unpooling on the CPU: each input goes to the pixel its index names, and everything else is zero.
//
// Plain loops over any type: memory is what they wait for. Of inputs with one index the last wins, in row-major order,
// on any number of threads.
#include <ATen/Dispatch.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <atomic>

#include "pool/arguments.h"

namespace scratchnn {
namespace {

constexpr int64_t kGrain = 32768;        // numbers that make a thread worth waking
constexpr int64_t kChannelsAtOnce = 64;  // of a channels_last image: some cache lines

// Shape of an unpooling, its input being that of the layer.
PoolShape unpool_shape(const char* name, const at::Tensor& input, const at::Tensor& indices,
                       at::IntArrayRef output_size) {
  check_rank(name, "output_size", output_size);
  TORCH_CHECK(indices.scalar_type() == at::kLong, name,
              ": elements in indices should be type int64 but got: ", indices.scalar_type());
  TORCH_CHECK(input.sizes() == indices.sizes(), name, ": expected indices of the input's shape ", input.sizes(),
              ", but got ", indices.sizes());
  PoolShape shape = check_input(name, input, static_cast<int64_t>(output_size.size()));
  shape.output = spatial_extent(output_size, 1);
  check_output_size(name, shape);
  TORCH_CHECK(volume(shape.input) > 0, name, ": expected input with non-empty spatial dimensions, but got ",
              input.sizes());
  return shape;
}

// body(place, target) for every input: its place in memory, and that of the output its index names. All inputs of a
// channel come in row-major order, on one thread. Invalid indices are left out, and reported at the end.
template <class Body>
void for_each_index(const char* name, const at::Tensor& indices, const PoolShape& shape, const Body& body) {
  const Images<const int64_t> index{indices.const_data_ptr<int64_t>(), shape.channels, shape.input,
                                    shape.channels_last};
  const Images<const char> output{nullptr, shape.channels, shape.output, shape.channels_last};
  const int64_t pixels = index.pixels(), limit = output.pixels(), stride = index.pixel_stride();
  // Channels side by side in memory are taken together, each of them still in row-major order.
  const int64_t at_once = shape.channels_last ? kChannelsAtOnce : 1;
  const int64_t chunks = (shape.channels + at_once - 1) / at_once;
  std::atomic<bool> valid{true};
  std::atomic<int64_t> invalid{0};  // some index that is not valid
  const int64_t grain = std::max<int64_t>(1, kGrain / (at_once * (pixels + limit)));
  parallel_for(0, shape.images * chunks, grain, [&](int64_t first, int64_t last) {
    const auto place_one = [&](int64_t place, int64_t plane, int64_t target) {
      if (target >= 0 && target < limit) {
        body(place, plane + target * stride);
      } else {
        valid = false;
        invalid = target;
      }
    };
    for (int64_t i = first; i < last; ++i) {
      const int64_t n = i / chunks, c = i % chunks * at_once;
      const int64_t channels = std::min(at_once, shape.channels - c);
      const int64_t from = n * index.image_stride() + c * index.channel_stride();
      const int64_t to = n * output.image_stride() + c * output.channel_stride();
      if (!shape.channels_last) {
        for (int64_t p = from; p < from + pixels; ++p) place_one(p, to, index.data[p]);
        continue;
      }
      for (int64_t p = 0; p < pixels; ++p) {
        const int64_t place = from + p * stride;
        for (int64_t k = 0; k < channels; ++k) place_one(place + k, to + k, index.data[place + k]);
      }
    }
  });
  TORCH_CHECK(valid.load(), name, ": found an invalid max index: ", invalid.load(), " (output volumes are of size ",
              at::IntArrayRef(shape.output), ")");
}

at::Tensor max_unpool(const at::Tensor& input, const at::Tensor& indices, at::IntArrayRef output_size) {
  constexpr auto name = "max_unpool";
  const PoolShape shape = unpool_shape(name, input, indices, output_size);
  const at::Tensor x = in_format(input, shape.channels_last);
  const at::Tensor y = empty_images(shape, shape.output, output_size.size(), x.options()).zero_();
  if (y.numel() == 0) return y;
  const at::Tensor index = in_format(indices, shape.channels_last);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "max_unpool", [&] {
    const auto* from = x.const_data_ptr<scalar_t>();
    auto* to = y.data_ptr<scalar_t>();
    for_each_index(name, index, shape, [&](int64_t place, int64_t target) { to[target] = from[place]; });
  });
  return y;
}

// dx[i] = dy[index of i]
at::Tensor max_unpool_backward(const at::Tensor& grad, const at::Tensor& indices) {
  constexpr auto name = "max_unpool_backward";
  TORCH_CHECK(grad.dim() >= 3 && grad.dim() == indices.dim() && grad.size(0) == indices.size(0) &&
                  grad.size(1) == indices.size(1),
              name, ": expected grad and indices of the same batch and channels, but got ", grad.sizes(), " and ",
              indices.sizes());
  const PoolShape shape = unpool_shape(name, indices, indices, grad.sizes().slice(2));
  const at::Tensor dy = in_format(grad, shape.channels_last);
  const at::Tensor dx = empty_images(shape, shape.input, grad.dim() - 2, dy.options());
  if (dy.numel() == 0) return dx.zero_();
  const at::Tensor index = in_format(indices, shape.channels_last);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, dy.scalar_type(), "max_unpool", [&] {
    const auto* from = dy.const_data_ptr<scalar_t>();
    auto* to = dx.data_ptr<scalar_t>();
    for_each_index(name, index, shape, [&](int64_t place, int64_t target) { to[place] = from[target]; });
  });
  return dx;
}

}  // namespace

TORCH_LIBRARY_IMPL(scratchnn, CPU, library) {
  library.impl("max_unpool", max_unpool);
  library.impl("max_unpool_backward", max_unpool_backward);
}

}  // namespace scratchnn

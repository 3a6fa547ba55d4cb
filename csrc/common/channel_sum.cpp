// The operator that sums over everything but dimension 1, shared by the layers that have a bias.
#include "common/channel_sum.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/view_as_complex.h>
#include <ATen/ops/view_as_real.h>
#include <torch/library.h>

#include "common/tensors.h"

namespace scratchnn {
namespace {

at::Tensor channel_sum_naive(const at::Tensor& input) {
  const at::Tensor x = input.contiguous();
  const at::Tensor sums = at::empty({x.size(1)}, x.options());
  const int64_t channels = x.size(1), pixels = x.numel() == 0 ? 0 : x.numel() / (x.size(0) * channels);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "channel_sum", [&] {
    const scalar_t* data = x.const_data_ptr<scalar_t>();
    for (int64_t c = 0; c < channels; ++c) {
      double sum = 0;
      for (int64_t n = 0; n < x.size(0); ++n) {
        for (int64_t i = 0; i < pixels; ++i) sum += static_cast<double>(data[(n * channels + c) * pixels + i]);
      }
      sums.data_ptr<scalar_t>()[c] = static_cast<scalar_t>(sum);
    }
  });
  return sums;
}

at::Tensor channel_sum(const at::Tensor& input) {
  if (input.is_complex()) {  // real and imaginary parts are channels of their own
    const at::Tensor parts = at::view_as_real(input).movedim(-1, 2).flatten(1, 2);
    return at::view_as_complex(channel_sum(parts).unflatten(0, {input.size(1), 2}));
  }
  TORCH_CHECK(input.dim() >= 2 && input.dim() <= 5, "channel_sum: expected 2 to 5 dimensions, but got shape ",
              input.sizes());
  if (!use_vector_kernels(input)) return channel_sum_naive(input);
  const at::MemoryFormat format = memory_format(input);
  const at::Tensor x = input.contiguous(format);
  const at::Tensor sums = at::empty({x.size(1)}, x.options());
  with_memory_type(x, [&](auto number) {
    using S = typename decltype(number)::type;
    channel_sum_kernel<S>(images_of<const S>(x), x.size(0), write_pointer<S>(sums));
  });
  return sums;
}

}  // namespace

TORCH_LIBRARY_IMPL(scratchnn, CPU, library) {
  library.impl("channel_sum", channel_sum);
}

}  // namespace scratchnn

// Local response normalization on the CPU: check, allocate, choose a kernel.
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>

#include "common/tensors.h"
#include "norm/naive.h"
#include "norm/parameters.h"

namespace scratchnn {
namespace {

Window window_of(const at::Tensor& input, int64_t before, int64_t after, double scale, double beta, double k) {
  check_floating(input, "local_response_norm");
  TORCH_CHECK(input.dim() >= 2, "local_response_norm: expected an input N x C x *, but got ", input.dim(),
              " dimensions");
  TORCH_CHECK(before >= 0 && after >= 0, "local_response_norm: expected windows of no negative size, but got ", before,
              " channels before and ", after, " after");
  const int64_t samples = input.size(0), channels = input.size(1), none = std::max<int64_t>(channels - 1, 0);
  const int64_t pixels = input.numel() == 0 ? 0 : input.numel() / (samples * channels);
  return {
      samples, channels, pixels, is_channels_last(memory_format(input)), std::min(before, none), std::min(after, none),
      scale,   beta,     k};
}

at::Tensor local_response_norm(const at::Tensor& input, int64_t before, int64_t after, double scale, double beta,
                               double k) {
  const Window window = window_of(input, before, after, scale, beta, k);
  if (is_widened(input)) {
    return local_response_norm(input.to(at::kFloat), before, after, scale, beta, k).to(input.scalar_type());
  }
  const at::Tensor x = input.contiguous(memory_format(input));
  const at::Tensor y = at::empty_like(x);
  if (x.numel() == 0) return y;
  if (use_fast_kernels(x)) {
    with_fast_type(x, [&](auto zero) {
      using T = decltype(zero);
      local_response_norm_kernel<T>(window, x.const_data_ptr<T>(), y.data_ptr<T>());
    });
  } else {
    naive::local_response_norm(window, x, y);
  }
  return y;
}

at::Tensor local_response_norm_backward(const at::Tensor& grad, const at::Tensor& input, int64_t before, int64_t after,
                                        double scale, double beta, double k) {
  const Window window = window_of(input, before, after, scale, beta, k);
  TORCH_CHECK(grad.sizes() == input.sizes(), "local_response_norm_backward: expected grad of shape ", input.sizes(),
              ", but got ", grad.sizes());
  check_same_type(grad, "grad", input, "input", "local_response_norm_backward");
  if (is_widened(input)) {
    return local_response_norm_backward(grad.to(at::kFloat), input.to(at::kFloat), before, after, scale, beta, k)
        .to(input.scalar_type());
  }
  const at::MemoryFormat format = memory_format(input);
  const at::Tensor x = input.contiguous(format), g = grad.contiguous(format);
  const at::Tensor dx = at::empty_like(x);
  if (x.numel() == 0) return dx;
  if (use_fast_kernels(x)) {
    with_fast_type(x, [&](auto zero) {
      using T = decltype(zero);
      local_response_norm_backward_kernel<T>(window, g.const_data_ptr<T>(), x.const_data_ptr<T>(), dx.data_ptr<T>());
    });
  } else {
    naive::local_response_norm_backward(window, g, x, dx);
  }
  return dx;
}

}  // namespace

TORCH_LIBRARY_IMPL(scratchnn, CPU, library) {
  library.impl("local_response_norm", local_response_norm);
  library.impl("local_response_norm_backward", local_response_norm_backward);
}

}  // namespace scratchnn

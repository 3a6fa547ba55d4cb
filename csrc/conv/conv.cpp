// The convolution operators on the CPU: check the arguments, allocate, choose a kernel.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "common/tensors.h"
#include "conv/choice.h"
#include "conv/kernels.h"
#include "conv/naive.h"

namespace scratchnn {
namespace {

// channels_last where either operand is, as in torch.
at::MemoryFormat output_format(const at::Tensor& a, const at::Tensor& b) {
  const at::MemoryFormat format = memory_format(a);
  return is_channels_last(format) ? format : memory_format(b);
}

std::string spatial(at::IntArrayRef sizes) {
  std::string text;
  for (const int64_t size : sizes) text += (text.empty() ? "" : " x ") + std::to_string(size);
  return text;
}

// Everything that can be wrong with the numbers, in torch's words. Tensor sizes are N x C x spatial; `padding` has
// the amounts before and after each dimension in turn.
ConvGeometry checked_geometry(at::IntArrayRef input, at::IntArrayRef weight, at::IntArrayRef stride,
                              at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups) {
  const auto rank = static_cast<int64_t>(weight.size()) - 2;
  TORCH_CHECK(rank >= 1 && rank <= kSpatialRank, "conv: expected a weight of 3 to 5 dimensions, but got ", weight);
  TORCH_CHECK(static_cast<int64_t>(input.size()) == rank + 2, "Expected ", rank + 1, "D (unbatched) or ", rank + 2,
              "D (batched) input to conv", rank, "d, but got input of size: ", input);
  const auto expect_length = [&](at::IntArrayRef values, int64_t length, const char* name) {
    TORCH_CHECK(static_cast<int64_t>(values.size()) == length, "expected ", name,
                " to be a single integer value or a list of ", length,
                " values to match the convolution dimensions, but got ", name, "=", values);
  };
  expect_length(stride, rank, "stride");
  expect_length(padding, 2 * rank, "padding");
  expect_length(dilation, rank, "dilation");
  TORCH_CHECK(groups > 0, "non-positive groups is not supported: got ", groups);
  for (const int64_t s : stride) TORCH_CHECK(s > 0, "non-positive stride is not supported: got ", stride);
  for (const int64_t p : padding) TORCH_CHECK(p >= 0, "negative padding is not supported: got ", padding);
  for (const int64_t d : dilation) TORCH_CHECK(d > 0, "non-positive dilation is not supported: got ", dilation);
  TORCH_CHECK(weight[0] >= groups, "Given groups=", groups, ", expected weight to be at least ", groups,
              " at dimension 0, but got weight of size ", weight, " instead");
  TORCH_CHECK(weight[0] % groups == 0, "Given groups=", groups, ", expected weight to be divisible by ", groups,
              " at dimension 0, but got weight of size ", weight, " instead");
  TORCH_CHECK(input[1] == weight[1] * groups, "Given groups=", groups, ", weight of size ", weight, ", expected input",
              input, " to have ", weight[1] * groups, " channels, but got ", input[1], " channels instead");

  ConvGeometry g{input[0], input[1], weight[0], groups, {}, {}, {}, {}, {}, {}};
  at::DimVector output, padded, before;
  for (int64_t d = 0; d < rank; ++d) {
    TORCH_CHECK(input[2 + d] > 0, "Only zero batch or zero channel inputs are supported, but got input shape: ", input);
    TORCH_CHECK(weight[2 + d] > 0,
                "conv: expected a kernel of at least one tap in each dimension, but got weight of size ", weight);
    before.push_back(padding[2 * d]);
    padded.push_back(input[2 + d] + padding[2 * d] + padding[2 * d + 1]);
    output.push_back(output_size(padded[d], weight[2 + d], 0, stride[d], dilation[d]));
  }
  for (int64_t d = 0; d < rank; ++d) {
    TORCH_CHECK(output[d] > 0, "Calculated padded input size per channel: (", spatial(padded), "). Kernel size: (",
                spatial(weight.slice(2)), ")", dilation[d] > 1 ? " with dilation " : "",
                dilation[d] > 1 ? std::to_string(dilation[d]) : "",
                ". Kernel size can't be greater than actual input size");
  }
  g.input = spatial_extent(input.slice(2), 1);
  g.kernel = spatial_extent(weight.slice(2), 1);
  g.output = spatial_extent(output, 1);
  g.stride = spatial_extent(stride, 1);
  g.padding = spatial_extent(before, 0);
  g.dilation = spatial_extent(dilation, 1);
  return g;
}

at::DimVector sizes_of(int64_t outer, int64_t inner, const Extent& extent, int64_t rank) {
  at::DimVector sizes{outer, inner};
  sizes.append(extent.end() - rank, extent.end());
  return sizes;
}

template <class T>
Filters<T> filters_of(const at::Tensor& weight) {
  T* data;
  if constexpr (std::is_const_v<T>) {
    data = weight.const_data_ptr<std::remove_const_t<T>>();
  } else {
    data = weight.mutable_data_ptr<T>();
  }
  const int64_t channels = weight.size(1), taps = weight[0].numel() / std::max<int64_t>(channels, 1);
  if (is_channels_last(memory_format(weight))) return {data, taps * channels, 1, channels};
  return {data, taps * channels, taps, 1};
}

// The kernel of the chosen algorithm; Winograd's exist for float32 alone.
template <class T, class Kernel, class Winograd>
const Kernel& choose(const ConvGeometry& g, const Kernel& implicit_gemm, const Kernel& depthwise,
                     const Winograd& winograd) {
  constexpr bool is_float32 = std::is_same_v<T, float>;
  switch (choose_algorithm(g, is_float32)) {
    case ConvAlgorithm::kDepthwise:
      return depthwise;
    case ConvAlgorithm::kWinograd:
      if constexpr (is_float32) return winograd;
      [[fallthrough]];
    default:
      return implicit_gemm;
  }
}

at::Tensor dense(const at::Tensor& tensor) {
  return tensor.contiguous(memory_format(tensor));
}

at::Tensor conv(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups) {
  const ConvGeometry g = checked_geometry(input.sizes(), weight.sizes(), stride, padding, dilation, groups);
  check_same_type(input, "input", weight, "weight", "conv");
  if (bias) {
    TORCH_CHECK(bias->dim() == 1 && bias->size(0) == weight.size(0), "Given weight of size ", weight.sizes(),
                ", expected bias to be 1-dimensional with ", weight.size(0), " elements, but got bias of size ",
                bias->sizes(), " instead");
    TORCH_CHECK(bias->scalar_type() == input.scalar_type(), "Input type (", input.scalar_type(), ") and bias type (",
                bias->scalar_type(), ") should be the same");
  }
  if (is_widened(input)) {
    return conv(input.to(at::kFloat), weight.to(at::kFloat), widened(bias), stride, padding, dilation, groups)
        .to(input.scalar_type());
  }
  const at::MemoryFormat format = output_format(input, weight);
  const at::Tensor output =
      at::empty(sizes_of(g.batch, g.out_channels, g.output, weight.dim() - 2), input.options().memory_format(format));
  const at::Tensor b = bias ? bias->contiguous() : at::Tensor();
  if (!use_fast_kernels(input)) {
    naive::conv(g, input, weight, b, output);
    return output;
  }
  const at::Tensor x = dense(input), w = dense(weight);
  with_fast_type(x, [&](auto zero) {
    using T = decltype(zero);
    const auto& kernel = choose<T>(g, implicit_gemm_forward<T>, depthwise_forward<T>, winograd_forward<float>);
    kernel(g, images_of<const T>(x), filters_of<const T>(w), b.defined() ? b.const_data_ptr<T>() : nullptr,
           images_of<T>(output));
  });
  return output;
}

at::Tensor conv_input_grad(const at::Tensor& grad, const at::Tensor& weight, at::IntArrayRef input_size,
                           at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups) {
  at::DimVector sizes{grad.size(0), weight.size(1) * groups};
  sizes.append(input_size.begin(), input_size.end());
  const ConvGeometry g = checked_geometry(sizes, weight.sizes(), stride, padding, dilation, groups);
  const at::DimVector expected = sizes_of(g.batch, g.out_channels, g.output, weight.dim() - 2);
  TORCH_CHECK(grad.sizes() == expected, "conv_input_grad: expected grad of shape ", expected, ", but got ",
              grad.sizes());
  check_same_type(grad, "grad", weight, "weight", "conv_input_grad");
  if (is_widened(grad)) {
    return conv_input_grad(grad.to(at::kFloat), weight.to(at::kFloat), input_size, stride, padding, dilation, groups)
        .to(grad.scalar_type());
  }
  const at::Tensor grad_input = at::empty(sizes, grad.options().memory_format(output_format(grad, weight)));
  if (!use_fast_kernels(grad)) {
    naive::conv_input_grad(g, grad, weight, grad_input);
    return grad_input;
  }
  const at::Tensor dy = dense(grad), w = dense(weight);
  with_fast_type(dy, [&](auto zero) {
    using T = decltype(zero);
    const auto& kernel = choose<T>(g, implicit_gemm_input_grad<T>, depthwise_input_grad<T>, winograd_input_grad<float>);
    kernel(g, images_of<const T>(dy), filters_of<const T>(w), images_of<T>(grad_input));
  });
  return grad_input;
}

at::Tensor conv_weight_grad(const at::Tensor& grad, const at::Tensor& input, at::IntArrayRef kernel_size,
                            at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                            bool channels_last) {
  TORCH_CHECK(groups > 0, "non-positive groups is not supported: got ", groups);
  at::DimVector sizes{grad.size(1), input.size(1) / groups};
  sizes.append(kernel_size.begin(), kernel_size.end());
  const ConvGeometry g = checked_geometry(input.sizes(), sizes, stride, padding, dilation, groups);
  const at::DimVector expected = sizes_of(g.batch, g.out_channels, g.output, input.dim() - 2);
  TORCH_CHECK(grad.sizes() == expected, "conv_weight_grad: expected grad of shape ", expected, ", but got ",
              grad.sizes());
  check_same_type(grad, "grad", input, "input", "conv_weight_grad");
  if (is_widened(grad)) {
    return conv_weight_grad(grad.to(at::kFloat), input.to(at::kFloat), kernel_size, stride, padding, dilation, groups,
                            channels_last)
        .to(grad.scalar_type());
  }
  at::MemoryFormat format = at::MemoryFormat::Contiguous;
  if (channels_last && sizes.size() == 4) format = at::MemoryFormat::ChannelsLast;
  if (channels_last && sizes.size() == 5) format = at::MemoryFormat::ChannelsLast3d;
  const at::Tensor grad_weight = at::empty(sizes, grad.options().memory_format(format));
  if (!use_fast_kernels(grad)) {
    naive::conv_weight_grad(g, grad, input, grad_weight);
    return grad_weight;
  }
  const at::Tensor dy = dense(grad), x = dense(input);
  with_fast_type(dy, [&](auto zero) {
    using T = decltype(zero);
    const auto& kernel =
        choose<T>(g, implicit_gemm_weight_grad<T>, depthwise_weight_grad<T>, winograd_weight_grad<float>);
    kernel(g, images_of<const T>(dy), images_of<const T>(x), filters_of<T>(grad_weight));
  });
  return grad_weight;
}

}  // namespace

TORCH_LIBRARY_IMPL(scratchnn, CPU, library) {
  library.impl("conv", conv);
  library.impl("conv_input_grad", conv_input_grad);
  library.impl("conv_weight_grad", conv_weight_grad);
}

}  // namespace scratchnn

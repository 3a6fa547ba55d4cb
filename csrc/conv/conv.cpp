// The convolution operators on the CPU: check the arguments, allocate, choose a kernel.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "common/tensors.h"
#include "conv/border.h"
#include "conv/checks.h"
#include "conv/choice.h"
#include "conv/complex.h"
#include "conv/kernels.h"
#include "conv/naive.h"

namespace scratchnn {
namespace {

constexpr int64_t kWidenedNumbers = 1 << 20;  // of an output that is computed in float32 and then rounded, at a time

// channels_last where either operand is, as in torch.
at::MemoryFormat output_format(const at::Tensor& a, const at::Tensor& b) {
  const at::MemoryFormat format = memory_format(a);
  return is_channels_last(format) ? format : memory_format(b);
}

template <class T>
Filters<T> filters_of(const at::Tensor& weight) {
  T* data;
  if constexpr (std::is_const_v<T>) {
    data = read_pointer<std::remove_const_t<T>>(weight);
  } else {
    data = write_pointer<T>(weight);
  }
  const int64_t channels = weight.size(1), taps = weight[0].numel() / std::max<int64_t>(channels, 1);
  if (is_channels_last(memory_format(weight))) return {data, taps * channels, 1, channels};
  return {data, taps * channels, taps, 1};
}

// The kernel of the chosen algorithm.
template <class Kernel>
const Kernel& choose(const ConvGeometry& g, at::ScalarType type, const Kernel& implicit_gemm, const Kernel& matrix_unit,
                     const Kernel& depthwise, const Kernel& grouped, const Kernel& winograd,
                     const Kernel& narrow_winograd) {
  switch (choose_algorithm(g, type).algorithm) {
    case ConvAlgorithm::kMatrixUnit:
      return matrix_unit;
    case ConvAlgorithm::kDepthwise:
      return depthwise;
    case ConvAlgorithm::kGrouped:
      return grouped;
    case ConvAlgorithm::kWinograd:
      return winograd;
    case ConvAlgorithm::kNarrowWinograd:
      return narrow_winograd;
    default:
      return implicit_gemm;
  }
}

const char* name_of(ConvAlgorithm algorithm) {
  switch (algorithm) {
    case ConvAlgorithm::kMatrixUnit:
      return "matrix unit";
    case ConvAlgorithm::kDepthwise:
      return "depthwise";
    case ConvAlgorithm::kGrouped:
      return "grouped";
    case ConvAlgorithm::kWinograd:
    case ConvAlgorithm::kNarrowWinograd:
      return "Winograd F(4x4, 3x3)";
    default:
      return "implicit GEMM";
  }
}

at::Tensor dense(const at::Tensor& tensor) {
  return tensor.contiguous(memory_format(tensor));
}

// True where a fast operator runs on real copies of twice the channels (complex.h).
bool is_split(const at::Tensor& tensor) {
  return tensor.is_complex() && !naive_kernels_requested();
}

std::optional<at::Tensor> split_bias(const std::optional<at::Tensor>& bias) {
  return bias ? std::optional<at::Tensor>(real_bias(*bias)) : std::nullopt;
}

template <class S>
const S* data_or_null(const at::Tensor& bias) {
  return bias.defined() ? read_pointer<S>(bias) : nullptr;
}

at::Tensor conv(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                std::string_view padding_mode) {
  const ConvGeometry g =
      conv_geometry(input.sizes(), weight.sizes(), {stride, padding, dilation, groups, padding_mode});
  check_same_type(input, "input", weight, "weight", "conv");
  check_bias(bias, input, weight, g.out_channels);
  const at::MemoryFormat format = output_format(input, weight);
  if (is_split(input)) {
    const at::Tensor parts = conv(real_channels(input), real_filters(weight, false), split_bias(bias), stride, padding,
                                  dilation, groups, padding_mode);
    return complex_channels(parts, format);
  }
  const at::Tensor output =
      at::empty(sizes_of(g.batch, g.out_channels, g.output, weight.dim() - 2), input.options().memory_format(format));
  const at::Tensor b = bias ? bias->contiguous() : at::Tensor();
  if (!use_vector_kernels(input)) {
    naive::conv(g, input, weight, b, output);
    return output;
  }
  const at::Tensor x = dense(input), w = dense(weight);
  with_memory_type(x, [&](auto number) {
    using S = typename decltype(number)::type;
    const auto kernel =
        choose(g, x.scalar_type(), implicit_gemm_forward<S>, matrix_unit_forward<S>, depthwise_forward<S>,
               grouped_forward<S>, winograd_forward<S>, narrow_winograd_forward<S>);
    kernel(g, images_of<const S>(x), filters_of<const S>(w), data_or_null<S>(b), images_of<S>(output));
  });
  return output;
}

at::Tensor conv_transpose(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                          at::IntArrayRef output_size, at::IntArrayRef stride, at::IntArrayRef padding,
                          at::IntArrayRef dilation, int64_t groups, std::string_view padding_mode) {
  const ConvGeometry g = conv_transpose_geometry(input.sizes(), weight.sizes(), output_size,
                                                 {stride, padding, dilation, groups, padding_mode});
  check_same_type(input, "input", weight, "weight", "conv_transpose");
  check_bias(bias, input, weight, g.in_channels);
  const at::MemoryFormat format = output_format(input, weight);
  if (is_split(input)) {
    const at::Tensor parts = conv_transpose(real_channels(input), real_filters(weight, true), split_bias(bias),
                                            output_size, stride, padding, dilation, groups, padding_mode);
    return complex_channels(parts, format);
  }
  const at::Tensor output =
      at::empty(sizes_of(g.batch, g.in_channels, g.input, weight.dim() - 2), input.options().memory_format(format));
  if (is_widened(input) && g.border != Border::kZeros) {
    // add_border_grad sums into its output: some images at a time in float32, rounded once.
    const at::Tensor w = weight.to(at::kFloat);
    const int64_t numbers = std::max<int64_t>(1, g.in_channels * volume(g.input));  // of an image
    const int64_t images = std::max<int64_t>(1, kWidenedNumbers / numbers);
    for (int64_t n = 0; n < g.batch; n += images) {
      const int64_t count = std::min(images, g.batch - n);
      output.narrow(0, n, count)
          .copy_(conv_transpose(input.narrow(0, n, count).to(at::kFloat), w, widened(bias), output_size, stride,
                                padding, dilation, groups, padding_mode));
    }
    return output;
  }
  const at::Tensor b = bias ? bias->contiguous() : at::Tensor();
  if (!use_vector_kernels(input)) {
    naive::conv_input_grad(g, input, weight, b, output);
    return output;
  }
  const at::Tensor dy = dense(input), w = dense(weight);
  with_memory_type(dy, [&](auto number) {
    using S = typename decltype(number)::type;
    const auto& kernel =
        choose(g, dy.scalar_type(), implicit_gemm_input_grad<S>, matrix_unit_input_grad<S>, depthwise_input_grad<S>,
               grouped_input_grad<S>, winograd_input_grad<S>, narrow_winograd_input_grad<S>);
    kernel(g, images_of<const S>(dy), filters_of<const S>(w), data_or_null<S>(b), images_of<S>(output));
    if constexpr (std::is_floating_point_v<S>) {
      add_border_grad<S>(g, images_of<const S>(dy), filters_of<const S>(w), images_of<S>(output));
    }
  });
  return output;
}

at::Tensor conv_weight_grad(const at::Tensor& grad, const at::Tensor& input, at::IntArrayRef kernel_size,
                            at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                            std::string_view padding_mode, bool channels_last) {
  TORCH_CHECK(groups > 0, "non-positive groups is not supported: got ", groups);
  at::DimVector sizes{grad.size(1), input.size(1) / groups};
  sizes.append(kernel_size.begin(), kernel_size.end());
  const ConvGeometry g = conv_geometry(input.sizes(), sizes, {stride, padding, dilation, groups, padding_mode});
  const at::DimVector expected = sizes_of(g.batch, g.out_channels, g.output, input.dim() - 2);
  TORCH_CHECK(grad.sizes() == expected, "conv_weight_grad: expected grad of shape ", expected, ", but got ",
              grad.sizes());
  check_same_type(grad, "grad", input, "input", "conv_weight_grad");
  at::MemoryFormat format = at::MemoryFormat::Contiguous;
  if (channels_last && sizes.size() == 4) format = at::MemoryFormat::ChannelsLast;
  if (channels_last && sizes.size() == 5) format = at::MemoryFormat::ChannelsLast3d;
  if (is_split(grad)) {
    const at::Tensor products = conv_weight_grad(real_channels(grad), real_channels(input), kernel_size, stride,
                                                 padding, dilation, groups, padding_mode, channels_last);
    return complex_filters(products, format);
  }
  const at::Tensor grad_weight = at::empty(sizes, grad.options().memory_format(format));
  if (!use_vector_kernels(grad)) {
    naive::conv_weight_grad(g, grad, input, grad_weight);
    return grad_weight;
  }
  const at::Tensor dy = dense(grad), x = dense(input);
  with_memory_type(dy, [&](auto number) {
    using S = typename decltype(number)::type;
    const auto& kernel =
        choose(g, dy.scalar_type(), implicit_gemm_weight_grad<S>, matrix_unit_weight_grad<S>, depthwise_weight_grad<S>,
               grouped_weight_grad<S>, winograd_weight_grad<S>, narrow_winograd_weight_grad<S>);
    kernel(g, images_of<const S>(dy), images_of<const S>(x), filters_of<S>(grad_weight));
  });
  return grad_weight;
}

}  // namespace

std::tuple<std::string, std::string> explain_conv(at::IntArrayRef input, at::IntArrayRef weight, at::IntArrayRef stride,
                                                  at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                                                  std::string_view padding_mode, at::ScalarType type) {
  const at::Tensor probe = at::empty({0}, at::TensorOptions(type));
  if (is_split(probe)) {
    at::DimVector channels(input), filters(weight);
    for (int64_t* size : {&channels[1], &filters[0], &filters[1]}) *size *= 2;
    auto [name, reason] =
        explain_conv(channels, filters, stride, padding, dilation, groups, padding_mode, c10::toRealValueType(type));
    return {name + " on real and imaginary parts", reason};
  }
  if (naive_kernels_requested()) return {"naive loops", "scratchnn.kernels(\"naive\") asks for them"};
  if (!use_vector_kernels(probe)) return {"naive loops", "the fast kernels are for floating-point numbers"};
  const ConvGeometry g = conv_geometry(input, weight, {stride, padding, dilation, groups, padding_mode});
  const ConvChoice choice = choose_algorithm(g, type);
  return {name_of(choice.algorithm), choice.reason};
}

TORCH_LIBRARY_IMPL(scratchnn, CPU, library) {
  library.impl("conv", conv);
  library.impl("conv_transpose", conv_transpose);
  library.impl("conv_weight_grad", conv_weight_grad);
}

}  // namespace scratchnn

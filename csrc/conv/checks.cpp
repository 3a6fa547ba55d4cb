#include "conv/checks.h"

#include <c10/util/Exception.h>

#include <string>

namespace scratchnn {
namespace {

std::string spatial(at::IntArrayRef sizes) {
  std::string text;
  for (const int64_t size : sizes) text += (text.empty() ? "" : " x ") + std::to_string(size);
  return text;
}

Border border_of(std::string_view padding_mode) {
  if (padding_mode == "zeros") return Border::kZeros;
  if (padding_mode == "reflect") return Border::kReflect;
  if (padding_mode == "replicate") return Border::kReplicate;
  TORCH_CHECK_VALUE(padding_mode == "circular", "padding_mode must be zeros, reflect, replicate or circular, but got ",
                    padding_mode);
  return Border::kCircular;
}

// A border continues the image by no more pixels than the image has to give.
void check_border(at::IntArrayRef input, at::IntArrayRef padding, Border border) {
  for (int64_t d = 0; d + 2 < static_cast<int64_t>(input.size()); ++d) {
    const int64_t size = input[2 + d], most = std::max(padding[2 * d], padding[2 * d + 1]);
    TORCH_CHECK(border != Border::kReflect || most < size,
                "Padding size should be less than the corresponding input dimension, but got: padding (",
                padding[2 * d], ", ", padding[2 * d + 1], ") at dimension ", 2 + d, " of input ", input);
    TORCH_CHECK(border != Border::kCircular || most <= size,
                "Padding value causes wrapping around more than once: padding (", padding[2 * d], ", ",
                padding[2 * d + 1], ") at dimension ", 2 + d, " of input ", input);
  }
}

void check_window(at::IntArrayRef weight, const Window& window) {
  const auto rank = static_cast<int64_t>(weight.size()) - 2;
  TORCH_CHECK(rank >= 1 && rank <= kSpatialRank, "conv: expected a weight of 3 to 5 dimensions, but got ", weight);
  const auto expect_length = [&](at::IntArrayRef values, int64_t length, const char* name) {
    TORCH_CHECK(static_cast<int64_t>(values.size()) == length, "expected ", name,
                " to be a single integer value or a list of ", length,
                " values to match the convolution dimensions, but got ", name, "=", values);
  };
  const int64_t groups = window.groups;
  expect_length(window.stride, rank, "stride");
  expect_length(window.padding, 2 * rank, "padding");
  expect_length(window.dilation, rank, "dilation");
  TORCH_CHECK(groups > 0, "non-positive groups is not supported: got ", groups);
  for (const int64_t s : window.stride) {
    TORCH_CHECK(s > 0, "non-positive stride is not supported: got ", window.stride);
  }
  for (const int64_t d : window.dilation) {
    TORCH_CHECK(d > 0, "non-positive dilation is not supported: got ", window.dilation);
  }
  TORCH_CHECK(weight[0] >= groups, "Given groups=", groups, ", expected weight to be at least ", groups,
              " at dimension 0, but got weight of size ", weight, " instead");
  TORCH_CHECK(weight[0] % groups == 0, "Given groups=", groups, ", expected weight to be divisible by ", groups,
              " at dimension 0, but got weight of size ", weight, " instead");
  for (const int64_t taps : weight.slice(2)) {
    TORCH_CHECK(taps > 0, "conv: expected a kernel of at least one tap in each dimension, but got weight of size ",
                weight);
  }
}

// The convolution itself, its window and channels checked.
ConvGeometry geometry_of(at::IntArrayRef input, at::IntArrayRef weight, const Window& window) {
  const auto rank = static_cast<int64_t>(weight.size()) - 2;
  const Border border = border_of(window.padding_mode);
  at::DimVector output, padded, before;
  for (int64_t d = 0; d < rank; ++d) {
    TORCH_CHECK(input[2 + d] > 0, "Only zero batch or zero channel inputs are supported, but got input shape: ", input);
    before.push_back(window.padding[2 * d]);
    padded.push_back(input[2 + d] + window.padding[2 * d] + window.padding[2 * d + 1]);
    output.push_back(output_size(padded[d], weight[2 + d], 0, window.stride[d], window.dilation[d]));
  }
  check_border(input, window.padding, border);
  for (int64_t d = 0; d < rank; ++d) {
    TORCH_CHECK(output[d] > 0, "Calculated padded input size per channel: (", spatial(padded), "). Kernel size: (",
                spatial(weight.slice(2)), ")", window.dilation[d] > 1 ? " with dilation " : "",
                window.dilation[d] > 1 ? std::to_string(window.dilation[d]) : "",
                ". Kernel size can't be greater than actual input size");
  }
  return {.batch = input[0],
          .in_channels = input[1],
          .out_channels = weight[0],
          .groups = window.groups,
          .input = spatial_extent(input.slice(2), 1),
          .kernel = spatial_extent(weight.slice(2), 1),
          .output = spatial_extent(output, 1),
          .stride = spatial_extent(window.stride, 1),
          .padding = spatial_extent(before, 0),
          .dilation = spatial_extent(window.dilation, 1),
          .border = border};
}

}  // namespace

at::DimVector sizes_of(int64_t outer, int64_t inner, const Extent& extent, int64_t rank) {
  at::DimVector sizes{outer, inner};
  sizes.append(extent.end() - rank, extent.end());
  return sizes;
}

ConvGeometry conv_geometry(at::IntArrayRef input, at::IntArrayRef weight, const Window& window) {
  check_window(weight, window);
  const auto rank = static_cast<int64_t>(weight.size()) - 2;
  TORCH_CHECK(input.size() == weight.size(), "Expected ", rank + 1, "D (unbatched) or ", rank + 2,
              "D (batched) input to conv", rank, "d, but got input of size: ", input);
  const int64_t channels = weight[1] * window.groups;
  TORCH_CHECK(input[1] == channels, "Given groups=", window.groups, ", weight of size ", weight, ", expected input",
              input, " to have ", channels, " channels, but got ", input[1], " channels instead");
  return geometry_of(input, weight, window);
}

ConvGeometry conv_transpose_geometry(at::IntArrayRef input, at::IntArrayRef weight, at::IntArrayRef output_size,
                                     const Window& window) {
  check_window(weight, window);
  const auto rank = static_cast<int64_t>(weight.size()) - 2;
  TORCH_CHECK(input.size() == weight.size(), "Expected ", rank + 1, "D (unbatched) or ", rank + 2,
              "D (batched) input to conv_transpose", rank, "d, but got input of size: ", input);
  TORCH_CHECK(input[1] == weight[0], "Given transposed=1, weight of size ", weight, ", expected input", input,
              " to have ", weight[0], " channels, but got ", input[1], " channels instead");
  TORCH_CHECK(static_cast<int64_t>(output_size.size()) == rank, "conv_transpose: expected an output_size of ", rank,
              " numbers, but got ", output_size);
  for (int64_t d = 0; d < rank; ++d) {
    TORCH_CHECK(input[2 + d] > 0, "Only zero batch or zero channel inputs are supported, but got input shape: ", input);
    TORCH_CHECK(output_size[d] > 0, "Given input size per channel: (", spatial(input.slice(2)),
                "). Calculated output size per channel: (", spatial(output_size), "). Output size is too small");
  }
  at::DimVector output{input[0], weight[1] * window.groups};
  output.append(output_size.begin(), output_size.end());
  const ConvGeometry g = geometry_of(output, weight, window);
  const at::DimVector expected = sizes_of(g.batch, g.out_channels, g.output, rank);
  TORCH_CHECK(input == expected, "conv_transpose: an output of size ", output_size, " takes an input of shape ",
              expected, ", but got ", input);
  return g;
}

void check_bias(const std::optional<at::Tensor>& bias, const at::Tensor& input, const at::Tensor& weight,
                int64_t channels) {
  if (!bias) return;
  TORCH_CHECK(bias->dim() == 1 && bias->size(0) == channels, "Given weight of size ", weight.sizes(),
              ", expected bias to be 1-dimensional with ", channels, " elements, but got bias of size ", bias->sizes(),
              " instead");
  TORCH_CHECK(bias->scalar_type() == input.scalar_type(), "Input type (", input.scalar_type(), ") and bias type (",
              bias->scalar_type(), ") should be the same");
}

}  // namespace scratchnn

// The normalization operators on the CPU: check, allocate, choose a kernel.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <optional>
#include <tuple>
#include <vector>

#include "common/tensors.h"
#include "norm/naive.h"

namespace scratchnn {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

// The order of memory an operator works in: that of the input, or the nearest one without gaps.
at::Tensor dense(const at::Tensor& tensor, at::MemoryFormat format) {
  return tensor.contiguous(format);
}

// Batch norm: all numbers of a channel share a mean and a variance.
IndexSets channel_sets(const at::Tensor& input, at::MemoryFormat format) {
  const int64_t samples = input.size(0), channels = input.size(1);
  const int64_t pixels = input.numel() == 0 ? 0 : input.numel() / (samples * channels);
  if (is_channels_last(format)) return {samples * pixels, channels, 1};
  return {samples, channels, pixels};
}

bool is_slices(const IndexSets& geometry) {
  return geometry.inner >= kShortestSlice;
}

void check_input(const at::Tensor& input) {
  TORCH_CHECK(input.dim() >= 2, "batch_norm: expected an input of at least 2 dimensions, N x C x *, but got ",
              input.dim(), " dimensions");
  TORCH_CHECK_NOT_IMPLEMENTED(at::isFloatingType(input.scalar_type()), "batch_norm: not implemented for ",
                              input.scalar_type(), " tensors");
}

// One number per channel, of the input's type, or float32 beside a narrower input.
void check_parameter(const at::Tensor& input, const at::Tensor& parameter, const char* name) {
  TORCH_CHECK(parameter.numel() == input.size(1), name, " should contain ", input.size(1), " elements not ",
              parameter.numel());
  const at::ScalarType type = parameter.scalar_type();
  const bool narrow = input.scalar_type() == at::kHalf || input.scalar_type() == at::kBFloat16;
  TORCH_CHECK(type == input.scalar_type() || (narrow && type == at::kFloat), "batch_norm: expected ", name,
              " to have the dtype of the input, ", input.scalar_type(), (narrow ? ", or Float" : ""), ", but got ",
              type);
}

void check_parameters(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias) {
  if (weight) check_parameter(input, *weight, "weight");
  if (bias) check_parameter(input, *bias, "bias");
  if (weight && bias) check_same_type(*weight, "weight", *bias, "bias", "batch_norm");
}

// A small tensor's numbers as doubles.
std::vector<double> numbers(const at::Tensor& tensor) {
  const at::Tensor values = tensor.contiguous();
  std::vector<double> result(values.numel());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, values.scalar_type(), "batch_norm", [&] {
    const scalar_t* data = values.const_data_ptr<scalar_t>();
    for (size_t i = 0; i < result.size(); ++i) result[i] = static_cast<double>(data[i]);
  });
  return result;
}

std::vector<double> numbers(const OptionalTensor& tensor, int64_t count, double otherwise) {
  return tensor ? numbers(*tensor) : std::vector<double>(count, otherwise);
}

// A small tensor of the given doubles.
void assign(const at::Tensor& tensor, const std::vector<double>& values) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, tensor.scalar_type(), "batch_norm", [&] {
    scalar_t* data = tensor.data_ptr<scalar_t>();
    for (size_t i = 0; i < values.size(); ++i) data[i] = static_cast<scalar_t>(values[i]);
  });
}

// The output, and the batch's mean and biased variance in double.
std::tuple<at::Tensor, at::Tensor, at::Tensor> batch_norm_train(const at::Tensor& input, const OptionalTensor& weight,
                                                                const OptionalTensor& bias, double eps) {
  check_input(input);
  check_parameters(input, weight, bias);
  const at::MemoryFormat format = memory_format(input);
  const at::Tensor x = dense(input, format);
  const at::Tensor y = at::empty_like(x);
  const IndexSets geometry = channel_sets(x, format);
  const auto statistics = x.options().dtype(at::kDouble);
  if (x.numel() == 0) return {y, at::zeros({geometry.sets}, statistics), at::zeros({geometry.sets}, statistics)};
  const at::Tensor mean = at::empty({geometry.sets}, statistics), variance = at::empty({geometry.sets}, statistics);
  const std::vector<double> w = numbers(weight, geometry.sets, 1), b = numbers(bias, geometry.sets, 0);
  double* m = mean.data_ptr<double>();
  double* v = variance.data_ptr<double>();
  if (use_fast_kernels(x)) {
    with_fast_type(x, [&](auto zero) {
      using T = decltype(zero);
      const auto& kernel = is_slices(geometry) ? norm_train_slices<T> : norm_train_columns<T>;
      kernel(geometry, x.const_data_ptr<T>(), y.data_ptr<T>(), w.data(), b.data(), eps, m, v);
    });
  } else {
    naive::norm_train(geometry, x, y, w.data(), b.data(), eps, m, v);
  }
  return {y, mean, variance};
}

// running = (1 - momentum) running + momentum batch, with the unbiased variance n / (n - 1). Nothing is
// learnt from an empty batch.
void batch_norm_update_(at::Tensor running_mean, at::Tensor running_var, const at::Tensor& mean,
                        const at::Tensor& variance, double momentum, int64_t count) {
  const auto check = [&](const at::Tensor& running, const char* name) {
    TORCH_CHECK(running.numel() == mean.numel(), name, " should contain ", mean.numel(), " elements not ",
                running.numel());
    TORCH_CHECK(running.dim() == 1, name, " should have one dimension, but its shape is ", running.sizes());
  };
  check(running_mean, "running_mean");
  check(running_var, "running_var");
  if (count == 0) return;
  const auto update = [&](const at::Tensor& running, const at::Tensor& batch, double factor) {
    std::vector<double> values = numbers(running);
    const std::vector<double> news = numbers(batch);
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = (1 - momentum) * values[i] + momentum * (factor * news[i]);
    }
    if (running.is_contiguous()) {
      assign(running, values);
    } else {
      const at::Tensor copy = at::empty_like(running, at::MemoryFormat::Contiguous);
      assign(copy, values);
      running.copy_(copy);
    }
  };
  const double n = static_cast<double>(count);
  update(running_mean, mean, 1);
  update(running_var, variance, n / (n - 1));
}

at::Tensor batch_norm_eval(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                           const at::Tensor& running_mean, const at::Tensor& running_var, double eps) {
  check_input(input);
  check_parameter(input, running_mean, "running_mean");
  check_parameter(input, running_var, "running_var");
  check_parameters(input, weight, bias);
  if (weight) check_same_type(*weight, "weight", running_mean, "running_mean", "batch_norm");
  const at::MemoryFormat format = memory_format(input);
  const at::Tensor x = dense(input, format);
  const at::Tensor y = at::empty_like(x);
  if (x.numel() == 0) return y;
  const IndexSets geometry = channel_sets(x, format);
  const std::vector<double> w = numbers(weight, geometry.sets, 1), b = numbers(bias, geometry.sets, 0);
  const std::vector<double> m = numbers(running_mean), v = numbers(running_var);
  if (use_fast_kernels(x)) {
    with_fast_type(x, [&](auto zero) {
      using T = decltype(zero);
      const auto& kernel = is_slices(geometry) ? norm_eval_slices<T> : norm_eval_columns<T>;
      kernel(geometry, x.const_data_ptr<T>(), y.data_ptr<T>(), w.data(), b.data(), eps, m.data(), v.data());
    });
  } else {
    naive::norm_eval(geometry, x, y, w.data(), b.data(), eps, m.data(), v.data());
  }
  return y;
}

// The gradients of input, weight and bias; the last two have the type of the weight, or else of the input,
// float32 beside a narrower one.
std::tuple<at::Tensor, at::Tensor, at::Tensor> batch_norm_backward(const at::Tensor& grad, const at::Tensor& input,
                                                                   const OptionalTensor& weight, const at::Tensor& mean,
                                                                   const at::Tensor& variance, double eps,
                                                                   bool training) {
  check_input(input);
  TORCH_CHECK(grad.sizes() == input.sizes(), "batch_norm_backward: expected grad of shape ", input.sizes(),
              ", but got ", grad.sizes());
  check_same_type(grad, "grad", input, "input", "batch_norm_backward");
  check_parameters(input, weight, std::nullopt);
  TORCH_CHECK(mean.numel() == input.size(1) && variance.numel() == input.size(1), "batch_norm_backward: expected ",
              input.size(1), " means and variances, but got ", mean.numel(), " and ", variance.numel());
  const at::MemoryFormat format = memory_format(input);
  const at::Tensor x = dense(input, format);
  const at::Tensor g = dense(grad, format);
  const at::Tensor dx = at::empty_like(x);
  const IndexSets geometry = channel_sets(x, format);
  const at::ScalarType type = weight                              ? weight->scalar_type()
                              : has_fast_kernels(x.scalar_type()) ? x.scalar_type()
                                                                  : at::kFloat;
  const auto options = x.options().dtype(type);
  if (x.numel() == 0) return {dx, at::zeros({geometry.sets}, options), at::zeros({geometry.sets}, options)};
  const std::vector<double> w = numbers(weight, geometry.sets, 1), m = numbers(mean), v = numbers(variance);
  std::vector<double> dw(geometry.sets), db(geometry.sets);
  if (use_fast_kernels(x)) {
    with_fast_type(x, [&](auto zero) {
      using T = decltype(zero);
      const auto& kernel = is_slices(geometry) ? norm_backward_slices<T> : norm_backward_columns<T>;
      kernel(geometry, g.const_data_ptr<T>(), x.const_data_ptr<T>(), dx.data_ptr<T>(), w.data(), m.data(), v.data(),
             eps, training, dw.data(), db.data());
    });
  } else {
    naive::norm_backward(geometry, g, x, dx, w.data(), m.data(), v.data(), eps, training, dw.data(), db.data());
  }
  const at::Tensor grad_weight = at::empty({geometry.sets}, options), grad_bias = at::empty({geometry.sets}, options);
  assign(grad_weight, dw);
  assign(grad_bias, db);
  return {dx, grad_weight, grad_bias};
}

}  // namespace

TORCH_LIBRARY_IMPL(scratchnn, CPU, library) {
  library.impl("batch_norm_train", batch_norm_train);
  library.impl("batch_norm_update_", batch_norm_update_);
  library.impl("batch_norm_eval", batch_norm_eval);
  library.impl("batch_norm_backward", batch_norm_backward);
}

}  // namespace scratchnn

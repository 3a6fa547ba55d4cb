// Batch normalization on the CPU: check, allocate, choose a kernel.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <optional>
#include <tuple>
#include <vector>

#include "common/tensors.h"
#include "norm/naive.h"
#include "norm/parameters.h"

namespace scratchnn {
namespace {

// The order of memory an operator works in: that of the input, or the nearest one without gaps.
at::Tensor dense(const at::Tensor& tensor, at::MemoryFormat format) {
  return tensor.contiguous(format);
}

// Batch norm: all numbers of a channel share a mean and a variance.
IndexSets channel_sets(const at::Tensor& input, at::MemoryFormat format) {
  const int64_t samples = input.size(0), channels = input.size(1);
  const int64_t pixels = input.numel() == 0 ? 0 : input.numel() / (samples * channels);
  return {samples, channels, 1, pixels, is_channels_last(format), Sharing::kBatch};
}

Interleaved in_memory(const IndexSets& sets) {
  if (sets.channels_last) return {1, sets.samples * sets.pixels, sets.groups, 1};
  return {1, sets.samples, sets.groups, sets.pixels};
}

bool is_slices(const Interleaved& geometry) {
  return geometry.inner >= kShortestSlice;
}

void check_input(const at::Tensor& input) {
  TORCH_CHECK(input.dim() >= 2, "batch_norm: expected an input of at least 2 dimensions, N x C x *, but got ",
              input.dim(), " dimensions");
  check_floating(input, "batch_norm");
}

// One number per channel.
void check_count(const at::Tensor& input, const at::Tensor& numbers, const char* name) {
  TORCH_CHECK(numbers.numel() == input.size(1), name, " should contain ", input.size(1), " elements not ",
              numbers.numel());
}

void check_parameter(const at::Tensor& input, const at::Tensor& parameter, const char* name) {
  check_count(input, parameter, name);
  check_parameter_type(input, parameter, name, "batch_norm");
}

void check_parameters(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias) {
  if (weight) check_parameter(input, *weight, "weight");
  if (bias) check_parameter(input, *bias, "bias");
  if (weight && bias) check_same_type(*weight, "weight", *bias, "bias", "batch_norm");
}

using Statistics = std::tuple<at::Tensor, at::Tensor>;

// The batch's mean and biased variance in double, and, where there is an output, that.
Statistics normalize(const at::Tensor& x, const at::Tensor* y, const OptionalTensor& weight, const OptionalTensor& bias,
                     double eps) {
  const IndexSets sets = channel_sets(x, memory_format(x));
  const int64_t channels = sets.groups;
  const at::Tensor mean = at::zeros({channels}, x.options().dtype(at::kDouble)), variance = at::zeros_like(mean);
  if (x.numel() == 0) return {mean, variance};
  const std::vector<double> w = numbers(weight, channels, 1), b = numbers(bias, channels, 0);
  double* m = mean.data_ptr<double>();
  double* v = variance.data_ptr<double>();
  if (use_fast_kernels(x)) {
    with_fast_type(x, [&](auto zero) {
      using T = decltype(zero);
      const Interleaved geometry = in_memory(sets);
      const auto& kernel = is_slices(geometry) ? norm_train_slices<T> : norm_train_columns<T>;
      T* output = y == nullptr ? nullptr : y->data_ptr<T>();
      kernel(geometry, x.const_data_ptr<T>(), output, w.data(), b.data(), eps, m, v);
    });
  } else {
    naive::norm_statistics(sets, x, m, v);
    if (y != nullptr) naive::norm_apply(sets, x, *y, w.data(), b.data(), eps, m, v);
  }
  return {mean, variance};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> batch_norm_train(const at::Tensor& input, const OptionalTensor& weight,
                                                                const OptionalTensor& bias, double eps) {
  check_input(input);
  check_parameters(input, weight, bias);
  if (is_widened(input)) {
    const auto [y, mean, variance] = batch_norm_train(input.to(at::kFloat), widened(weight), widened(bias), eps);
    return {y.to(input.scalar_type()), mean, variance};
  }
  const at::Tensor x = dense(input, memory_format(input));
  const at::Tensor y = at::empty_like(x);
  const auto [mean, variance] = normalize(x, &y, weight, bias, eps);
  return {y, mean, variance};
}

Statistics batch_norm_statistics(const at::Tensor& input) {
  check_input(input);
  const at::Tensor x = is_widened(input) ? input.to(at::kFloat) : input;
  return normalize(dense(x, memory_format(x)), nullptr, std::nullopt, std::nullopt, 0);
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
  check_count(input, running_mean, "running_mean");
  check_count(input, running_var, "running_var");
  check_parameters(input, weight, bias);
  if (is_widened(input)) {
    return batch_norm_eval(input.to(at::kFloat), widened(weight), widened(bias), running_mean, running_var, eps)
        .to(input.scalar_type());
  }
  const at::MemoryFormat format = memory_format(input);
  const at::Tensor x = dense(input, format);
  const at::Tensor y = at::empty_like(x);
  if (x.numel() == 0) return y;
  const IndexSets sets = channel_sets(x, format);
  const std::vector<double> w = numbers(weight, sets.groups, 1), b = numbers(bias, sets.groups, 0);
  const std::vector<double> m = numbers(running_mean), v = numbers(running_var);
  if (use_fast_kernels(x)) {
    with_fast_type(x, [&](auto zero) {
      using T = decltype(zero);
      const Interleaved geometry = in_memory(sets);
      const auto& kernel = is_slices(geometry) ? norm_eval_slices<T> : norm_eval_columns<T>;
      kernel(geometry, x.const_data_ptr<T>(), y.data_ptr<T>(), w.data(), b.data(), eps, m.data(), v.data());
    });
  } else {
    naive::norm_apply(sets, x, y, w.data(), b.data(), eps, m.data(), v.data());
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
  check_count(input, mean, "mean");
  check_count(input, variance, "var");
  const auto options = input.options().dtype(parameter_type(input, weight));
  if (is_widened(input)) {
    const auto [dx, dw, db] =
        batch_norm_backward(grad.to(at::kFloat), input.to(at::kFloat), widened(weight), mean, variance, eps, training);
    return {dx.to(input.scalar_type()), dw.to(options.dtype()), db.to(options.dtype())};
  }
  const at::MemoryFormat format = memory_format(input);
  const at::Tensor x = dense(input, format);
  const at::Tensor g = dense(grad, format);
  const at::Tensor dx = at::empty_like(x);
  const IndexSets sets = channel_sets(x, format);
  const int64_t channels = sets.groups;
  if (x.numel() == 0) return {dx, at::zeros({channels}, options), at::zeros({channels}, options)};
  const std::vector<double> w = numbers(weight, channels, 1), m = numbers(mean), v = numbers(variance);
  std::vector<double> dw(channels), db(channels);
  if (use_fast_kernels(x)) {
    with_fast_type(x, [&](auto zero) {
      using T = decltype(zero);
      const Interleaved geometry = in_memory(sets);
      const auto& kernel = is_slices(geometry) ? norm_backward_slices<T> : norm_backward_columns<T>;
      kernel(geometry, g.const_data_ptr<T>(), x.const_data_ptr<T>(), dx.data_ptr<T>(), w.data(), m.data(), v.data(),
             eps, training, dw.data(), db.data());
    });
  } else {
    naive::norm_backward(sets, g, x, dx, w.data(), m.data(), v.data(), eps, training, dw.data(), db.data());
  }
  const at::Tensor grad_weight = at::empty({channels}, options), grad_bias = at::empty({channels}, options);
  assign(grad_weight, dw);
  assign(grad_bias, db);
  return {dx, grad_weight, grad_bias};
}

}  // namespace

TORCH_LIBRARY_IMPL(scratchnn, CPU, library) {
  library.impl("batch_norm_train", batch_norm_train);
  library.impl("batch_norm_statistics", batch_norm_statistics);
  library.impl("batch_norm_update_", batch_norm_update_);
  library.impl("batch_norm_eval", batch_norm_eval);
  library.impl("batch_norm_backward", batch_norm_backward);
}

}  // namespace scratchnn

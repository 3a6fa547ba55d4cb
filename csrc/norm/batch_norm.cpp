// Batch normalization on the CPU: check, allocate, choose a kernel.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <limits>
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
using Outputs = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

// What follows the normalization: Ending of kernels.h, with a residual in the input's order of memory.
struct Tail {
  OptionalTensor residual;
  double low = -std::numeric_limits<double>::infinity(), high = std::numeric_limits<double>::infinity();

  template <class S>
  Ending<S> ending() const {
    return {residual ? read_pointer<S>(*residual) : nullptr, low, high};
  }
};

void check_like_input(const at::Tensor& input, const at::Tensor& tensor, const char* name) {
  TORCH_CHECK(tensor.sizes() == input.sizes(), "batch_norm: expected ", name, " of shape ", input.sizes(), ", but got ",
              tensor.sizes());
  check_same_type(tensor, name, input, "input", "batch_norm");
}

// Checked, in the order of memory that the input is brought to.
Tail tail_for(const at::Tensor& input, const OptionalTensor& residual, double low, double high) {
  TORCH_CHECK_VALUE(low <= high, "batch_norm: the lower limit, ", low, ", is above the upper one, ", high);
  if (!residual) return {std::nullopt, low, high};
  check_like_input(input, *residual, "residual");
  return {dense(*residual, memory_format(input)), low, high};
}

// The batch's mean and biased variance in the given type, and, where there is an output, that.
Statistics normalize(const at::Tensor& x, const at::Tensor* y, const OptionalTensor& weight, const OptionalTensor& bias,
                     double eps, const Tail& tail, at::ScalarType type) {
  const IndexSets sets = channel_sets(x, memory_format(x));
  const int64_t channels = sets.groups;
  const auto options = x.options().dtype(type);
  const at::Tensor mean = at::empty({channels}, options), variance = at::empty({channels}, options);
  if (x.numel() == 0) return {mean.zero_(), variance.zero_()};
  const std::vector<double> w = numbers(weight, channels, 1), b = numbers(bias, channels, 0);
  std::vector<double> means(channels), variances(channels);
  double *m = means.data(), *v = variances.data();
  if (use_vector_kernels(x)) {
    with_memory_type(x, [&](auto type) {
      using S = typename decltype(type)::type;
      const Interleaved geometry = in_memory(sets);
      const auto& kernel = is_slices(geometry) ? norm_train_slices<S> : norm_train_columns<S>;
      S* output = y == nullptr ? nullptr : write_pointer<S>(*y);
      kernel(geometry, read_pointer<S>(x), output, w.data(), b.data(), eps, m, v, tail.ending<S>());
    });
  } else {
    naive::norm_statistics(sets, x, m, v);
    if (y != nullptr) {
      naive::norm_apply(sets, x, *y, w.data(), b.data(), eps, m, v);
      naive::norm_end(*y, tail.residual, tail.low, tail.high);
    }
  }
  assign(mean, means);
  assign(variance, variances);
  return {mean, variance};
}

Outputs train(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
              const OptionalTensor& residual, double eps, double low, double high, at::ScalarType type) {
  check_input(input);
  check_parameters(input, weight, bias);
  const at::Tensor x = dense(input, memory_format(input));
  const Tail tail = tail_for(input, residual, low, high);
  const at::Tensor y = at::empty_like(x);
  const auto [mean, variance] = normalize(x, &y, weight, bias, eps, tail, type);
  return {y, mean, variance};
}

// With statistics in double: the output is computed from them again in the backward pass.
Outputs batch_norm_add_clamp_train(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                                   const OptionalTensor& residual, double eps, double low, double high) {
  return train(input, weight, bias, residual, eps, low, high, at::kDouble);
}

Outputs batch_norm_train(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias, double eps,
                         bool in_double) {
  const Tail none;
  const at::ScalarType type = in_double ? at::kDouble : statistics_type(input);
  return train(input, weight, bias, std::nullopt, eps, none.low, none.high, type);
}

Statistics batch_norm_statistics(const at::Tensor& input) {
  check_input(input);
  return normalize(dense(input, memory_format(input)), nullptr, std::nullopt, std::nullopt, 0, Tail(), at::kDouble);
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

at::Tensor batch_norm_add_clamp(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                                const at::Tensor& mean, const at::Tensor& var, const OptionalTensor& residual,
                                double eps, double low, double high) {
  check_input(input);
  if (input.numel() > 0) {  // without numbers, torch takes any statistics: there is nothing to normalize
    check_count(input, mean, "running_mean");
    check_count(input, var, "running_var");
  }
  check_parameters(input, weight, bias);
  const at::Tensor x = dense(input, memory_format(input));
  const Tail tail = tail_for(input, residual, low, high);
  const at::Tensor y = at::empty_like(x);
  if (x.numel() == 0) return y;
  const IndexSets sets = channel_sets(x, memory_format(x));
  const std::vector<double> w = numbers(weight, sets.groups, 1), b = numbers(bias, sets.groups, 0);
  const std::vector<double> m = numbers(mean), v = numbers(var);
  if (use_vector_kernels(x)) {
    with_memory_type(x, [&](auto type) {
      using S = typename decltype(type)::type;
      const Interleaved geometry = in_memory(sets);
      const auto& kernel = is_slices(geometry) ? norm_eval_slices<S> : norm_eval_columns<S>;
      kernel(geometry, read_pointer<S>(x), write_pointer<S>(y), w.data(), b.data(), eps, m.data(), v.data(),
             tail.ending<S>());
    });
  } else {
    naive::norm_apply(sets, x, y, w.data(), b.data(), eps, m.data(), v.data());
    naive::norm_end(y, tail.residual, tail.low, tail.high);
  }
  return y;
}

at::Tensor batch_norm_eval(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                           const at::Tensor& running_mean, const at::Tensor& running_var, double eps) {
  const Tail none;
  return batch_norm_add_clamp(input, weight, bias, running_mean, running_var, std::nullopt, eps, none.low, none.high);
}

// The first number of each channel of a dense tensor: near enough to the mean for sums to run around it.
std::vector<double> first_numbers(const at::Tensor& x) {
  return numbers(x.select(0, 0).reshape({x.size(1), -1}).select(1, 0));
}

// The gradients of input, weight, bias and residual. Those of weight and bias have the type of the weight, or else of
// the input, float32 beside a narrower one. That of the residual is grad within the limits; it is written where there
// is a residual or an output, whichever the limits are seen by, and is else empty. In training, statistics in double
// are taken as exact, and others measure the mean again; it need not be given then.
//
// `in_place`: grad becomes that of the input, and a residual its own.
using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

Gradients backward(const at::Tensor& grad, const at::Tensor& input, const OptionalTensor& weight,
                   const OptionalTensor& bias, const OptionalTensor& mean, const at::Tensor& variance,
                   const OptionalTensor& residual, const OptionalTensor& output, double eps, double low, double high,
                   bool training, bool in_place = false) {
  check_input(input);
  TORCH_CHECK(grad.sizes() == input.sizes(), "batch_norm_backward: expected grad of shape ", input.sizes(),
              ", but got ", grad.sizes());
  check_same_type(grad, "grad", input, "input", "batch_norm_backward");
  check_parameters(input, weight, bias);
  if (mean) check_count(input, *mean, "mean");
  check_count(input, variance, "var");
  TORCH_CHECK(mean || training, "batch_norm_backward: expected a mean beside a given variance");
  const bool exact = mean && mean->scalar_type() == at::kDouble;
  const Origin origin = !training ? Origin::kConstants : exact ? Origin::kExact : Origin::kRounded;
  const auto options = input.options().dtype(parameter_type(input, weight));
  const at::MemoryFormat format = memory_format(input);
  const at::Tensor x = dense(input, format), g = dense(grad, format);
  const Tail tail = tail_for(input, residual, low, high);
  OptionalTensor y;
  if (output) {
    check_like_input(input, *output, "output");
    y = dense(*output, format);
  }
  const Tail none;
  const bool limited = low > none.low || high < none.high;
  if (in_place) {
    TORCH_CHECK(!y, "batch_norm_backward: an output is not overwritten");
    TORCH_CHECK(grad.strides() == x.strides() && (!residual || residual->strides() == x.strides()),
                "batch_norm_backward: expected grad and residual in the input's order of memory, to overwrite them");
  }
  const at::Tensor dx = in_place ? grad : at::empty_like(x);
  const bool apart = limited && (residual || output);
  const at::Tensor passed = !apart ? dx : in_place ? *residual : at::empty_like(x);
  const at::Tensor none_written = at::empty({0}, input.options());
  const IndexSets sets = channel_sets(x, format);
  const int64_t channels = sets.groups;
  std::vector<double> dw(channels), db(channels);
  if (x.numel() > 0) {
    const std::vector<double> w = numbers(weight, channels, 1), b = numbers(bias, channels, 0);
    const std::vector<double> m = mean ? numbers(*mean) : first_numbers(x), v = numbers(variance);
    if (use_vector_kernels(x)) {
      with_memory_type(x, [&](auto type) {
        using S = typename decltype(type)::type;
        const Interleaved geometry = in_memory(sets);
        const auto& kernel = is_slices(geometry) ? norm_backward_slices<S> : norm_backward_columns<S>;
        const Gate<S> gate = {b.data(), y ? read_pointer<S>(*y) : nullptr,
                              limited ? write_pointer<S>(passed) : nullptr};
        kernel(geometry, read_pointer<S>(g), read_pointer<S>(x), write_pointer<S>(dx), w.data(), m.data(), v.data(),
               eps, origin, dw.data(), db.data(), tail.ending<S>(), gate);
      });
    } else {
      at::Tensor arriving = g.is_same(dx) ? g.clone() : g;
      if (limited) {
        const at::Tensor sum = y ? *y : at::empty_like(x);
        if (!y) {
          naive::norm_apply(sets, x, sum, w.data(), b.data(), eps, m.data(), v.data());
          naive::norm_end(sum, tail.residual, none.low, none.high);
        }
        naive::norm_end_backward(g, sum, low, high, passed);
        arriving = passed.is_same(dx) ? passed.clone() : passed;
      }
      naive::norm_backward(sets, arriving, x, dx, w.data(), m.data(), v.data(), eps, training, dw.data(), db.data());
    }
  }
  const at::Tensor grad_weight = at::empty({channels}, options), grad_bias = at::empty({channels}, options);
  assign(grad_weight, dw);
  assign(grad_bias, db);
  return {dx, grad_weight, grad_bias, passed.is_same(dx) ? none_written : passed};
}

Gradients batch_norm_add_clamp_backward(const at::Tensor& grad, const at::Tensor& input, const OptionalTensor& weight,
                                        const OptionalTensor& bias, const at::Tensor& mean, const at::Tensor& variance,
                                        const OptionalTensor& residual, const OptionalTensor& output, double eps,
                                        double low, double high, bool training) {
  return backward(grad, input, weight, bias, mean, variance, residual, output, eps, low, high, training);
}

Statistics batch_norm_add_clamp_backward_(at::Tensor grad, const at::Tensor& input, const OptionalTensor& weight,
                                          const OptionalTensor& bias, const at::Tensor& mean,
                                          const at::Tensor& variance, OptionalTensor residual, double eps, double low,
                                          double high, bool training) {
  const auto [dx, dw, db, g] =
      backward(grad, input, weight, bias, mean, variance, residual, std::nullopt, eps, low, high, training, true);
  return {dw, db};
}

Outputs batch_norm_backward(const at::Tensor& grad, const at::Tensor& input, const OptionalTensor& weight,
                            const OptionalTensor& mean, const at::Tensor& variance, double eps, bool training) {
  const Tail none;
  const auto [dx, dw, db, unused] = backward(grad, input, weight, std::nullopt, mean, variance, std::nullopt,
                                             std::nullopt, eps, none.low, none.high, training);
  return {dx, dw, db};
}

Statistics batch_norm_backward_(at::Tensor grad, const at::Tensor& input, const OptionalTensor& weight,
                                const OptionalTensor& mean, const at::Tensor& variance, double eps, bool training) {
  const Tail none;
  const auto [dx, dw, db, unused] = backward(grad, input, weight, std::nullopt, mean, variance, std::nullopt,
                                             std::nullopt, eps, none.low, none.high, training, true);
  return {dw, db};
}

}  // namespace

TORCH_LIBRARY_IMPL(scratchnn, CPU, library) {
  library.impl("batch_norm_train", batch_norm_train);
  library.impl("batch_norm_statistics", batch_norm_statistics);
  library.impl("batch_norm_update_", batch_norm_update_);
  library.impl("batch_norm_eval", batch_norm_eval);
  library.impl("batch_norm_backward", batch_norm_backward);
  library.impl("batch_norm_backward_", batch_norm_backward_);
  library.impl("batch_norm_add_clamp_train", batch_norm_add_clamp_train);
  library.impl("batch_norm_add_clamp", batch_norm_add_clamp);
  library.impl("batch_norm_add_clamp_backward", batch_norm_add_clamp_backward);
  library.impl("batch_norm_add_clamp_backward_", batch_norm_add_clamp_backward_);
}

}  // namespace scratchnn

// What the normalization operators share: checks of weights and biases, and their numbers as doubles.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "common/tensors.h"

namespace scratchnn {

using OptionalTensor = std::optional<at::Tensor>;

// Parameters have the type of the input, or float32 beside a narrower one.
inline void check_parameter_type(const at::Tensor& input, const at::Tensor& parameter, const char* name,
                                 const char* operation) {
  const at::ScalarType type = parameter.scalar_type();
  const bool narrow = input.scalar_type() == at::kHalf || input.scalar_type() == at::kBFloat16;
  TORCH_CHECK(type == input.scalar_type() || (narrow && type == at::kFloat), operation, ": expected ", name,
              " to have the dtype of the input, ", input.scalar_type(), (narrow ? ", or Float" : ""), ", but got ",
              type);
}

// The type of the gradients of weight and bias: the weight's, or else the input's, float32 beside a narrower one.
inline at::ScalarType parameter_type(const at::Tensor& input, const OptionalTensor& weight) {
  if (weight) return weight->scalar_type();
  return has_fast_kernels(input.scalar_type()) ? input.scalar_type() : at::kFloat;
}

inline void check_floating(const at::Tensor& input, const char* operation) {
  TORCH_CHECK_NOT_IMPLEMENTED(at::isFloatingType(input.scalar_type()), operation, ": not implemented for ",
                              input.scalar_type(), " tensors");
}

// A small tensor's numbers as doubles.
inline std::vector<double> numbers(const at::Tensor& tensor) {
  const at::Tensor values = tensor.contiguous();
  std::vector<double> result(values.numel());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, values.scalar_type(), "norm", [&] {
    const scalar_t* data = values.const_data_ptr<scalar_t>();
    for (size_t i = 0; i < result.size(); ++i) result[i] = static_cast<double>(data[i]);
  });
  return result;
}

inline std::vector<double> numbers(const OptionalTensor& tensor, int64_t count, double otherwise) {
  return tensor ? numbers(*tensor) : std::vector<double>(count, otherwise);
}

// What mean and variance are kept in: the input's type, float32 at the least.
inline at::ScalarType statistics_type(const at::Tensor& input) {
  return input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// A small tensor of the given doubles.
inline void assign(const at::Tensor& tensor, const std::vector<double>& values) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, tensor.scalar_type(), "norm", [&] {
    scalar_t* data = tensor.data_ptr<scalar_t>();
    for (size_t i = 0; i < values.size(); ++i) data[i] = static_cast<scalar_t>(values[i]);
  });
}

}  // namespace scratchnn

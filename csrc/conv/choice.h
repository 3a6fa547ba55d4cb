// Which algorithm computes a convolution: a function of its geometry and type, never of batch size, thread count
// or a timing race.
#pragma once

#include <c10/core/ScalarType.h>
#include <c10/util/ArrayRef.h>

#include <optional>
#include <string>
#include <string_view>
#include <tuple>

#include "common/dispatch.h"
#include "conv/geometry.h"

namespace scratchnn {

enum class ConvAlgorithm { kImplicitGemm, kMatrixUnit, kDepthwise, kGrouped, kWinograd, kNarrowWinograd };

struct ConvChoice {
  ConvAlgorithm algorithm;
  const char* reason;  // the end of a sentence, for people: scratchnn.explain
};

ConvChoice choose_algorithm(const ConvGeometry& geometry, at::ScalarType type);

// The name of the algorithm that the operators take for a convolution with an input and a weight of these sizes, and
// why. It is the same for the forward pass and both gradients. (In conv.cpp, beside the operators.)
std::tuple<std::string, std::string> explain_conv(at::IntArrayRef input, at::IntArrayRef weight, at::IntArrayRef stride,
                                                  at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                                                  std::string_view padding_mode, at::ScalarType type);

// Whether Winograd may be chosen at all, in the whole process. Gives back what was in force before the call.
bool allow_winograd(std::optional<bool> allow);

}  // namespace scratchnn

// Which algorithm computes a convolution: a function of its geometry and type, never of batch size, thread count
// or a timing race.
#pragma once

#include <optional>

#include "common/dispatch.h"
#include "conv/geometry.h"

namespace scratchnn {

enum class ConvAlgorithm { kImplicitGemm, kDepthwise, kWinograd };

ConvAlgorithm choose_algorithm(const ConvGeometry& geometry, bool is_float32);

// The instruction set to compute it with: register tiles of AVX-512 are too wide for layers of few channels.
InstructionSet choose_instruction_set(const ConvGeometry& geometry, bool is_float32);

// Whether Winograd may be chosen at all, in the whole process. Gives back what was in force before the call.
bool allow_winograd(std::optional<bool> allow);

}  // namespace scratchnn

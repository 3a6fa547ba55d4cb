// Which algorithm computes a convolution: a function of its geometry and type, never of batch size, thread count
// or a timing race.
#pragma once

#include "conv/geometry.h"

namespace scratchnn {

enum class ConvAlgorithm { kImplicitGemm, kDepthwise, kWinograd };

ConvAlgorithm choose_algorithm(const ConvGeometry& geometry, bool is_float32);

// Whether Winograd may be chosen at all, for the whole process; sets it and gives back what was in force before.
bool allow_winograd(bool allow);

}  // namespace scratchnn

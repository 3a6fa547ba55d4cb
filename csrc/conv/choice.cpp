#include "conv/choice.h"

#include <algorithm>
#include <atomic>

namespace scratchnn {
namespace {

std::atomic<bool> winograd_allowed = true;

// The Winograd kernels work on whole register tiles of channels: 32, 64 and 128 bytes, twice a vector.
int64_t winograd_channels(InstructionSet set) {
  switch (set) {
    case InstructionSet::AVX512:
      return 32;
    case InstructionSet::AVX2:
      return 16;
    default:
      return 8;
  }
}

bool is_depthwise(const ConvGeometry& g) {
  return g.groups > 1 && g.group_in() == 1 && g.group_out() == 1;
}

// 36 multiplications a tile of up to 4x4 outputs, against 9 an output, must save more than the transforms cost:
// maps of 2x2 and less do not.
bool tiles_pay(const ConvGeometry& g) {
  const int64_t tiles = ((g.output[1] + 3) / 4) * ((g.output[2] + 3) / 4);
  return 3 * 36 * tiles <= 2 * 9 * g.output[1] * g.output[2];
}

bool winograd_serves(const ConvGeometry& g) {
  const Extent ones{1, 1, 1};
  const int64_t unit = winograd_channels(choose_instruction_set(g, true));
  return g.kernel == Extent{1, 3, 3} && g.stride == ones && g.dilation == ones && g.input[0] == 1 && g.groups == 1 &&
         g.in_channels >= 16 && g.out_channels >= 16 && g.in_channels % unit == 0 && g.out_channels % unit == 0 &&
         tiles_pay(g);
}

}  // namespace

ConvAlgorithm choose_algorithm(const ConvGeometry& geometry, bool is_float32) {
  if (is_depthwise(geometry)) return ConvAlgorithm::kDepthwise;
  if (is_float32 && winograd_allowed && winograd_serves(geometry)) return ConvAlgorithm::kWinograd;
  return ConvAlgorithm::kImplicitGemm;
}

InstructionSet choose_instruction_set(const ConvGeometry& geometry, bool is_float32) {
  const int64_t wide_tile = is_float32 ? 32 : 16;  // channels of a register tile of AVX-512
  const bool narrow = std::min(geometry.group_in(), geometry.group_out()) <= wide_tile;
  return narrow && !is_depthwise(geometry) ? std::min(active_instruction_set(), InstructionSet::AVX2) : active_instruction_set();
}

bool allow_winograd(std::optional<bool> allow) {
  return allow ? winograd_allowed.exchange(*allow) : winograd_allowed.load();
}

}  // namespace scratchnn

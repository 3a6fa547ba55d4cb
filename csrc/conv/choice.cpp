#include "conv/choice.h"

#include <algorithm>
#include <atomic>

#include "common/runtime.h"

namespace scratchnn {
namespace {

std::atomic<bool> winograd_allowed = true;

// The Winograd kernels work on whole vectors of channels, those for AVX2 and before on two at a time.
int64_t winograd_channels(InstructionSet set, at::ScalarType type) {
  const int64_t bytes = set == InstructionSet::DEFAULT ? 32 : 64;
  return bytes / (type == at::kDouble ? 8 : 4);  // half precision is summed in float32
}

bool is_depthwise(const ConvGeometry& g) {
  return g.groups > 1 && g.group_in() == 1 && g.group_out() == 1;
}

// The most channels of a group, in or out, that are too few for matrix products: they would leave much of a register
// tile of 16 columns empty, or of the second of two. A tile of AVX-512 may be half as wide as its 32.
bool has_small_groups(const ConvGeometry& g) {
  const int64_t few = active_instruction_set() == InstructionSet::AVX512 ? 8 : 24;
  return g.groups > 1 && g.group_in() <= few && g.group_out() <= few;
}

// 36 multiplications a tile of up to 4x4 outputs, against 9 an output, must save more than the transforms cost:
// maps of 2x2 and less do not.
bool tiles_pay(const ConvGeometry& g) {
  const int64_t tiles = ((g.output[1] + 3) / 4) * ((g.output[2] + 3) / 4);
  return 3 * 36 * tiles <= 2 * 9 * g.output[1] * g.output[2];
}

// Why Winograd's kernels cannot, or should not, compute this; null where they do.
const char* winograd_refuses(const ConvGeometry& g, at::ScalarType type) {
  const Extent ones{1, 1, 1};
  const int64_t unit = winograd_channels(active_instruction_set(), type);
  if (g.kernel[1] != 3 || g.kernel[2] != 3) return "it serves every kernel; Winograd's serves 3x3 in height and width";
  if (g.stride != ones || g.dilation != ones) return "it serves every stride and dilation; Winograd's has 1 for both";
  if (g.groups != 1) return "it serves groups of channels; Winograd's does not";
  if (g.in_channels < 16 || g.out_channels < 16 || g.in_channels % unit != 0 || g.out_channels % unit != 0) {
    return unit == 16  ? "Winograd's takes multiples of 16 channels on this processor"
           : unit == 8 ? "Winograd's takes multiples of 8 channels on this processor, from 16 on"
                       : "Winograd's takes multiples of 4 channels on this processor, from 16 on";
  }
  if (!tiles_pay(g)) return "the map is too small for Winograd's tiles of 4x4";
  return winograd_allowed ? nullptr : "scratchnn.backends.conv.allow_winograd is off";
}

}  // namespace

ConvChoice choose_algorithm(const ConvGeometry& geometry, at::ScalarType type) {
  if (is_depthwise(geometry)) {
    return {ConvAlgorithm::kDepthwise, "each channel has a filter of its own: there is no matrix to multiply"};
  }
  if (has_small_groups(geometry)) {
    return {ConvAlgorithm::kGrouped, "its groups have too few channels to fill the tiles of matrix products"};
  }
  if (type == at::kBFloat16 && has_matrix_unit()) {
    return {ConvAlgorithm::kMatrixUnit, "this processor multiplies matrices of bfloat16 as a whole"};
  }
  const char* refused = winograd_refuses(geometry, type);
  if (refused != nullptr) return {ConvAlgorithm::kImplicitGemm, refused};
  return {ConvAlgorithm::kWinograd,
          geometry.kernel[0] == 1
              ? "it takes a quarter of the multiplications of a 3x3 kernel of stride 1"
              : "it takes a quarter of the multiplications of a kernel of stride 1, 3x3 in height and width"};
}

bool allow_winograd(std::optional<bool> allow) {
  return allow ? winograd_allowed.exchange(*allow) : winograd_allowed.load();
}

}  // namespace scratchnn

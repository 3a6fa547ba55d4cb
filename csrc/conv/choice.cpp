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

// Whether a Winograd convolution has few channels, or groups of few, of a number that the kernels for those take: they
// have from one vector to 256 bytes of numbers at a time, which are one group's, or of several that fill a vector.
bool is_narrow(const ConvGeometry& g, at::ScalarType type) {
  const int64_t size = type == at::kDouble ? 8 : 4, channels = g.group_in();
  const InstructionSet set = active_instruction_set();
  const int64_t lanes = (set == InstructionSet::AVX512 ? 64 : set == InstructionSet::AVX2 ? 32 : 16) / size;
  const bool has_width = channels == 8 || channels == 16 || channels == 32 || channels == 64;
  if (g.kernel[0] != 1 || g.padding[0] != 0 || g.group_out() != channels || !has_width) return false;
  if (channels * size > 256 || g.in_channels % std::max(lanes, channels) != 0) return false;
  return g.groups > 1 || channels >= 16;
}

// Why Winograd's kernels cannot, or should not, compute this; null where they do.
const char* winograd_refuses(const ConvGeometry& g, at::ScalarType type) {
  const Extent ones{1, 1, 1};
  const int64_t unit = winograd_channels(active_instruction_set(), type);
  if (g.kernel[1] != 3 || g.kernel[2] != 3) return "it serves every kernel; Winograd's serves 3x3 in height and width";
  if (g.stride != ones || g.dilation != ones) return "it serves every stride and dilation; Winograd's has 1 for both";
  const bool narrow = is_narrow(g, type);
  if (g.groups != 1 && !narrow) {
    return "it serves every kind of groups; Winograd's serves 8, 16, 32 or 64 channels in each, as many out as in";
  }
  const auto is_taken = [&](int64_t channels) { return channels >= 16 && channels % unit == 0; };
  if (!narrow && !(is_taken(g.in_channels) && is_taken(g.out_channels))) {
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
  const bool matrix_unit = type == at::kBFloat16 && has_matrix_unit();
  const char* refused = winograd_refuses(geometry, type);
  if (refused == nullptr && is_narrow(geometry, type) && !(matrix_unit && geometry.group_in() > 8)) {
    return {ConvAlgorithm::kNarrowWinograd, "it takes a quarter of the multiplications of a 3x3 kernel of stride 1"};
  }
  if (has_small_groups(geometry)) {
    return {ConvAlgorithm::kGrouped, "its groups have too few channels to fill the tiles of matrix products"};
  }
  if (matrix_unit) {
    return {ConvAlgorithm::kMatrixUnit, "this processor multiplies matrices of bfloat16 as a whole"};
  }
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

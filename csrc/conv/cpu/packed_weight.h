// The weight, packed once per call into the right matrix of the products: panels of kTileColumns output channels.
#pragma once

#include <algorithm>
#include <vector>

#include "common/gemm.h"
#include "common/runtime.h"
#include "conv/cpu/band.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {

// A weight as the right matrix: for each group and panel, `reduction` rows of kTileColumns numbers E, and the bias of
// each column. Columns beyond the last channel are zero. Where a step takes two numbers (gemm.h), rows come in pairs.
template <class E>
struct PackedWeight {
  using T = Wide<E>;
  const E* data;
  const T* bias;
  int64_t panels;     // in a group
  int64_t reduction;  // taps x channels summed over

  const E* panel(int64_t group, int64_t index) const {
    return data + (group * panels + index) * reduction * kTileColumns<T>;
  }
  const T* bias_of(int64_t group, int64_t index) const { return bias + (group * panels + index) * kTileColumns<T>; }
};

// The weight seen from one pass: summed over `sum` channels, giving `out` channels, in each group.
template <class S>
struct Operand {
  Filters<const S> filters;
  int64_t sum, sum_stride;
  int64_t out, out_stride;
  int64_t group_stride;
};

// In the forward pass the sum runs over the input channels of a group ...
template <class S>
Operand<S> forward_operand(const ConvGeometry& g, const Filters<const S>& weight) {
  return {weight, g.group_in(), weight.in_stride, g.group_out(), weight.out_stride, g.group_out() * weight.out_stride};
}

// ... and in the input gradient over its output channels.
template <class S>
Operand<S> input_grad_operand(const ConvGeometry& g, const Filters<const S>& weight) {
  return {weight, g.group_out(), weight.out_stride, g.group_in(), weight.in_stride, g.group_out() * weight.out_stride};
}

// How many elements pack() writes.
template <class S>
int64_t packed_size(const Operand<S>& w, int64_t groups, int64_t taps) {
  const int64_t panels = (w.out + kTileColumns<Wide<S>> - 1) / kTileColumns<Wide<S>>;
  return groups * panels * (taps * w.sum + 1) * kTileColumns<Wide<S>>;
}

// memory[q / 2][k][q % 2] = rows[q][k], which are bfloat16 numbers.
inline void pair_rows(const float* rows, int64_t reduction, BFloat16* memory) {
  constexpr int64_t columns = kTileColumns<float>;
  for (int64_t q = 0; q < reduction; q += 2, rows += 2 * columns, memory += 2 * columns) {
    for (int64_t k = 0; k < columns; k += kLanes<float>) {
      const FloatBits pairs = (FloatBits)load(rows + k) >> 16 | (FloatBits)load(rows + columns + k);
      std::memcpy(memory + 2 * k, &pairs, sizeof(pairs));
    }
  }
}

// Panel `index` of a group: its rows to `data`, the bias of each column to `biases`.
template <class E, class S>
void pack_panel(const Operand<S>& w, const std::vector<Tap>& taps, const S* bias, int64_t group, int64_t index, E* data,
                Wide<S>* biases) {
  using T = Wide<S>;
  constexpr int64_t columns = kTileColumns<T>;
  const int64_t tap_count = static_cast<int64_t>(taps.size()), reduction = tap_count * w.sum;
  const int64_t channel = index * columns, count = std::min(columns, w.out - channel);
  const S* from = w.filters.data + group * w.group_stride + channel * w.out_stride;
  T* to;
  if constexpr (std::is_same_v<E, T>) {
    to = data;
  } else {
    to = scratch<T>(reduction * columns);
  }
  if (count < columns) std::fill(to, to + reduction * columns, T(0));
  for (int64_t t = 0; t < tap_count; ++t) {
    const S* tap = from + taps[t].weight * w.filters.tap_stride;
    T* rows = to + t * w.sum * columns;
    if (w.out_stride == 1) {
      for (int64_t c = 0; c < w.sum; ++c) copy_numbers(tap + c * w.sum_stride, count, rows + c * columns);
    } else if (w.sum_stride == 1) {
      transpose_block(tap, w.out_stride, rows, columns, count, w.sum);
    } else {
      for (int64_t k = 0; k < count; ++k) {
        for (int64_t c = 0; c < w.sum; ++c) {
          rows[c * columns + k] = read_one(tap + k * w.out_stride + c * w.sum_stride);
        }
      }
    }
  }
  if constexpr (!std::is_same_v<E, T>) pair_rows(to, reduction, data);
  for (int64_t k = 0; k < columns; ++k) {
    biases[k] = bias != nullptr && k < count ? read_one(bias + group * w.out + channel + k) : T(0);
  }
}

template <class E, class S>
PackedWeight<E> pack(const Operand<S>& w, int64_t groups, const std::vector<Tap>& taps, const S* bias,
                     Wide<S>* memory) {
  using T = Wide<S>;
  constexpr int64_t columns = kTileColumns<T>;
  const int64_t panels = (w.out + columns - 1) / columns;
  const int64_t reduction = static_cast<int64_t>(taps.size()) * w.sum;
  E* data = reinterpret_cast<E*>(memory);
  T* biases = memory + groups * panels * reduction * columns;
  const int64_t grain = 1 + 32768 / std::max<int64_t>(1, reduction * columns);
  parallel_for(0, groups * panels, grain, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      pack_panel(w, taps, bias, i / panels, i % panels, data + i * reduction * columns, biases + i * columns);
    }
  });
  return {data, biases, panels, reduction};
}

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

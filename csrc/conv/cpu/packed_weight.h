// The weight, packed once per call into the right matrix of the products: panels of kTileColumns output channels.
#pragma once

#include <algorithm>
#include <vector>

#include "common/gemm.h"
#include "common/runtime.h"
#include "conv/cpu/band.h"
#include "conv/cpu/matrix_unit.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {

// Rows of a panel are as many as whole steps of a matrix unit take, where it may be one that multiplies.
template <class E>
constexpr int64_t kRowsTogether = kHasMatrixUnit<E> ? kUnitDepth : 1;

// A weight as the right matrix: for each group and panel, `reduction` rows of kTileColumns numbers E, and the bias of
// each column. Rows and columns beyond the last are zero. Where a step takes two numbers (gemm.h), rows come in pairs.
template <class E>
struct PackedWeight {
  using T = Wide<E>;
  const E* data;
  const T* bias;
  int64_t panels;     // in a group
  int64_t reduction;  // taps x channels summed over, in whole steps

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
  return groups * panels * (round_up(taps * w.sum, kRowsTogether<S>) + 1) * kTileColumns<Wide<S>>;
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

// Calls store(q, numbers) for each q < length, numbers being those of `count` rows, at most kLanes: zeros after the
// last.
template <class S, class Store>
SCRATCHNN_INLINE void for_each_column(const S* rows, int64_t stride, int64_t count, int64_t length,
                                      const Store& store) {
  using T = Wide<S>;
  constexpr int64_t lanes = kLanes<T>;
  for (int64_t q = 0; q < length; q += lanes) {
    const int64_t columns = std::min(lanes, length - q);
    Vec<T> block[lanes] = {};
    for (int64_t r = 0; r < std::min(lanes, count); ++r) {
      const S* from = rows + r * stride + q;
      block[r] = columns == lanes ? read(from) : read_partial(from, columns);
    }
    transpose<T>(block);
    for (int64_t i = 0; i < columns; ++i) store(q + i, block[i]);
  }
}

// The rows of all taps for `count` output channels, the columns of a panel. Filters are read in the order they lie in.
template <class S>
void pack_taps(const Operand<S>& w, const std::vector<Tap>& taps, const S* from, int64_t count, Wide<S>* rows) {
  using T = Wide<S>;
  constexpr int64_t columns = kTileColumns<T>, lanes = kLanes<T>;
  if (w.sum == 0) return;
  if (w.out_stride == 1 || w.sum_stride == 1) {
    for (const Tap& tap : taps) {
      const S* filters = from + tap.weight * w.filters.tap_stride;
      if (w.out_stride == 1) {
        for (int64_t c = 0; c < w.sum; ++c) copy_numbers(filters + c * w.sum_stride, count, rows + c * columns);
      } else {
        transpose_block(filters, w.out_stride, rows, columns, count, w.sum);
      }
      rows += w.sum * columns;
    }
    return;
  }
  // Contiguous filters: all taps of a pair of channels side by side. place[t] is where those rows of tap t begin.
  const int64_t all_taps = std::min(w.sum_stride, w.out_stride);
  std::vector<T*> place(static_cast<size_t>(all_taps));
  for (const Tap& tap : taps) {
    place[static_cast<size_t>(tap.weight)] = rows;
    rows += w.sum * columns;
  }
  for (int64_t k = 0; k < count; k += lanes) {
    const S* first = from + k * w.out_stride;
    const auto put = [&](int64_t tap, int64_t c, Vec<T> numbers) __attribute__((always_inline)) {
      T* to = place[static_cast<size_t>(tap)];
      if (to != nullptr) store(to + c * columns + k, numbers);
    };
    if (w.sum_stride == all_taps) {
      int64_t tap = 0, c = 0;
      for_each_column(first, w.out_stride, count - k, w.sum * all_taps, [&](int64_t, Vec<T> numbers) {
        put(tap, c, numbers);
        if (++tap == all_taps) {
          tap = 0;
          ++c;
        }
      });
    } else {
      for (int64_t c = 0; c < w.sum; ++c) {
        for_each_column(first + c * w.sum_stride, w.out_stride, count - k, all_taps,
                        [&](int64_t tap, Vec<T> numbers) { put(tap, c, numbers); });
      }
    }
  }
}

// The same in pairs, where the two of each are neighbours in memory or lie in neighbouring rows. False where not.
template <class S>
bool pack_pairs(const Operand<S>& w, const std::vector<Tap>& taps, const S* from, int64_t count, S* pairs) {
  using T = Wide<S>;
  constexpr int64_t columns = kTileColumns<T>;
  const bool neighbours = w.sum_stride == 1 && w.out_stride % 2 == 0 && w.filters.tap_stride % 2 == 0;
  if (w.sum % 2 != 0 || !(neighbours || w.out_stride == 1)) return false;
  for (const Tap& tap : taps) {
    const S* filters = from + tap.weight * w.filters.tap_stride;
    if (neighbours) {  // they move like single numbers of twice their size
      transpose_block(reinterpret_cast<const T*>(filters), w.out_stride / 2, reinterpret_cast<T*>(pairs), columns,
                      count, w.sum / 2);
    } else {
      for (int64_t c = 0; c < w.sum; c += 2) {
        const S* even = filters + c * w.sum_stride;
        for (int64_t k = 0; k < count; k += kLanes<T>) {
          const Vec<T> numbers = load_pairs(even + k, even + w.sum_stride + k, count - k);
          std::memcpy(pairs + 2 * (c / 2 * columns + k), &numbers, sizeof(numbers));
        }
      }
    }
    pairs += w.sum * columns;
  }
  return true;
}

// Panel `index` of a group: its rows to `data`, the bias of each column to `biases`.
template <class E, class S>
void pack_panel(const Operand<S>& w, const std::vector<Tap>& taps, const S* bias, int64_t group, int64_t index, E* data,
                Wide<S>* biases) {
  using T = Wide<S>;
  constexpr int64_t columns = kTileColumns<T>;
  const int64_t used = static_cast<int64_t>(taps.size()) * w.sum, reduction = round_up(used, kRowsTogether<E>);
  const int64_t channel = index * columns, count = std::min(columns, w.out - channel);
  for (int64_t k = 0; k < columns; ++k) {
    biases[k] = bias != nullptr && k < count ? read_one(bias + group * w.out + channel + k) : T(0);
  }
  const S* from = w.filters.data + group * w.group_stride + channel * w.out_stride;
  const bool fills = count < columns || used < reduction;
  if constexpr (std::is_same_v<E, T>) {
    if (fills) std::fill(data, data + reduction * columns, T(0));
    pack_taps(w, taps, from, count, data);
  } else {
    if (fills) std::fill(data, data + reduction * columns, E());
    if (pack_pairs(w, taps, from, count, data)) return;
    T* rows = scratch<T>(reduction * columns);
    if (fills) std::fill(rows, rows + reduction * columns, T(0));
    pack_taps(w, taps, from, count, rows);
    pair_rows(rows, reduction, data);
  }
}

template <class E, class S>
PackedWeight<E> pack(const Operand<S>& w, int64_t groups, const std::vector<Tap>& taps, const S* bias,
                     Wide<S>* memory) {
  using T = Wide<S>;
  constexpr int64_t columns = kTileColumns<T>;
  const int64_t panels = (w.out + columns - 1) / columns;
  const int64_t reduction = round_up(static_cast<int64_t>(taps.size()) * w.sum, kRowsTogether<E>);
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

// The weights of several phases of a stride, and the first and the last pixel that any of them reads.
template <class E>
struct PackedPhases {
  std::vector<PackedWeight<E>> of_phase;
  Extent low, high;
};

template <class E, class S>
PackedPhases<E> pack_phases(const std::vector<Correlation>& phases, const Operand<S>& operand, int64_t groups,
                            const S* bias) {
  const auto size_of = [&](const Correlation& phase) {
    return packed_size(operand, groups, static_cast<int64_t>(phase.taps.size()));
  };
  int64_t size = 0;
  for (const Correlation& phase : phases) size += size_of(phase);
  Wide<S>* memory = scratch<Wide<S>>(size, Scratch::kCall);
  PackedPhases<E> packed{{}, phases[0].first_offset(), phases[0].last_offset()};
  for (const Correlation& phase : phases) {
    packed.of_phase.push_back(pack<E>(operand, groups, phase.taps, bias, memory));
    memory += size_of(phase);
    const Extent first = phase.first_offset(), last = phase.last_offset();
    for (int d = 0; d < kSpatialRank; ++d) {
      packed.low[d] = std::min(packed.low[d], first[d]);
      packed.high[d] = std::max(packed.high[d], last[d]);
    }
  }
  return packed;
}

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

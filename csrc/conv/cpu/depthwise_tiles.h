// Tiles of outputs of a depthwise convolution: outputs side by side in a row, a vector of channels of each.
//
// The sums stay in registers while the runs of taps go by. Each is summed in the same order however a row falls
// into tiles.
#pragma once

#include "conv/cpu/tap_runs.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {

// Sums, weights of a run and one pixel must fit the sixteen registers of AVX2.
constexpr int most_side_by_side(int width) {
  return width > 5 ? 7 : 8;
}

// What becomes of a sum.
template <class T>
struct Ending {
  const T* bias;  // of all channels, up to whole blocks; or null
};

// Writes the sums of `lanes` channels, from `channel` on, of one output.
template <class T>
SCRATCHNN_INLINE void finish(const Ending<T>& ending, Vec<T> sum, int64_t channel, int64_t lanes, T* y) {
  if (ending.bias != nullptr) sum += load(ending.bias + channel);
  lanes == kLanes<T> ? write(y, sum) : write_partial(y, sum, lanes);
}

// A row of outputs, a vector of channels of each.
template <class T>
struct OutputRow {
  const RunOfRow<T>* runs;
  int64_t wide, count;  // runs of several taps; all
  const T* weights;     // of tap t at weights + t * kBlock
  int64_t vector;       // where in its block
  int64_t pixel;        // from one input pixel to the next
  int64_t in_step;
  int64_t columns;  // of the input
  Ending<T> ending;
  int64_t channel, lanes;
  T* y;
  int64_t y_step;
  UpcomingPixels* upcoming;
};

// Adds w[t] x[i * step + t] to sums[i]. A clipped tile asks of each pixel whether it is there.
template <int count, int width, int step, bool clipped, class T>
SCRATCHNN_INLINE void add_run(const OutputRow<T>& row, const RunOfRow<T>& run, int64_t first, Vec<T> (&sums)[count]) {
  const int64_t in_step = step > 0 ? step : row.in_step;
  const int64_t column = run.column + first * in_step;
  const T* x = run.x + row.vector + first * in_step * row.pixel;
  const T* w = row.weights + run.tap * kBlock<T>;
  const auto is_there = [&](int64_t j) __attribute__((always_inline)) {
    return !clipped || static_cast<uint64_t>(column + j) < static_cast<uint64_t>(row.columns);
  };
  Vec<T> weights[width];
#pragma GCC unroll 8
  for (int t = 0; t < width; ++t) {
    weights[t] = load(w + t * kBlock<T>);
    SCRATCHNN_KEEP_IN_REGISTER(weights[t]);
  }
  if constexpr (width == 1) {
#pragma GCC unroll 8
    for (int i = 0; i < count; ++i) {
      if (is_there(i * in_step)) sums[i] = fma(load(x + i * in_step * row.pixel), weights[0], sums[i]);
    }
  } else {
#pragma GCC unroll 32
    for (int j = 0; j < (count - 1) * step + width; ++j) {
      if (!is_there(j)) continue;
      Vec<T> v = load(x + j * row.pixel);
      SCRATCHNN_KEEP_IN_REGISTER(v);
#pragma GCC unroll 8
      for (int t = 0; t < width; ++t) {
        const int i = (j - t) / step;
        if (j >= t && i < count && i * step + t == j) sums[i] = fma(v, weights[t], sums[i]);
      }
    }
  }
}

// Outputs [first, first + count) of a row.
template <int count, int width, int step, bool clipped, class T>
void tile(const OutputRow<T>& row, int64_t first) {
  Vec<T> sums[count] = {};
  for (int64_t r = 0; r < row.wide; ++r) add_run<count, width, step, clipped>(row, row.runs[r], first, sums);
  if constexpr (width > 1) {
    for (int64_t r = row.wide; r < row.count; ++r) {
      add_run<count, 1, step, clipped>(row, row.runs[r], first, sums);
    }
  }
  // In registers: the compiler must assume that a store changes what `row` refers to.
  const Ending<T> ending = row.ending;
  const int64_t channel = row.channel, lanes = row.lanes, y_step = row.y_step;
  T* y = row.y + first * y_step;
  // Where the next block's outputs will go: lines too far apart to be foreseen.
  if (row.vector == 0 && y_step > kBlock<T>) {
#pragma GCC unroll 8
    for (int i = 0; i < count; ++i) __builtin_prefetch(y + i * y_step + kBlock<T>, 1);
  }
  if (lanes == kLanes<T>) {
#pragma GCC unroll 8
    for (int i = 0; i < count; ++i) finish(ending, sums[i], channel, kLanes<T>, y + i * y_step);
  } else {
#pragma GCC unroll 8
    for (int i = 0; i < count; ++i) finish(ending, sums[i], channel, lanes, y + i * y_step);
  }
}

// All `outputs` of a row, in tiles as even as can be.
template <int width, int step, class T>
void tiles_of_row(const OutputRow<T>& row, int64_t outputs) {
  constexpr int most = most_side_by_side(width);
  using Tile = void (*)(const OutputRow<T>&, int64_t);
  static constexpr auto tiles = []<int... i>(std::integer_sequence<int, i...>) {
    return std::array<std::array<Tile, 2>, most>{
        {{tile<i + 1, width, step, false, T>, tile<i + 1, width, step, true, T>}...}};
  }(std::make_integer_sequence<int, most>());
  int64_t low = 0, high = 0;  // the columns that the first output reads
  for (int64_t r = 0; r < row.count; ++r) {
    low = std::min(low, row.runs[r].column);
    high = std::max(high, row.runs[r].column + (r < row.wide ? width : 1) - 1);
  }
  for_each_piece<most>(outputs, [&](int64_t first, int64_t count) __attribute__((always_inline)) {
    row.upcoming->step();
    const bool clipped = low + first * row.in_step < 0 || high + (first + count - 1) * row.in_step >= row.columns;
    tiles[static_cast<size_t>(count - 1)][clipped](row, first);
  });
}

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

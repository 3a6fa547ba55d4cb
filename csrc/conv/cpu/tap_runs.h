// Runs of taps: taps side by side in a row of the kernel, done together.
//
// Neighbouring outputs read neighbouring pixels with neighbouring taps. A run of `width` taps for `count` outputs
// takes width + (count - 1) * stride pixels, where one tap after the other takes width * count. How many taps a run
// has is known when the loops are compiled, so that they unroll and hold what they share in registers.
#pragma once

#include "conv/cpu/channel_blocks.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {

// The taps of a correlation, in another order: `wide` runs of `width` taps, then those left over, each by itself.
struct TapRuns {
  int64_t width = 1, wide = 0;
  std::vector<Extent> offsets;   // of each run's first tap
  std::vector<int64_t> weights;  // of each tap, run by run

  int64_t taps_of(int64_t run) const { return run < wide ? width : 1; }
  int64_t first_tap(int64_t run) const { return run < wide ? run * width : wide * width + run - wide; }
};

// Strides for which there are runs of several taps, and how many taps those have.
inline int64_t run_width(int64_t row_length, int64_t tap_step, int64_t stride) {
  if (tap_step != 1 || stride > 2) return 1;
  if (stride == 1 && (row_length == 2 || row_length == 4)) return row_length;
  int64_t best = 1;
  for (int64_t width : {3, 5, 7}) {
    if (width <= row_length && (best == 1 || row_length % width <= row_length % best)) best = width;
  }
  return best;
}

inline TapRuns runs_of(const Correlation& c) {
  TapRuns runs;
  if (c.taps.empty()) return runs;
  // The taps are a block: all rows are alike.
  const Extent& corner = c.taps[0].offset;
  int64_t length = 0;
  for (const Tap& tap : c.taps) length += tap.offset[0] == corner[0] && tap.offset[1] == corner[1];
  const int64_t tap_step = length > 1 ? c.taps[1].offset[2] - corner[2] : 1;
  runs.width = run_width(length, tap_step, c.in_step[2]);
  for (const bool wide : {true, false}) {
    const int64_t width = wide ? runs.width : 1, end = length / runs.width * runs.width;
    for (size_t row = 0; row < c.taps.size(); row += static_cast<size_t>(length)) {
      for (int64_t t = wide ? 0 : end; t < (wide ? end : length); t += width) {
        const Tap* first = &c.taps[row + static_cast<size_t>(t)];
        runs.offsets.push_back(first->offset);
        for (int64_t i = 0; i < width; ++i) runs.weights.push_back(first[i].weight);
      }
    }
    if (wide) runs.wide = static_cast<int64_t>(runs.offsets.size());
  }
  return runs;
}

// Calls body with the runs' width and their stride as integral constants; a stride of 0 is any.
template <class Body>
void with_run_width(int64_t width, int64_t stride, const Body& body) {
  const auto call = [&]<int w, int s>(std::integer_sequence<int, w, s>) {
    body(std::integral_constant<int, w>(), std::integral_constant<int, s>());
  };
  if (width == 1 && stride != 1) return call(std::integer_sequence<int, 1, 0>());
  switch (width * 10 + stride) {
    case 11:
      return call(std::integer_sequence<int, 1, 1>());
    case 21:
      return call(std::integer_sequence<int, 2, 1>());
    case 31:
      return call(std::integer_sequence<int, 3, 1>());
    case 41:
      return call(std::integer_sequence<int, 4, 1>());
    case 51:
      return call(std::integer_sequence<int, 5, 1>());
    case 71:
      return call(std::integer_sequence<int, 7, 1>());
    case 32:
      return call(std::integer_sequence<int, 3, 2>());
    case 52:
      return call(std::integer_sequence<int, 5, 2>());
    case 72:
      return call(std::integer_sequence<int, 7, 2>());
  }
}

// Splits a row into the fewest pieces of at most `most`, as even as can be: body(first, count).
template <int most, class Body>
SCRATCHNN_INLINE void for_each_piece(int64_t length, const Body& body) {
  const uint32_t whole = static_cast<uint32_t>(length), number = (whole + most - 1) / most;
  const uint32_t count = whole / number, longer = whole % number;
  uint32_t first = 0;
  for (uint32_t i = 0; i < number; ++i) {
    const uint32_t size = count + (i < longer);
    body(static_cast<int64_t>(first), static_cast<int64_t>(size));
    first += size;
  }
}

// A run as one row of positions meets it. Of the row's first position, the run's first tap reads at x, in column
// `column` of the view.
template <class T>
struct RunOfRow {
  const T* x;
  int64_t column;
  int64_t tap;
};

// The runs that read rows of the view at all: those of several taps first. Returns how many those are, and how many
// there are together.
template <class T>
std::pair<int64_t, int64_t> runs_of_row(const TapRuns& runs, const Extent& in_step, const Extent& position,
                                        const BlockView<T>& view, RunOfRow<T>* out) {
  int64_t count = 0, wide = 0;
  for (int64_t r = 0; r < static_cast<int64_t>(runs.offsets.size()); ++r) {
    Extent at;
    for (int d = 0; d < kSpatialRank; ++d) {
      at[d] = position[d] * in_step[d] + runs.offsets[static_cast<size_t>(r)][d] - view.first[d];
    }
    if (at[0] < 0 || at[0] >= view.size[0] || at[1] < 0 || at[1] >= view.size[1]) continue;
    const T* x = view.data + at[0] * view.stride[0] + at[1] * view.stride[1] + at[2] * view.stride[2];
    out[count++] = {x, at[2], runs.first_tap(r)};
    if (r < runs.wide) wide = count;
  }
  return {wide, count};
}

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

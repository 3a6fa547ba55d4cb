// Products of many rows with a small matrix, packed into panels of columns: register tiles (gemm.h) keep a sum in each
// lane, while the rows stream by past the matrix, which stays in the second-level cache.
#pragma once

#include <algorithm>

#include "common/gemm.h"
#include "common/runtime.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {

constexpr int64_t kPackedBytes = 1 << 20;  // of a matrix that is packed, at most

// out[n, j] = sum over q of x[n, q] m[q, j] + bias[j], summed in runs of `longest_run` products; m[q, j], for the
// columns j of panel p, at packed + p * reduction * kTileColumns + q * kTileColumns. The biases, if any, are as many as
// whole panels have.
template <int64_t longest_run, class T>
void multiply_by_panels(int64_t rows, int64_t reduction, int64_t columns, const T* x, const T* packed, const T* bias,
                        T* out) {
  constexpr int64_t width = kTileColumns<T>, kTaskTiles = 8;  // tiles of rows of one task
  const int64_t panels = (columns + width - 1) / width, tiles = (rows + kTileRows - 1) / kTileRows;
  const Segment whole{0, reduction};
  int64_t in_offsets[kTileRows], out_offsets[kTileRows];
  for (int r = 0; r < kTileRows; ++r) {
    in_offsets[r] = r * reduction;
    out_offsets[r] = r * columns;
  }
  parallel_for(0, tiles, kTaskTiles, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t row = rows * tile / tiles, count = rows * (tile + 1) / tiles - row;
      const int64_t ahead = std::min<int64_t>(kTileRows, rows - row - count);
      Upcoming next_input(x + (row + count) * reduction, ahead * reduction, panels * reduction);
      for (int64_t panel = 0; panel < panels; ++panel) {
        with_rows(count, [&](auto n) {
          multiply_tile<n, longest_run, T, T>(x + row * reduction, in_offsets, &whole, 1,
                                              packed + panel * reduction * width, out + row * columns + panel * width,
                                              out_offsets, std::min(width, columns - panel * width), false,
                                              bias != nullptr ? bias + panel * width : nullptr, false, next_input);
        });
      }
    }
  });
}

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

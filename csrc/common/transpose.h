// Matrices in memory turned round: images between their two memory formats, and weights.
//
// Include only in files compiled once per instruction set.
#pragma once

#include "common/stream.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {

// out[c][r] = in[r][c] for whole pairs of vectors of rows, which move like single numbers of 32 bits, and for columns
// that are whole vectors too, or some of one. Returns how many rows that are.
template <class S>
int64_t transpose_pairs(const S* in, int64_t in_stride, S* out, int64_t out_stride, int64_t rows, int64_t columns) {
  constexpr int n = kLanes<float>;
  if (!kHasPartial<S> && columns % n != 0) return 0;
  int64_t r = 0;
  for (; r + 2 * n <= rows; r += 2 * n) {
    for (int64_t c = 0; c < columns; c += n) {
      const int64_t width = columns - c < n ? columns - c : n;
      Vec<float> block[n];
      for (int i = 0; i < n; ++i) {
        const S* even = in + (r + 2 * i) * in_stride + c;
        block[i] = load_pairs(even, even + in_stride, width);
      }
      transpose<float>(block);
      for (int i = 0; i < width; ++i) std::memcpy(out + (c + i) * out_stride + r, &block[i], sizeof(block[i]));
    }
  }
  return r;
}

// out[c][r] = in[r][c] for a rows x columns block, widened or rounded where the types differ; the strides count
// elements. Where `asks`, what comes next is asked of memory: of long rows the following columns, and the rows below.
// Where `streamed`, whole vectors are written past the cache (stream.h).
template <bool asks = false, class In, class Out>
void transpose_block(const In* in, int64_t in_stride, Out* out, int64_t out_stride, int64_t rows, int64_t columns,
                     bool streamed = false) {
  using T = Wide<In>;
  constexpr int64_t n = kLanes<T>;
  int64_t first_row = 0;
  if constexpr (std::is_same_v<In, Out> && sizeof(In) == 2) {
    first_row = transpose_pairs(in, in_stride, out, out_stride, rows, columns);
  }
  for (int64_t r = first_row; r < rows; r += n) {
    const int64_t height = rows - r < n ? rows - r : n;
    for (int64_t c = 0; c < columns; c += n) {
      const int64_t width = columns - c < n ? columns - c : n;
      const In* from = in + r * in_stride + c;
      Out* to = out + c * out_stride + r;
      if (height == n && width == n) {
        Vec<T> block[n];
        for (int i = 0; i < n; ++i) {
          if (asks) {
            prefetch(from + (n + i) * in_stride);
            prefetch(from + 4 * n + i * in_stride);
          }
          block[i] = read(from + i * in_stride);
        }
        transpose<T>(block);
        if (streamed) {
          for (int i = 0; i < n; ++i) stream(to + i * out_stride, block[i]);
        } else {
          for (int i = 0; i < n; ++i) write(to + i * out_stride, block[i]);
        }
      } else if (kHasPartial<In> && kHasPartial<Out> && 4 * height >= n && 4 * width >= n) {
        Vec<T> block[n] = {};
        for (int i = 0; i < height; ++i) block[i] = read_partial(from + i * in_stride, width);
        transpose<T>(block);
        for (int i = 0; i < width; ++i) write_partial(to + i * out_stride, block[i], height);
      } else {
        for (int64_t i = 0; i < height; ++i) {
          for (int64_t j = 0; j < width; ++j) {
            if constexpr (std::is_same_v<In, Out>) {
              to[j * out_stride + i] = from[i * in_stride + j];
            } else {
              write_one(to + j * out_stride + i, read_one(from + i * in_stride + j));
            }
          }
        }
      }
    }
  }
}

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

// Register tiles of matrix products: the arithmetic of convolution and linear layers.
//
// A tile keeps kTileRows x kTileColumns sums in registers. Each step multiplies one number of every row, spread
// over a vector, with two vectors of columns; six rows of two vectors fill the sixteen registers of AVX2 and keep
// both multiply-add units busy. Every sum is accumulated in the same order whatever the tile's number of rows,
// so how rows fall into tiles never changes a result.
//
// The loops over a tile's rows are unrolled by pragma: only then do the sums stay in registers. Include only in
// files compiled once per instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/simd.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {

#if defined(CPU_CAPABILITY_AVX512)
constexpr int kTileRows = 12;  // of 32 registers
#else
constexpr int kTileRows = 6;  // of 16
#endif

template <class T>
constexpr int kTileColumns = 2 * kLanes<T>;

// `length` consecutive numbers of the reduction, `offset` elements from a row's start.
struct Segment {
  int64_t offset;
  int64_t length;
};

template <int rows, class T>
SCRATCHNN_INLINE void multiply_step(Vec<T> (&sums)[rows][2], const T* const (&a)[rows], int64_t i, const T* b) {
  Vec<T> b0 = load(b), b1 = load(b + kLanes<T>);
  SCRATCHNN_KEEP_IN_REGISTER(b0);
  SCRATCHNN_KEEP_IN_REGISTER(b1);
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
    const Vec<T> x = broadcast(a[r][i]);
    sums[r][0] = fma(x, b0, sums[r][0]);
    sums[r][1] = fma(x, b1, sums[r][1]);
  }
}

// So many products are summed up in registers before the sum is added to those of others, in memory: sums of sums are
// more exact than one long sum. For the tiles of matrix products, and for outer products.
constexpr int64_t kProductsInTile = 32, kOuterProducts = 64;

// Adds the sums to `others`, which hold nothing yet where they are `fresh`, and starts them again.
template <int rows, class T>
SCRATCHNN_INLINE void set_aside(Vec<T> (&sums)[rows][2], T (&others)[rows][kTileColumns<T>], bool fresh) {
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      T* other = others[r] + half * kLanes<T>;
      store(other, fresh ? sums[r][half] : load(other) + sums[r][half]);
      sums[r][half] = Vec<T>{};
    }
  }
}

// c[r][j] = sum over the reduction q of a[r][q] * b[q][j] + bias[j]
//
//   a     row r starts at a + a_offsets[r]; its reduction is the segments, one after the other
//   b     packed: kTileColumns numbers for each q
//   c     row r starts at c + c_offsets[r]; `columns` of it are written. Where `accumulate`, the sum is added to it
//   bias  kTileColumns numbers, for each row the same, or null for none. Added at the end, once: the sum is more exact
//         than one that starts with a large number
template <int rows, class T>
__attribute__((noinline)) void multiply_tile(const T* a, const int64_t* a_offsets, const Segment* segments,
                                             int64_t segment_count, const T* b, T* c, const int64_t* c_offsets,
                                             int64_t columns, bool accumulate, const T* bias) {
  constexpr int lanes = kLanes<T>;
  Vec<T> sums[rows][2];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) sums[r][0] = sums[r][1] = Vec<T>{};
  T others[rows][kTileColumns<T>];
  bool fresh = !accumulate;
  if (accumulate) {
    for (int r = 0; r < rows; ++r) {
      if (columns < kTileColumns<T>) std::memset(others[r], 0, sizeof(others[r]));
      std::memcpy(others[r], c + c_offsets[r], static_cast<size_t>(columns) * sizeof(T));
    }
  }

  int64_t left = kProductsInTile;
  for (int64_t s = 0; s < segment_count; ++s) {
    const T* row[rows];
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) row[r] = a + a_offsets[r] + segments[s].offset;
    const int64_t length = segments[s].length;
    for (int64_t i = 0; i < length;) {
      if (left == 0) {
        set_aside<rows, T>(sums, others, fresh);
        fresh = false;
        left = kProductsInTile;
      }
      const int64_t last = length - i < left ? length : i + left;
      left -= last - i;
#pragma GCC unroll 1
      for (; i + 2 <= last; i += 2, b += 2 * kTileColumns<T>) {  // four at a time spill registers
        multiply_step<rows, T>(sums, row, i, b);
        multiply_step<rows, T>(sums, row, i + 1, b + kTileColumns<T>);
      }
#pragma GCC unroll 1
      for (; i < last; ++i, b += kTileColumns<T>) multiply_step<rows, T>(sums, row, i, b);
    }
  }
  if (!fresh) {
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      sums[r][0] += load(others[r]);
      sums[r][1] += load(others[r] + lanes);
    }
  }
  if (bias != nullptr) {
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      sums[r][0] += load(bias);
      sums[r][1] += load(bias + lanes);
    }
  }

  if (columns == kTileColumns<T>) {
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      store(c + c_offsets[r], sums[r][0]);
      store(c + c_offsets[r] + lanes, sums[r][1]);
    }
  } else {
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      T row[kTileColumns<T>];
      store(row, sums[r][0]);
      store(row + lanes, sums[r][1]);
      std::memcpy(c + c_offsets[r], row, static_cast<size_t>(columns) * sizeof(T));
    }
  }
}

// c[r][j] += sum over p of a[p][r] * b[p][j]: the product of a gradient with an input, reduced over pixels.
//
//   a  `rows` numbers for each p, a_stride apart
//   b  row p starts at b + b_offsets[p]; kTileColumns numbers are read
//   c  rows c_stride apart
template <int rows, class T>
__attribute__((noinline)) void accumulate_outer_products(const T* a, int64_t a_stride, const T* b,
                                                         const int64_t* b_offsets, int64_t count, T* c,
                                                         int64_t c_stride) {
  constexpr int lanes = kLanes<T>;
  for (int64_t p = 0; p < count;) {
    const int64_t last = p + kOuterProducts < count ? p + kOuterProducts : count;
    Vec<T> sums[rows][2];
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) sums[r][0] = sums[r][1] = Vec<T>{};
#pragma GCC unroll 2
    for (; p < last; ++p, a += a_stride) {
      const T* row = b + b_offsets[p];
      Vec<T> b0 = load(row), b1 = load(row + lanes);
      SCRATCHNN_KEEP_IN_REGISTER(b0);
      SCRATCHNN_KEEP_IN_REGISTER(b1);
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r) {
        const Vec<T> x = broadcast(a[r]);
        sums[r][0] = fma(x, b0, sums[r][0]);
        sums[r][1] = fma(x, b1, sums[r][1]);
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      store(c + r * c_stride, load(c + r * c_stride) + sums[r][0]);
      store(c + r * c_stride + lanes, load(c + r * c_stride + lanes) + sums[r][1]);
    }
  }
}

// Calls body(std::integral_constant<int, rows>) for a number of rows known only at run time.
template <int most = kTileRows, class Body>
SCRATCHNN_INLINE void with_rows(int64_t rows, const Body& body) {
  if constexpr (most > 1) {
    if (rows < most) return with_rows<most - 1>(rows, body);
  }
  body(std::integral_constant<int, most>());
}

// Splits `count` rows into the fewest tiles, as even as can be: body(first, rows), rows <= kTileRows.
template <class Body>
SCRATCHNN_INLINE void for_each_tile(int64_t count, const Body& body) {
  const int64_t tiles = (count + kTileRows - 1) / kTileRows;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t first = count * tile / tiles;
    body(first, count * (tile + 1) / tiles - first);
  }
}

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

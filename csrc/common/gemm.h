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

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "common/half.h"
#include "common/stream.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {

#if defined(CPU_CAPABILITY_AVX512)
constexpr int kTileRows = 12;  // of 32 registers
#else
constexpr int kTileRows = 6;  // of 16
#endif

template <class T>
constexpr int kTileColumns = 2 * kLanes<T>;

// `length` consecutive numbers of the reduction, `offset` elements from a row's start. They are multiplied by as many
// rows of the right matrix, from `first` on.
struct Segment {
  int64_t offset;
  int64_t length;
  int64_t first = 0;
};

// Some processors multiply bfloat16 numbers themselves, two products in a step (AVX512-BF16): matrices are not widened
// there, and two neighbours of the reduction lie where a float would. kMultipliesPairs says that the instruction set
// may have it, multiplies_pairs() that this processor does.
#if defined(CPU_CAPABILITY_AVX512)
template <class S>
constexpr bool kMultipliesPairs = std::is_same_v<S, BFloat16>;
inline bool multiplies_pairs() {
  return __builtin_cpu_supports("avx512bf16");
}
#else
template <class S>
constexpr bool kMultipliesPairs = false;
inline bool multiplies_pairs() {
  return false;
}
#endif

// Numbers E of the reduction that one step multiplies and adds to sums T.
template <class E, class T>
constexpr int64_t kTogether = sizeof(T) / sizeof(E);

template <class E, class T>
SCRATCHNN_INLINE Vec<T> load_as(const E* p) {
  Vec<T> v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

// The number at p in all lanes, or the pair. Once for all vectors of a row: with two, an instruction that spreads its
// operand itself would load twice, and wide units wait for loads.
template <class E, class T>
SCRATCHNN_INLINE Vec<T> spread(const E* p) {
  T number;
  std::memcpy(&number, p, sizeof(number));
  Vec<T> x = broadcast(number);
  SCRATCHNN_KEEP_IN_REGISTER(x);
  return x;
}

// sum += x b, or the sum of both products of each pair.
template <class E, class T>
SCRATCHNN_INLINE void multiply_add(Vec<T> x, Vec<T> b, Vec<T>& sum) {
  if constexpr (std::is_same_v<E, T>) {
    sum = fma(x, b, sum);
  } else {
#if defined(CPU_CAPABILITY_AVX512)
    // No intrinsic: the compiler must not use that extension elsewhere.
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(b), "v"(x));
#endif
  }
}

template <int rows, int vectors, class E, class T>
SCRATCHNN_INLINE void multiply_step(Vec<T> (&sums)[rows][vectors], const E* const (&a)[rows], int64_t i, const E* b) {
  Vec<T> column[vectors];
#pragma GCC unroll 2
  for (int v = 0; v < vectors; ++v) {
    column[v] = load_as<E, T>(b + v * kTogether<E, T> * kLanes<T>);
    SCRATCHNN_KEEP_IN_REGISTER(column[v]);
  }
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
    const Vec<T> x = spread<E, T>(a[r] + i);
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) multiply_add<E, T>(x, column[v], sums[r][v]);
  }
}

// Sums of sums are more exact than one long sum: so many products are summed up in registers before their sum is added
// to those of others, in memory. Winograd's convolution magnifies the rounding of its products' sums, hence the short
// runs; its cost is a twentieth of the time.
constexpr int64_t kProductsInTile = 128, kPointsInTile = 32, kOuterProducts = 64;

// A row of a tile, of which only the first `columns` are in memory.
template <int vectors, class T>
SCRATCHNN_INLINE void load_columns(const T* c, int64_t columns, Vec<T> (&row)[vectors]) {
  T all[vectors * kLanes<T>] = {};
  for (int64_t j = 0; j < columns; ++j) all[j] = c[j];
#pragma GCC unroll 2
  for (int v = 0; v < vectors; ++v) row[v] = load(all + v * kLanes<T>);
}
template <int vectors, class T>
SCRATCHNN_INLINE void store_columns(const Vec<T> (&row)[vectors], T* c, int64_t columns) {
  T all[vectors * kLanes<T>];
#pragma GCC unroll 2
  for (int v = 0; v < vectors; ++v) store(all + v * kLanes<T>, row[v]);
  for (int64_t j = 0; j < columns; ++j) c[j] = all[j];
}

// Memory that will be read soon, asked for while tiles are computed: the processor itself looks ahead by less than a
// tile takes, and would wait wherever a row begins. A line or so for each step of a tile: few can be on their way at a
// time, and loads would wait behind many.
class Upcoming {
 public:
  Upcoming() = default;
  // `count` numbers from `first` on, in as many steps.
  template <class T>
  Upcoming(const T* first, int64_t count, int64_t steps) : next_(reinterpret_cast<const char*>(first)) {
    const int64_t bytes = std::max<int64_t>(0, count) * static_cast<int64_t>(sizeof(T));
    const int64_t parts = std::max<int64_t>(1, steps);
    stride_ = (bytes + parts - 1) / parts;
  }

  // Asks for the next part; past the end, too, which does no harm.
  SCRATCHNN_MEMBER void ask() {
    prefetch(next_);
    next_ += stride_;
  }

 private:
  static constexpr char kNothing = 0;
  const char* next_ = &kNothing;
  int64_t stride_ = 0;
};

// c[r][j] = sum over the reduction q of a[r][q] * b[q][j] + bias[j], added up in runs of `longest_run` products
//
//   a     row r starts at a + a_offsets[r]; its reduction is the segments, one after the other
//   b     packed: rows of kTileColumns numbers; where a step takes two, the two of each column side by side
//   c     row r starts at c + c_offsets[r]; `columns` of it are written. Where `accumulate`, the sum is added to it
//   bias  kTileColumns numbers, for each row the same, or null for none. Added at the end, once: the sum is more exact
//         than one that starts with a large number
//
// `streamed` says that whole rows are written past the cache (stream.h); it is for the last products of a sum. Each
// step asks for some of what is upcoming.
template <int rows, int64_t longest_run, int vectors, class E, class T>
__attribute__((noinline)) void multiply_vectors(const E* a, const int64_t* a_offsets, const Segment* segments,
                                                int64_t segment_count, const E* b, T* c, const int64_t* c_offsets,
                                                int64_t columns, bool accumulate, const T* bias, bool streamed,
                                                Upcoming& upcoming) {
  constexpr int lanes = kLanes<T>;
  constexpr int64_t step = kTogether<E, T>;
  const bool whole = columns == vectors * lanes;
  int64_t products = 0;
  for (int64_t s = 0; s < segment_count; ++s) products += segments[s].length;
  Upcoming ahead = upcoming;  // in registers

  // Rows of the result lie too far apart to be foreseen: they are asked for now, to be there when the sums are.
  if (!streamed) {
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) __builtin_prefetch(c + c_offsets[r], 1);
  }

  Vec<T> before[rows][vectors];  // the sums of earlier runs
  if (accumulate) {
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      if (whole) {
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) before[r][v] = load(c + c_offsets[r] + v * lanes);
      } else {
        load_columns(c + c_offsets[r], columns, before[r]);
      }
    }
  }
  Vec<T> sums[rows][vectors];
  const auto clear = [&]() __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) sums[r][v] = Vec<T>{};
    }
  };
  clear();
  for (int64_t left = longest_run; products > 0; ++segments) {
    const E* row[rows];
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) row[r] = a + a_offsets[r] + segments->offset;
    const E* right = b + segments->first * kTileColumns<T>;
    for (int64_t i = 0; i < segments->length;) {
      const int64_t length = segments->length - i < left ? segments->length - i : left, end = i + length;
      left -= length;
      products -= length;
      // Two at a time: four spill registers.
#pragma GCC unroll 1
      for (; i + 2 * step <= end; i += 2 * step, right += 2 * step * kTileColumns<T>) {
        multiply_step<rows, vectors, E, T>(sums, row, i, right);
        ahead.ask();
        multiply_step<rows, vectors, E, T>(sums, row, i + step, right + step * kTileColumns<T>);
        ahead.ask();
      }
#pragma GCC unroll 1
      for (; i < end; i += step, right += step * kTileColumns<T>) {
        multiply_step<rows, vectors, E, T>(sums, row, i, right);
        ahead.ask();
      }
      if (left > 0 || products == 0) continue;
      left = longest_run;
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) before[r][v] = accumulate ? before[r][v] + sums[r][v] : sums[r][v];
      }
      accumulate = true;
      clear();
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      if (bias != nullptr) sums[r][v] += load(bias + v * lanes);
      if (accumulate) sums[r][v] += before[r][v];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
    if (whole && streamed) {
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) stream(c + c_offsets[r] + v * lanes, sums[r][v]);
    } else if (whole) {
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) store(c + c_offsets[r] + v * lanes, sums[r][v]);
    } else {
      store_columns(sums[r], c + c_offsets[r], columns);
    }
  }
  upcoming = ahead;
}

// The same: of few columns only the vector that holds them is multiplied.
template <int rows, int64_t longest_run, class E, class T>
SCRATCHNN_INLINE void multiply_tile(const E* a, const int64_t* a_offsets, const Segment* segments,
                                    int64_t segment_count, const E* b, T* c, const int64_t* c_offsets, int64_t columns,
                                    bool accumulate, const T* bias, bool streamed, Upcoming& upcoming) {
  if (columns <= kLanes<T>) {
    multiply_vectors<rows, longest_run, 1, E, T>(a, a_offsets, segments, segment_count, b, c, c_offsets, columns,
                                                 accumulate, bias, streamed, upcoming);
  } else {
    multiply_vectors<rows, longest_run, 2, E, T>(a, a_offsets, segments, segment_count, b, c, c_offsets, columns,
                                                 accumulate, bias, streamed, upcoming);
  }
}

// The numbers of a tile's `rows` for one p, where they lie side by side: a vector at a time where `whole` says that as
// many may be read and written, and that what follows `to` is written later.
template <int rows, class S>
SCRATCHNN_INLINE void copy_rows(const S* from, bool whole, Wide<S>* to) {
  if (whole) {
#pragma GCC unroll 4
    for (int r = 0; r < rows; r += kLanes<Wide<S>>) store(to + r, read(from + r));
  } else {
    for (int r = 0; r < rows; ++r) to[r] = read_one(from + r);
  }
}
// How many numbers it may read and write then.
template <class T>
constexpr int64_t kCopiedRows = (kTileRows + kLanes<T> - 1) / kLanes<T> * kLanes<T>;

// Positions [first, last) of a list.
struct Range {
  int64_t first, last;
  int64_t count() const { return last - first; }
};

// c[r][j] += sum over p of a[p][r] * b[p][j]: the product of a gradient with an input, reduced over pixels.
//
//   a  `rows` numbers for each p, a_stride apart; where a step takes two p, the two of each row side by side, a zero
//      after the last of an odd number
//   b  row p starts at b + b_offsets[p]; as many vectors of it are read
//   p  runs through the ranges, one after the other; where a step takes two, there is one range, from 0 on
//   c  rows c_stride apart
template <int rows, int vectors, class E, class T>
__attribute__((noinline)) void accumulate_outer_vectors(const E* a, int64_t a_stride, const E* b,
                                                        const int64_t* b_offsets, const Range* ranges,
                                                        int64_t range_count, T* c, int64_t c_stride,
                                                        Upcoming& upcoming) {
  constexpr int lanes = kLanes<T>;
  constexpr int64_t step = kTogether<E, T>;
  [[maybe_unused]] static constexpr E kZeros[kTileColumns<T>] = {};
  const Range* const end = ranges + range_count;
  Upcoming ahead = upcoming;  // in registers
  int64_t p = range_count > 0 ? ranges->first : 0;
  while (ranges < end) {
    Vec<T> sums[rows][vectors];
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) sums[r][v] = Vec<T>{};
    }
    for (int64_t left = step * kOuterProducts; left > 0 && ranges < end;) {
      const int64_t last = p + left < ranges->last ? p + left : ranges->last;
      left -= last - p;
      const E* column = a + p * a_stride;
#pragma GCC unroll 2
      for (; p < last; p += step, column += step * a_stride) {
        const E* row = b + b_offsets[p];
        [[maybe_unused]] const E* next = kZeros;
        if constexpr (step == 2) next = p + 1 < ranges->last ? b + b_offsets[p + 1] : kZeros;
        Vec<T> right[vectors];
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) {
          if constexpr (step == 1) {
            right[v] = load(row + v * lanes);
          } else {
            right[v] = load_pairs(row + v * lanes, next + v * lanes);
          }
          SCRATCHNN_KEEP_IN_REGISTER(right[v]);
        }
#pragma GCC unroll 16
        for (int r = 0; r < rows; ++r) {
          const Vec<T> x = spread<E, T>(column + step * r);
#pragma GCC unroll 2
          for (int v = 0; v < vectors; ++v) multiply_add<E, T>(x, right[v], sums[r][v]);
        }
        ahead.ask();
      }
      if (p >= ranges->last && ++ranges < end) p = ranges->first;
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) {
        T* to = c + r * c_stride + v * lanes;
        store(to, load(to) + sums[r][v]);
      }
    }
  }
  upcoming = ahead;
}

// The same for the first `columns` numbers of each row of b: of kTileColumns of them, or of the vector that holds
// fewer.
template <int rows, class E, class T>
SCRATCHNN_INLINE void accumulate_outer_products(const E* a, int64_t a_stride, const E* b, const int64_t* b_offsets,
                                                const Range* ranges, int64_t range_count, int64_t columns, T* c,
                                                int64_t c_stride, Upcoming& upcoming) {
  if (columns <= kLanes<T>) {
    accumulate_outer_vectors<rows, 1, E, T>(a, a_stride, b, b_offsets, ranges, range_count, c, c_stride, upcoming);
  } else {
    accumulate_outer_vectors<rows, 2, E, T>(a, a_stride, b, b_offsets, ranges, range_count, c, c_stride, upcoming);
  }
}

// The same for all p < count.
template <int rows, class E, class T>
SCRATCHNN_INLINE void accumulate_outer_products(const E* a, int64_t a_stride, const E* b, const int64_t* b_offsets,
                                                int64_t count, int64_t columns, T* c, int64_t c_stride,
                                                Upcoming& upcoming) {
  const Range all{0, count};
  accumulate_outer_products<rows, E, T>(a, a_stride, b, b_offsets, &all, 1, columns, c, c_stride, upcoming);
}

// Calls body(std::integral_constant<int, rows>) for a number of rows known only at run time.
template <int most = kTileRows, class Body>
SCRATCHNN_INLINE void with_rows(int64_t rows, const Body& body) {
  if constexpr (most > 1) {
    if (rows < most) return with_rows<most - 1>(rows, body);
  }
  body(std::integral_constant<int, most>());
}

// Splits `count` rows into the fewest tiles, as even as can be: body(first, rows), rows <= most.
template <class Body>
SCRATCHNN_INLINE void for_each_tile(int64_t count, const Body& body, int64_t most = kTileRows) {
  const int64_t tiles = (count + most - 1) / most;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t first = count * tile / tiles;
    body(first, count * (tile + 1) / tiles - first);
  }
}

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

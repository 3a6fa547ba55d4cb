// Contiguous planes under windows two columns wide that step by two, as most of pooling is: 2, 2x2 and 2x2x2.
//
// Vectors run along the row: two of them hold the left and the right columns of as many windows as they have lanes,
// once even and odd numbers are parted, and no scratch memory is needed. Depth and height may have any windows.
#pragma once

#include "common/half.h"
#include "pool/cpu/planes.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {

// Forward: whether every output column is computed from the source columns 2 x and 2 x + 1, all of them alike.
SCRATCHNN_INLINE bool takes_pairs(const Relation& forward) {
  const Links& along = forward.along[2];
  bool pairs = !forward.channels_last;
  for (int64_t x = 0; x < forward.result[2] && pairs; ++x) {
    pairs = along.count(x) == 2;
    for (int64_t k = 0; k < 2 && pairs; ++k) {
      const Link &own = along.begin(x)[k], &of_first = along.links[k];
      pairs = own.source == 2 * x + k && own.tap == of_first.tap && own.factor == of_first.factor;
    }
  }
  return pairs;
}

// Backward: whether every input column is in one window, x / 2.
SCRATCHNN_INLINE bool gives_pairs(const Relation& backward) {
  const Links& along = backward.along[2];
  bool pairs = !backward.channels_last && backward.result[2] == 2 * backward.source[2];
  for (int64_t x = 0; x < backward.result[2] && pairs; ++x) {
    pairs = along.count(x) == 1 && along.begin(x)->source == x / 2 && along.begin(x)->factor == along.links->factor;
  }
  return pairs;
}

template <class T>
struct Pairs {
  Vec<T> left, right;
};

template <class T, int... i>
SCRATCHNN_INLINE Pairs<T> part(Vec<T> a, Vec<T> b, std::integer_sequence<int, i...>) {
  return {__builtin_shufflevector(a, b, (2 * i)...), __builtin_shufflevector(a, b, (2 * i + 1)...)};
}

// `count` pairs, at most a vector of them.
template <class T>
SCRATCHNN_INLINE Pairs<T> load_pairs(const T* p, int64_t count) {
  constexpr int64_t n = kLanes<T>;
  constexpr auto lanes = std::make_integer_sequence<int, n>();
  if (count == n) return part<T>(load(p), load(p + n), lanes);
  const Vec<T> a = read_partial(p, std::min(n, 2 * count));
  return part<T>(a, 2 * count > n ? read_partial(p + n, 2 * count - n) : Vec<T>{}, lanes);
}

template <class T>
SCRATCHNN_INLINE Vec<T> load_some(const T* p, int64_t count) {
  return count == kLanes<T> ? load(p) : read_partial(p, count);
}
template <class T>
SCRATCHNN_INLINE void store_some(T* p, Vec<T> v, int64_t count) {
  count == kLanes<T> ? store(p, v) : write_partial(p, v, count);
}

// Each number twice, side by side.
template <class T>
SCRATCHNN_INLINE void store_doubled(T* p, Vec<T> v, int64_t count) {
  constexpr int64_t n = kLanes<T>;
  constexpr auto lanes = std::make_integer_sequence<int, n>();
  const Vec<T> a = interleave<T, 0>(v, v, lanes), b = interleave<T, n / 2>(v, v, lanes);
  if (count == n) {
    store(p, a);
    store(p + n, b);
    return;
  }
  write_partial(p, a, std::min(n, 2 * count));
  if (2 * count > n) write_partial(p + n, b, 2 * count - n);
}

// row(plane, first pixel, source rows, their count) for every result row of every plane.
template <class Row>
void for_each_plane_row(const Relation& relation, const Row& row) {
  const Extent& result = relation.result;
  const int64_t rows_of_plane = result[0] * result[1];
  const int64_t grain = std::max<int64_t>(1, kGrain / (volume(result) + volume(relation.source)));
  parallel_for(0, relation.images * relation.channels, grain, [&](int64_t first, int64_t last) {
    auto [all_rows, counts] = carve<SourceRow, int64_t>(rows_of_plane * relation.most_rows, rows_of_plane);
    for (int64_t i = 0; i < rows_of_plane; ++i) {
      counts[i] =
          source_rows(relation, i / result[1], i % result[1], whole(relation), all_rows + i * relation.most_rows);
    }
    for (int64_t plane = first; plane < last; ++plane) {
      for (int64_t i = 0; i < rows_of_plane; ++i) {
        row(plane, plane * volume(result) + i * result[2], all_rows + i * relation.most_rows, counts[i]);
      }
    }
  });
}

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

// Contiguous planes under windows side by side in a row: as wide as they step, two columns or four, without padding.
// Most of pooling is of this kind: 2, 2x2, 2x2x2 and 4.
//
// Vectors run along the row. As many of them as a window has columns hold the columns of a vector of windows, once
// they are parted, and no scratch memory is needed. Depth and height may have any windows.
#pragma once

#include "common/half.h"
#include "pool/cpu/planes.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {

// Forward: whether every output column x is computed from the kWide source columns from kWide * x on, all of them
// alike.
template <int kWide>
SCRATCHNN_INLINE bool takes_side_by_side(const Relation& forward) {
  const Links& along = forward.along[2];
  bool takes = !forward.channels_last;
  for (int64_t x = 0; x < forward.result[2] && takes; ++x) {
    takes = along.count(x) == kWide;
    for (int64_t k = 0; k < kWide && takes; ++k) {
      const Link &own = along.begin(x)[k], &of_first = along.links[k];
      takes = own.source == kWide * x + k && own.tap == of_first.tap && own.factor == of_first.factor;
    }
  }
  return takes;
}

// Backward: whether every input column is in one window, x / kWide.
template <int kWide>
SCRATCHNN_INLINE bool gives_side_by_side(const Relation& backward) {
  const Links& along = backward.along[2];
  bool gives = !backward.channels_last && backward.result[2] == kWide * backward.source[2];
  for (int64_t x = 0; x < backward.result[2] && gives; ++x) {
    gives = along.count(x) == 1 && along.begin(x)->source == x / kWide && along.begin(x)->factor == along.links->factor;
  }
  return gives;
}

// The columns of `count` windows, at most a vector of them: columns[k] gets the k-th of each.
template <class T, int kWide>
SCRATCHNN_INLINE void load_columns_of(const T* p, int64_t count, Vec<T> (&columns)[kWide]) {
  constexpr int64_t n = kLanes<T>;
  Vec<T> v[kWide];
#pragma GCC unroll 4
  for (int i = 0; i < kWide; ++i) {
    const int64_t left = kWide * count - i * n;
    v[i] = left > 0 ? load_some(p + i * n, std::min(n, left)) : Vec<T>{};
  }
  part<T, kWide>(v, columns);
}

// The reverse.
template <class T, int kWide>
SCRATCHNN_INLINE void store_columns_of(T* p, const Vec<T> (&columns)[kWide], int64_t count) {
  constexpr int64_t n = kLanes<T>;
  Vec<T> v[kWide];
  join<T, kWide>(columns, v);
#pragma GCC unroll 4
  for (int i = 0; i < kWide; ++i) {
    const int64_t left = kWide * count - i * n;
    if (left > 0) store_some(p + i * n, v[i], std::min(n, left));
  }
}

// Each number kWide times, side by side.
template <int kWide, class T>
SCRATCHNN_INLINE void store_repeated(T* p, Vec<T> numbers, int64_t count) {
  Vec<T> columns[kWide];
#pragma GCC unroll 4
  for (int i = 0; i < kWide; ++i) columns[i] = numbers;
  store_columns_of<T, kWide>(p, columns, count);
}

// row(plane, first pixel, source rows, their count, windows) for every result row of every plane, each row of as many
// windows. They are more than there are where a row has less than a vector of them: what is then read and written
// beyond the row is within the thread's own planes, and written again with the rows that follow.
template <class T, int kWide, class Row>
void for_each_plane_row(const Relation& relation, int64_t windows, const Row& row) {
  const Extent& result = relation.result;
  const int64_t rows_of_plane = result[0] * result[1], plane_size = std::min(volume(result), volume(relation.source));
  const int64_t grain = std::max<int64_t>(1, kGrain / (volume(result) + volume(relation.source)));
  parallel_for(0, relation.images * relation.channels, grain, [&](int64_t first, int64_t last) {
    auto [all_rows, counts] = carve<SourceRow, int64_t>(rows_of_plane * relation.most_rows, rows_of_plane);
    for (int64_t i = 0; i < rows_of_plane; ++i) {
      counts[i] =
          source_rows(relation, i / result[1], i % result[1], whole(relation), all_rows + i * relation.most_rows);
    }
    for (int64_t plane = first; plane < last; ++plane) {
      const bool followed = plane + 1 < last && plane_size >= kWide * kLanes<T>;
      const int64_t width = followed ? std::max<int64_t>(windows, kLanes<T>) : windows;
      for (int64_t i = 0; i < rows_of_plane; ++i) {
        row(plane, plane * volume(result) + i * result[2], all_rows + i * relation.most_rows, counts[i], width);
      }
    }
  });
}

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

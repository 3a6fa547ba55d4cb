// Max pooling of contiguous planes, row by row (planes.h). A later number wins only if it is greater, so that of equal
// maxima the first in the window stands; NaN is looked for while loading, and where there is one the rows are compared
// again minding it.
#pragma once

#include <limits>

#include "pool/cpu/maxima.h"
#include "pool/cpu/planes.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {

// Some columns of a result row: tap k of row r is, for all of them, rows[r].numbers from place[k] on. `first_tap` is
// the first in the row that is inside the source: nothing is below -inf, and where all values are, the window's first
// such tap stands, as in torch. The counts are kRows and kTaps, unless these are 0.
template <class S, bool kOffsets, bool kNaN, int kRows, int kTaps>
void max_of_row(const PartedRow<Wide<S>>* rows, int64_t row_count, const int64_t* place, int64_t tap_count,
                const IntOf<Wide<S>>* first_tap, int64_t width, S* output, uint8_t* offsets) {
  using T = Wide<S>;
  using Int = IntOf<T>;
  // Copies of what is the same for all columns: the compiler must take it that the stores may change the originals.
  constexpr bool kFixed = kRows > 0;
  const T* from[kFixed ? kRows * kTaps : 1];
  Vec<Int> tap[kFixed ? kRows * kTaps : 1];
  for (int i = 0; i < kRows * kTaps; ++i) {
    from[i] = rows[i / kTaps].numbers + place[i % kTaps];
    tap[i] = broadcast(rows[i / kTaps].tap + static_cast<Int>(i % kTaps));
  }
  const Int row_tap = rows[0].tap;
  for_each_vector<T>(width, [&](int64_t x, int64_t lanes) {
    Running<T, kOffsets, kNaN> running{broadcast(-std::numeric_limits<T>::infinity()), {}};
    if constexpr (kOffsets) running.tap = load(first_tap + x) + row_tap;
    if constexpr (kFixed) {
#pragma GCC unroll 9
      for (int i = 0; i < kRows * kTaps; ++i) running.take(load(from[i] + x), tap[i]);
    } else {
      for (int64_t r = 0; r < row_count; ++r) {
        for (int64_t k = 0; k < tap_count; ++k) {
          running.take(load(rows[r].numbers + place[k] + x), broadcast(rows[r].tap + static_cast<Int>(k)));
        }
      }
    }
    if (lanes == kLanes<T>) {
      write(output + x, running.value);
      if constexpr (kOffsets) store_offsets<T>(offsets + x, running.tap);
    } else {
      write_partial(output + x, running.value, lanes);
      if constexpr (kOffsets) store_offset_vector<T>(offsets + x, running.tap, 0, Block<1, true>{0, lanes});
    }
  });
}

// max_of_row for a number of rows and taps.
template <class S, bool kOffsets>
auto max_of_row_for(int64_t rows, int64_t taps, bool nan) {
  if (nan) return &max_of_row<S, kOffsets, true, 0, 0>;
  if (rows == 3 && taps == 3) return &max_of_row<S, kOffsets, false, 3, 3>;
  if (rows == 2 && taps == 2) return &max_of_row<S, kOffsets, false, 2, 2>;
  if (rows == 1 && taps == 4) return &max_of_row<S, kOffsets, false, 1, 4>;
  return &max_of_row<S, kOffsets, false, 0, 0>;
}

template <class S, bool kOffsets>
void max_of_rows(const S* input, S* output, uint8_t* offsets, const Relation& forward) {
  using T = Wide<S>;
  using Int = IntOf<T>;
  constexpr T outside = -std::numeric_limits<T>::infinity();
  const EvenColumns& columns = forward.columns;
  const Extent &in = forward.source, &out = forward.result;
  const Pieces pieces(forward, sizeof(T));
  const int64_t out_rows = out[0] * out[1], row_size = columns.stride * most_of_part<T>(columns, pieces.columns());
  const bool large = is_large<S>(forward.images * forward.channels * volume(out));
  const auto load_row = load_parts_for<S>(columns.stride);
  pieces.share([&](int64_t first, int64_t last) {
    auto [rows, counts, held, window, place, first_tap, numbers, values] =
        carve<KeptRow, int64_t, int64_t, PartedRow<T>, int64_t, Int, T, S>(
            out_rows * forward.most_rows, out_rows, pieces.slots(), forward.most_rows, columns.taps,
            pieces.columns() + kLanes<T>, pieces.slots() * row_size, Outbox<S>::kRoom);
    list_rows(forward, pieces, rows, counts);
    Outbox<S> outbox(large, values);
    int64_t x_begin = -1;
    for (int64_t i = first; i < last; ++i) {
      const Piece piece = pieces.piece(i);
      const int64_t x_count = piece.x_end - piece.x_begin;
      const Parts parts = parts_of<T>(columns, in[2], piece.x_begin, x_count);
      if (piece.x_begin != x_begin) {  // another place in the row than before
        x_begin = piece.x_begin;
        std::fill_n(numbers, pieces.slots() * row_size, outside);
        for (int64_t k = 0; k < columns.taps; ++k) place[k] = parts.place(columns, k);
        for (int64_t x = 0; x < x_count; ++x) first_tap[x] = static_cast<Int>(forward.along[2].begin(x_begin + x)->tap);
      }
      const S* plane = input + piece.plane * volume(in);
      bool minding_nan = false, nan = false;
      const auto keep = [&](const KeptRow& row) {
        nan |= load_row(plane + row.row * in[2], in[2], parts, outside, numbers + row.slot * row_size);
      };
      const auto finish = [&](int64_t row, const KeptRow* kept, int64_t count) {
        for (int64_t r = 0; r < count; ++r) {
          window[r] = {numbers + kept[r].slot * row_size, static_cast<Int>(kept[r].tap)};
        }
        const int64_t to = (piece.plane * out_rows + row) * out[2] + x_begin;
        max_of_row_for<S, kOffsets>(count, columns.taps, minding_nan)(window, count, place, columns.taps, first_tap,
                                                                      x_count, outbox.row(output + to, x_count),
                                                                      kOffsets ? offsets + to : nullptr);
      };
      do {
        minding_nan = nan;
        for_each_row_of(piece, forward, pieces, rows, counts, held, keep, finish);
      } while (nan && !minding_nan);
    }
    outbox.close();
  });
}

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

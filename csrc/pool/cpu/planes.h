// Contiguous planes under windows whose columns step evenly, row by row.
//
// Vectors run along the output row. Each source row is loaded once into scratch memory with its columns parted by
// their remainder modulo the stride, and with numbers outside of the plane on both sides: what tap k is for all output
// columns is then one run of numbers, and neither borders nor strides are seen again. What a source row is to a window
// is kept until the last output row that needs it.
#pragma once

#include "common/half.h"
#include "common/outbox.h"
#include "pool/cpu/maxima.h"
#include "pool/cpu/rows.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {

// Of two vectors, or of three as if they were one, the numbers whose place is `part` modulo 2 or 3.
template <class T, int part, int... i>
SCRATCHNN_INLINE Vec<T> every_second(Vec<T> a, Vec<T> b, std::integer_sequence<int, i...>) {
#if defined(CPU_CAPABILITY_AVX2)  // first whole halves, then within each: gcc takes twice the instructions
  constexpr int n = kLanes<T>, half = n / 2, quarter = n / 4;
  const Vec<T> left = __builtin_shufflevector(a, b, (i < half ? i : n + i - half)...);
  const Vec<T> right = __builtin_shufflevector(a, b, (i < half ? half + i : n + i)...);
  return __builtin_shufflevector(left, right,
                                 (i % half / quarter * n + i / half * half + i % half % quarter * 2 + part)...);
#else
  return __builtin_shufflevector(a, b, (2 * i + part)...);
#endif
}
template <class T, int part, int... i>
SCRATCHNN_INLINE Vec<T> every_third(const Vec<T> (&v)[3], std::integer_sequence<int, i...>) {
  constexpr int n = kLanes<T>;
  const Vec<T> of_two = __builtin_shufflevector(v[0], v[1], ((3 * i + part) % (2 * n))...);
  return __builtin_shufflevector(of_two, v[2], (3 * i + part < 2 * n ? i : 3 * i + part - n)...);
}

// Parts kStride vectors in a row: parts[i] gets the numbers whose place is i modulo kStride.
template <class T, int kStride>
SCRATCHNN_INLINE void part(const Vec<T> (&v)[kStride], Vec<T> (&parts)[kStride]) {
  constexpr auto lanes = std::make_integer_sequence<int, kLanes<T>>();
  if constexpr (kStride == 1) {
    parts[0] = v[0];
  } else if constexpr (kStride == 2) {
    parts[0] = every_second<T, 0>(v[0], v[1], lanes);
    parts[1] = every_second<T, 1>(v[0], v[1], lanes);
  } else if constexpr (kStride == 3) {
    parts[0] = every_third<T, 0>(v, lanes);
    parts[1] = every_third<T, 1>(v, lanes);
    parts[2] = every_third<T, 2>(v, lanes);
  } else {
    Vec<T> even[2], odd[2];
    part<T, 2>({v[0], v[1]}, even);  // even and odd numbers of the first half, then of the second
    part<T, 2>({v[2], v[3]}, odd);
    Vec<T> of_even[2], of_odd[2];
    part<T, 2>({even[0], odd[0]}, of_even);
    part<T, 2>({even[1], odd[1]}, of_odd);
    parts[0] = of_even[0], parts[1] = of_odd[0], parts[2] = of_even[1], parts[3] = of_odd[1];
  }
}

// The reverse.
template <class T, int to, int... i>
SCRATCHNN_INLINE Vec<T> third_of_joined(const Vec<T> (&parts)[3], std::integer_sequence<int, i...>) {
  constexpr int n = kLanes<T>;
  const Vec<T> of_two = __builtin_shufflevector(parts[0], parts[1], ((to * n + i) % 3 % 2 * n + (to * n + i) / 3)...);
  return __builtin_shufflevector(of_two, parts[2], ((to * n + i) % 3 < 2 ? i : n + (to * n + i) / 3)...);
}
template <class T, int kStride>
SCRATCHNN_INLINE void join(const Vec<T> (&parts)[kStride], Vec<T> (&v)[kStride]) {
  constexpr int n = kLanes<T>;
  constexpr auto lanes = std::make_integer_sequence<int, n>();
  if constexpr (kStride == 1) {
    v[0] = parts[0];
  } else if constexpr (kStride == 2) {
    v[0] = interleave<T, 0>(parts[0], parts[1], lanes);
    v[1] = interleave<T, n / 2>(parts[0], parts[1], lanes);
  } else if constexpr (kStride == 3) {
    v[0] = third_of_joined<T, 0>(parts, lanes);
    v[1] = third_of_joined<T, 1>(parts, lanes);
    v[2] = third_of_joined<T, 2>(parts, lanes);
  } else {
    Vec<T> even[2], odd[2], half[2];
    join<T, 2>({parts[0], parts[2]}, even);
    join<T, 2>({parts[1], parts[3]}, odd);
    join<T, 2>({even[0], odd[0]}, half);
    v[0] = half[0], v[1] = half[1];
    join<T, 2>({even[1], odd[1]}, half);
    v[2] = half[0], v[3] = half[1];
  }
}

// Some columns of the output, and where the source columns that they need lie in scratch memory: column
// stride * m + part, for m from `first` on, at part * size + left + m - first.
struct Parts {
  int64_t x_begin, stride, first, left, blocks, size;

  // Where tap k of the output column x_begin lies, those of the columns after it following.
  int64_t place(const EvenColumns& columns, int64_t k) const {
    const int64_t at = k * columns.dilation - columns.padding;
    const int64_t shift = (at + columns.padding * stride) / stride - columns.padding;  // rounds down
    return (at - shift * stride) * size + left + x_begin + shift - first;
  }
};

template <class T>
SCRATCHNN_INLINE Parts parts_of(const EvenColumns& columns, int64_t width, int64_t x_begin, int64_t count) {
  constexpr int64_t n = kLanes<T>;
  const int64_t s = columns.stride;
  const int64_t before = (columns.padding + s - 1) / s;  // parts that the first tap is ahead of its output column
  const int64_t after = std::max<int64_t>(0, (columns.taps - 1) * columns.dilation - columns.padding) / s;
  const int64_t first = std::max<int64_t>(0, x_begin - before), left = first - (x_begin - before);
  const int64_t held = round_up(count, n) + before + after - left;
  const int64_t inside = std::max<int64_t>(0, (width + s - 1) / s - first);  // parts with a column in the source
  return {x_begin, s, first, left, (std::min(held, inside) + n - 1) / n, left + round_up(held, n)};
}

// The most that Parts::size can be.
template <class T>
SCRATCHNN_INLINE int64_t most_of_part(const EvenColumns& columns, int64_t count) {
  return round_up(count, kLanes<T>) + round_up(columns.padding + columns.taps * columns.dilation, kLanes<T>) +
         kLanes<T>;
}

// Loads a source row of `width` columns, parted; what lies outside of it has been filled in before, and is here again
// where a vector holds both. Returns whether there was NaN.
template <class S, int kStride>
bool load_parts(const S* row, int64_t width, Parts parts, Wide<S> outside, Wide<S>* to) {
  using T = Wide<S>;
  constexpr int64_t n = kLanes<T>;
  NaNs<T> nans;
  to += parts.left;
  for (int64_t block = 0; block < parts.blocks; ++block, to += n) {
    const int64_t column = (parts.first + block * n) * kStride;
    Vec<T> v[kStride], parted[kStride];
    if (column + kStride * n <= width) {
#pragma GCC unroll 4
      for (int i = 0; i < kStride; ++i) v[i] = read(row + column + i * n);
    } else {
#pragma GCC unroll 4
      for (int i = 0; i < kStride; ++i) {
        const int64_t count = width - column - i * n;
        v[i] = broadcast(outside);
        if (count >= n) {
          v[i] = read(row + column + i * n);
        } else if (count > 0) {
          v[i] = first_lanes_mask<T>(count) ? read_partial(row + column + i * n, count) : v[i];
        }
      }
    }
#pragma GCC unroll 2
    for (int i = 0; i < kStride; i += 2) nans.look_at(v[i], v[std::min(i + 1, kStride - 1)]);
    part<T, kStride>(v, parted);
#pragma GCC unroll 4
    for (int i = 0; i < kStride; ++i) store(to + i * parts.size, parted[i]);
  }
  return nans.any();
}

template <class S>
auto load_parts_for(int64_t stride) {
  constexpr decltype(&load_parts<S, 1>) by_stride[kMostParts] = {&load_parts<S, 1>, &load_parts<S, 2>,
                                                                 &load_parts<S, 3>, &load_parts<S, 4>};
  return by_stride[stride - 1];
}

// The reverse: writes `count` numbers whose parts lie part_size apart.
template <class S, int kStride>
void join_parts(const Wide<S>* parts, int64_t part_size, int64_t count, S* to) {
  using T = Wide<S>;
  constexpr int64_t n = kLanes<T>;
  for (int64_t x = 0; x < count; x += kStride * n, parts += n) {
    Vec<T> v[kStride], joined[kStride];
#pragma GCC unroll 4
    for (int i = 0; i < kStride; ++i) v[i] = load(parts + i * part_size);
    join<T, kStride>(v, joined);
#pragma GCC unroll 4
    for (int i = 0; i < kStride; ++i) {
      const int64_t left = count - x - i * n;
      if (left >= n) {
        write(to + x + i * n, joined[i]);
      } else if (left > 0) {
        write_partial(to + x + i * n, joined[i], left);
      }
    }
  }
}

template <class S>
auto join_parts_for(int64_t stride) {
  constexpr decltype(&join_parts<S, 1>) by_stride[kMostParts] = {&join_parts<S, 1>, &join_parts<S, 2>,
                                                                 &join_parts<S, 3>, &join_parts<S, 4>};
  return by_stride[stride - 1];
}

// A row of the source that a result row is computed from, and the slot of scratch memory it is kept in.
struct KeptRow {
  int64_t row, slot;
  int64_t tap;
  double factor;
};

// Some rows, at every depth, and some columns of a plane of the result, or of several planes.
struct Piece {
  int64_t plane, planes, y_begin, y_end, x_begin, x_end;
};

// How planes are cut into pieces. Source rows are kept from their first to their last use within a piece, whose result
// rows come by rising depth and, within one, rising height.
class Pieces {
 public:
  // Columns are cut at multiples of `step`. Planes of short rows are taken together, as many as make up a row of
  // `worth` columns.
  explicit Pieces(const Relation& relation, int64_t number_bytes, int64_t step = 1, int64_t worth = 0)
      : out_(relation.result), step_(step), planes_(relation.images * relation.channels) {
    constexpr int64_t kMostColumns = 512, kKeptBytes = 128 * 1024, kNumbers = 262144;
    const Extent &in = relation.source, &out = relation.result;
    chunks_ = (out[2] + kMostColumns - 1) / kMostColumns;
    const bool flat = in[0] == 1 && out[0] == 1;
    slot_depths_ = longest_span(relation.along[0], out[0], 1);
    const int64_t rows = std::max<int64_t>(1, in[1] / out[1]);  // of the source, for one of the result
    together_ = std::clamp<int64_t>(worth / out[2], 1, std::max<int64_t>(1, planes_ / thread_count()));
    const int64_t numbers = together_ * (out[0] * out[2] + in[0] * rows * in[2]) / chunks_;
    band_ = std::clamp<int64_t>(
        flat ? kNumbers / numbers : kKeptBytes / (slot_depths_ * rows * together_ * columns() * number_bytes), 1,
        out[1]);
    bands_ = (out[1] + band_ - 1) / band_;
    slot_heights_ = longest_span(relation.along[1], out[1], flat ? 1 : band_);
    count_ = (planes_ + together_ - 1) / together_ * bands_ * chunks_;
    grain_ = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, numbers * band_));
  }

  int64_t columns() const { return (out_[2] + chunks_ - 1) / chunks_ + step_; }  // of the widest piece, or more
  int64_t planes() const { return together_; }                                   // of a piece, at most
  int64_t slots() const { return slot_depths_ * slot_heights_; }
  int64_t slot(int64_t d, int64_t h) const { return d % slot_depths_ * slot_heights_ + h % slot_heights_; }

  // body(first, last) on several threads; piece(i) for i between them.
  template <class Body>
  void share(const Body& body) const {
    parallel_for(0, count_, grain_, body);
  }
  Piece piece(int64_t i) const {
    const int64_t chunk = i % chunks_, y_begin = i / chunks_ % bands_ * band_;
    const int64_t plane = i / chunks_ / bands_ * together_;
    return {plane,       std::min(together_, planes_ - plane),
            y_begin,     std::min(out_[1], y_begin + band_),
            edge(chunk), edge(chunk + 1)};
  }

 private:
  // The most sources, from first to last, of `at_once` results.
  static int64_t longest_span(const Links& along, int64_t count, int64_t at_once) {
    int64_t longest = 1;
    for (int64_t i = 0; i < count; i += at_once) {
      int64_t begin = INT64_MAX, end = 0;
      add_sources(along, i, std::min(count, i + at_once), begin, end);
      longest = std::max(longest, end - begin);
    }
    return longest;
  }

  int64_t edge(int64_t chunk) const { return std::min(out_[2], round_up(out_[2] * chunk / chunks_, step_)); }

  Extent out_;
  int64_t step_, planes_, together_, chunks_, band_, bands_, slot_depths_, slot_heights_, count_, grain_;
};

// Lists the source rows of every result row of a plane, relation.most_rows apart, and how many each has.
SCRATCHNN_INLINE void list_rows(const Relation& relation, const Pieces& pieces, KeptRow* rows, int64_t* counts) {
  const Links &depth = relation.along[0], &height = relation.along[1];
  for (int64_t z = 0; z < relation.result[0]; ++z) {
    for (int64_t y = 0; y < relation.result[1]; ++y, rows += relation.most_rows) {
      int64_t count = 0;
      for (int64_t i = 0; i < depth.count(z); ++i) {
        for (int64_t j = 0; j < height.count(y); ++j) {
          const Link &d = depth.begin(z)[i], &h = height.begin(y)[j];
          rows[count++] = {d.source * relation.source[1] + h.source, pieces.slot(d.source, h.source), d.tap + h.tap,
                           d.factor * h.factor};
        }
      }
      *counts++ = count;
    }
  }
}

// keep(row) for every source row of a piece, once, before the first result row that needs it; finish(i, rows, count)
// for every result row, i its number in the plane. `held` has an entry for each slot.
template <class Keep, class Finish>
SCRATCHNN_INLINE void for_each_row_of(const Piece& piece, const Relation& relation, const Pieces& pieces,
                                      const KeptRow* all_rows, const int64_t* counts, int64_t* held, const Keep& keep,
                                      const Finish& finish) {
  std::fill_n(held, pieces.slots(), int64_t(-1));
  for (int64_t z = 0; z < relation.result[0]; ++z) {
    for (int64_t y = piece.y_begin; y < piece.y_end; ++y) {
      const int64_t i = z * relation.result[1] + y;
      const KeptRow* rows = all_rows + i * relation.most_rows;
      for (int64_t r = 0; r < counts[i]; ++r) {
        if (held[rows[r].slot] == rows[r].row) continue;
        held[rows[r].slot] = rows[r].row;
        keep(rows[r]);
      }
      finish(i, rows, counts[i]);
    }
  }
}

// How the backward passes keep a row of windows: those from m - before on, for the pixels of column stride * m + part,
// with room on both sides for windows outside of the output.
struct GatheredRow {
  int64_t before, part_size, size;

  // For each part, columns.taps places: where the windows lie that have tap k on its pixels, or -1: none has.
  void list_places(const EvenColumns& columns, int64_t* places) const {
    for (int64_t part = 0; part < columns.stride; ++part) {
      for (int64_t k = 0; k < columns.taps; ++k) {
        const int64_t at = part + columns.padding - k * columns.dilation + before * columns.stride;
        *places++ = at % columns.stride == 0 ? at / columns.stride : -1;
      }
    }
  }
};

template <class T>
SCRATCHNN_INLINE GatheredRow gathered_row(const EvenColumns& columns, int64_t count) {
  const int64_t stride = columns.stride;
  const int64_t before = ((columns.taps - 1) * columns.dilation + stride - 1) / stride;
  const int64_t after = (columns.padding + stride - 1) / stride;
  const int64_t part_size = round_up((count + stride - 1) / stride, kLanes<T>);
  return {before, part_size, round_up(before + part_size + after, kLanes<T>)};
}

// Whether some results have no source.
SCRATCHNN_INLINE bool has_empty(const Relation& relation) {
  for (int dim = 0; dim < kSpatialRank; ++dim) {
    for (int64_t i = 0; i < relation.result[dim]; ++i) {
      if (relation.along[dim].count(i) == 0) return true;
    }
  }
  return false;
}

// Whether rows are worth it: columns that step evenly, by not too much, more than half a vector of them.
template <class T>
SCRATCHNN_INLINE bool takes_rows(const Relation& forward) {
  const EvenColumns& columns = forward.columns;
  return !forward.channels_last && columns.taps > 0 && columns.stride <= kMostParts && columns.taps <= 32 &&
         columns.taps * columns.dilation <= 256 && forward.result[2] > kLanes<T> && !has_empty(forward);
}

// A parted source row, and its part of the taps' numbers.
template <class T>
struct PartedRow {
  const T* numbers;
  IntOf<T> tap;
};

// body(first, count) for the vectors of a row. The last one overlaps the one before, where there is one.
template <class T, class Body>
SCRATCHNN_INLINE void for_each_vector(int64_t width, const Body& body) {
  const int64_t count = std::min<int64_t>(kLanes<T>, width);
  for (int64_t x = 0; x < width; x += count) {
    x = std::min(x, width - count);
    body(x, count);
  }
}

// The same for rows of at least a vector: body(first).
template <class T, class Body>
SCRATCHNN_INLINE void for_each_whole_vector(int64_t width, const Body& body) {
  for (int64_t x = 0; x < width; x += kLanes<T>) {
    x = std::min<int64_t>(x, width - kLanes<T>);
    body(x);
  }
}

// The first `count` numbers of a vector, or all.
template <class T>
SCRATCHNN_INLINE Vec<T> load_some(const T* p, int64_t count) {
  return count == kLanes<T> ? load(p) : read_partial(p, count);
}
template <class T>
SCRATCHNN_INLINE void store_some(T* p, Vec<T> v, int64_t count) {
  count == kLanes<T> ? store(p, v) : write_partial(p, v, count);
}

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

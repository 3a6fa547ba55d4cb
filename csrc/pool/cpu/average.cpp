// Average pooling of any windows, adaptive ones included.
//
// Vectors hold several channels of one pixel, or, of contiguous planes, several pixels of a row (planes.h). A window is
// summed row by row, each row by itself: the error of a large window grows with its sides, not with its area.
#include "common/stream.h"
#include "pool/cpu/average_threes.h"
#include "pool/cpu/rows.h"
#include "pool/cpu/side_by_side.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {
namespace {

// A vector of a block, past the cache if kStream.
template <bool kStream, class S, class Block>
SCRATCHNN_INLINE void put(S* p, Vec<Wide<S>> value, int v, const Block& block) {
  if constexpr (kStream) {
    stream(p + v * kLanes<Wide<S>>, value);
  } else {
    store_vector(p, value, v, block);
  }
}

// Some columns of an output row: sums over windows, each divided by its divisor.
template <bool kStream, class S>
void average_row(const Relation& forward, const S* source, int64_t channels, const SourceRow* rows, int64_t row_count,
                 Columns result, S* output) {
  using T = Wide<S>;
  const int64_t known = known_rows(forward, row_count);
  for (int64_t x = result.begin; x < result.end; ++x, output += channels) {
    const Link* columns = forward.along[2].begin(x);
    const int64_t column_count = forward.along[2].count(x);
    const bool empty = row_count == 0 || column_count == 0;
    const T divisor = static_cast<T>(empty ? 1.0 : rows[0].factor * columns[0].factor);
    for_each_block<T>(channels, [&](auto block) {
      Vec<T> sum[block.vectors] = {};
      for (int64_t r = 0; r < row_count; ++r) {
        Vec<T> row_sum[block.vectors] = {};
        for (int64_t k = 0; k < column_count; ++k) {
          const S* p = source + (rows[r].pixel + columns[k].source) * channels + block.channel;
#pragma GCC unroll 4
          for (int v = 0; v < block.vectors; ++v) {
            if (r >= known) prefetch_ahead(p + v * kLanes<T>);
            row_sum[v] += load_vector(p, v, block);
          }
        }
#pragma GCC unroll 4
        for (int v = 0; v < block.vectors; ++v) sum[v] += row_sum[v];
      }
#pragma GCC unroll 4
      for (int v = 0; v < block.vectors; ++v) put<kStream>(output + block.channel, sum[v] / divisor, v, block);
    });
  }
}

// Some columns of a row of the input's gradient: its pixels gather their share from the windows that hold them.
template <bool kStream, class S>
void average_backward_row(const Relation& backward, const S* grad, int64_t channels, const SourceRow* rows,
                          int64_t row_count, Columns result, S* grad_input) {
  using T = Wide<S>;
  for (int64_t x = result.begin; x < result.end; ++x, grad_input += channels) {
    const Link* columns = backward.along[2].begin(x);
    const int64_t column_count = backward.along[2].count(x);
    for_each_block<T>(channels, [&](auto block) {
      Vec<T> sum[block.vectors] = {};
      for (int64_t r = 0; r < row_count; ++r) {
        for (int64_t k = 0; k < column_count; ++k) {
          const S* p = grad + (rows[r].pixel + columns[k].source) * channels + block.channel;
          const T share = static_cast<T>(rows[r].factor * columns[k].factor);
#pragma GCC unroll 4
          for (int v = 0; v < block.vectors; ++v) sum[v] += share * load_vector(p, v, block);
        }
      }
#pragma GCC unroll 4
      for (int v = 0; v < block.vectors; ++v) put<kStream>(grad_input + block.channel, sum[v], v, block);
    });
  }
}

// The rows of one pass.
struct Averages {
  template <bool kStream, class S>
  static constexpr auto row = &average_row<kStream, S>;
};
struct Shares {
  template <bool kStream, class S>
  static constexpr auto row = &average_backward_row<kStream, S>;
};

template <class Pass, class S>
void walk_channels_last(const S* source, S* result, const Relation& relation) {
  const int64_t channels = relation.channels, numbers = relation.images * channels * volume(relation.result);
  const bool large = channels % kLanes<Wide<S>> == 0 && is_worth_streaming(result, numbers, channels);
  const auto run = large ? Pass::template row<true, S> : Pass::template row<false, S>;
  for_each_row(relation, [&](int64_t n, const SourceRow* rows, int64_t row_count, int64_t pixel) {
    run(relation, source + n * volume(relation.source) * channels, channels, rows, row_count, {0, relation.result[2]},
        result + (n * volume(relation.result) + pixel) * channels);
    if (large) finish_streaming();
  });
}

// Contiguous planes whose rows are not worth it.
template <class Pass, class S>
void walk_tiles(const S* source, S* result, const Relation& relation) {
  using T = Wide<S>;
  constexpr int64_t channels = kTilePlanes<T>;
  for_each_tile<T>(relation, [&](const Tile& tile) {
    const int64_t row_size = (tile.columns.end - tile.columns.begin) * channels;
    auto [from, to, rows] =
        carve<T, T, SourceRow>(tile.source_pixels() * channels, tile.result_pixels() * channels, relation.most_rows);
    load_tile(relation, tile, source, from);
    for (int64_t y = tile.y_begin; y < tile.y_end; ++y) {
      const int64_t row_count = source_rows(relation, tile.z, y, tile.region, rows);
      Pass::template row<false, T>(relation, from, channels, rows, row_count, tile.columns,
                                   to + (y - tile.y_begin) * row_size);
    }
    store_tile(relation, tile, to, result);
  });
}

// Some columns of an output row of a plane: tap k of row r is, for all of them, rows[r].numbers from place[k] on. The
// counts are kRows and kTaps, unless these are 0.
template <class S, int kRows, int kTaps>
void average_of_row(const PartedRow<Wide<S>>* rows, int64_t row_count, const int64_t* place, int64_t tap_count,
                    const Wide<S>* divisors, int64_t width, S* output) {
  using T = Wide<S>;
  constexpr bool kFixed = kRows > 0;
  const T* from[kFixed ? kRows * kTaps : 1];  // a copy, which no store can change
  for (int i = 0; i < kRows * kTaps; ++i) from[i] = rows[i / kTaps].numbers + place[i % kTaps];
  for_each_vector<T>(width, [&](int64_t x, int64_t lanes) {
    Vec<T> sum = {};
    if constexpr (kFixed) {
#pragma GCC unroll 3
      for (int r = 0; r < kRows; ++r) {
        Vec<T> row_sum = load(from[r * kTaps] + x);
#pragma GCC unroll 3
        for (int k = 1; k < kTaps; ++k) row_sum += load(from[r * kTaps + k] + x);
        sum += row_sum;
      }
    } else {
      for (int64_t r = 0; r < row_count; ++r) {
        Vec<T> row_sum = {};
        for (int64_t k = 0; k < tap_count; ++k) row_sum += load(rows[r].numbers + place[k] + x);
        sum += row_sum;
      }
    }
    const Vec<T> mean = sum / load(divisors + x);
    lanes == kLanes<T> ? write(output + x, mean) : write_partial(output + x, mean, lanes);
  });
}

template <class S>
auto average_of_row_for(int64_t rows, int64_t taps) {
  if (rows == 1 && taps == 2) return &average_of_row<S, 1, 2>;
  if (rows == 2 && taps == 2) return &average_of_row<S, 2, 2>;
  if (rows == 2 && taps == 3) return &average_of_row<S, 2, 3>;
  if (rows == 3 && taps == 3) return &average_of_row<S, 3, 3>;
  return &average_of_row<S, 0, 0>;
}

template <class S>
void average_of_rows(const S* input, S* output, const Relation& forward) {
  using T = Wide<S>;
  const EvenColumns& columns = forward.columns;
  const Extent &in = forward.source, &out = forward.result;
  const Pieces pieces(forward, sizeof(T));
  const int64_t out_rows = out[0] * out[1], row_size = columns.stride * most_of_part<T>(columns, pieces.columns());
  const bool large = is_large<S>(forward.images * forward.channels * volume(out));
  const auto load_row = load_parts_for<S>(columns.stride);
  pieces.share([&](int64_t first, int64_t last) {
    auto [rows, counts, held, window, place, divisors, numbers, values] =
        carve<KeptRow, int64_t, int64_t, PartedRow<T>, int64_t, T, T, S>(
            out_rows * forward.most_rows, out_rows, pieces.slots(), forward.most_rows, columns.taps,
            pieces.columns() + kLanes<T>, pieces.slots() * row_size, Outbox<S>::kRoom);
    list_rows(forward, pieces, rows, counts);
    Outbox<S> outbox(large, values);
    int64_t x_begin = -1;
    double divided_by = 0;  // a row's part of the divisors; 0: they are those of other columns
    for (int64_t i = first; i < last; ++i) {
      const Piece piece = pieces.piece(i);
      const int64_t x_count = piece.x_end - piece.x_begin;
      const Parts parts = parts_of<T>(columns, in[2], piece.x_begin, x_count);
      if (piece.x_begin != x_begin) {
        x_begin = piece.x_begin;
        divided_by = 0;
        std::fill_n(numbers, pieces.slots() * row_size, T(0));
        for (int64_t k = 0; k < columns.taps; ++k) place[k] = parts.place(columns, k);
        std::fill_n(divisors, pieces.columns() + kLanes<T>, T(1));
      }
      const auto keep = [&](const KeptRow& row) {
        load_row(input + (piece.plane * in[0] * in[1] + row.row) * in[2], in[2], parts, T(0),
                 numbers + row.slot * row_size);
      };
      const auto finish = [&](int64_t row, const KeptRow* kept, int64_t count) {
        for (int64_t r = 0; r < count; ++r) window[r] = {numbers + kept[r].slot * row_size, 0};
        if (kept[0].factor != divided_by) {
          divided_by = kept[0].factor;
          for (int64_t x = 0; x < x_count; ++x) {
            divisors[x] = static_cast<T>(divided_by * forward.along[2].begin(x_begin + x)->factor);
          }
        }
        average_of_row_for<S>(count, columns.taps)(
            window, count, place, columns.taps, divisors, x_count,
            outbox.row(output + (piece.plane * out_rows + row) * out[2] + x_begin, x_count));
      };
      for_each_row_of(piece, forward, pieces, rows, counts, held, keep, finish);
    }
    outbox.close();
  });
}

// A vector whose lanes add up to the sum of `count` numbers. Runs are summed by themselves, four partial sums
// at a time: the error grows with the number of runs, not of numbers.
template <class S, class T = Wide<S>>
SCRATCHNN_INLINE Vec<T> partial_sums(const S* p, int64_t count, Vec<IntOf<T>> lane) {
  constexpr int64_t n = kLanes<T>, kRun = 64 * n;
  if (count < n) return read_partial(p, count);
  Vec<T> total = {};
  int64_t i = 0;
  while (i + n <= count) {
    Vec<T> sums[4] = {};
    const int64_t end = std::min(count, i + kRun);
    for (; i + 4 * n <= end; i += 4 * n) {
      for (int v = 0; v < 4; ++v) {
        prefetch_ahead(p + i + v * n);
        sums[v] += read(p + i + v * n);
      }
    }
    for (; i + n <= end; i += n) {
      prefetch_ahead(p + i);
      sums[0] += read(p + i);
    }
    total += (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }
  // The last n numbers, without those already counted.
  const auto counted = static_cast<IntOf<T>>(n - (count - i));
  return total + (lane >= counted ? read(p + count - n) : Vec<T>{});
}

// Global average pooling of contiguous planes: no window to slide, nothing to transpose.
template <class S>
void average_planes(const S* input, S* output, const Relation& forward) {
  using T = Wide<S>;
  const int64_t pixels = volume(forward.source);
  const T divisor =
      static_cast<T>(forward.along[0].links->factor * forward.along[1].links->factor * forward.along[2].links->factor);
  parallel_for(0, forward.images * forward.channels, std::max<int64_t>(1, kGrain / pixels),
               [&](int64_t first, int64_t last) {
                 constexpr int n = kLanes<T>;
                 Vec<IntOf<T>> lane;
                 for (int v = 0; v < n; ++v) lane[v] = v;
                 for (int64_t i = first; i < last; i += n) {  // n planes, their lanes added up all at once
                   Vec<T> sums[n];
                   for (int v = 0; v < n; ++v) {
                     sums[v] = partial_sums(input + std::min(i + v, last - 1) * pixels, pixels, lane);
                   }
                   transpose<T>(sums);
                   for (int step = n / 2; step > 0; step /= 2) {
                     for (int v = 0; v < step; ++v) sums[v] += sums[v + step];
                   }
                   write_partial(output + i, sums[0] / divisor, std::min<int64_t>(n, last - i));
                 }
               });
}

// row[c], or nothing if it is `first`, plus the numbers of kPixels pixels; to be added to sums[c], if `last`.
template <class S, int kPixels>
void add_pixels(const S* pixel, int64_t stride, int64_t channels, bool first, bool last, Wide<S>* row, Wide<S>* sums) {
  using T = Wide<S>;
  for_each_vector_or_part<T>(channels, [&](int64_t c, int64_t lanes) {
    Vec<T> sum = first ? Vec<T>{} : load(row + c);
#pragma GCC unroll 8
    for (int i = 0; i < kPixels; ++i) {
      const S* p = pixel + i * stride + c;
      prefetch(p + kPixels * stride);
      sum += lanes == kLanes<T> ? read(p) : read_partial(p, lanes);
    }
    if (last) {
      store(sums + c, load(sums + c) + sum);
    } else {
      store(row + c, sum);
    }
  });
}

// Global average pooling of channels_last images: memory is read in order, all channels of some pixels at a time, and
// the sums stay in the cache. Each row of an image is summed by itself, as in average_row.
template <class S>
void average_pixels(const S* input, S* output, const Relation& forward) {
  using T = Wide<S>;
  constexpr int64_t kAtOnce = 2048;  // channels
  constexpr decltype(&add_pixels<S, 1>) add[] = {&add_pixels<S, 1>, &add_pixels<S, 2>, &add_pixels<S, 3>,
                                                 &add_pixels<S, 4>, &add_pixels<S, 5>, &add_pixels<S, 6>,
                                                 &add_pixels<S, 7>, &add_pixels<S, 8>};
  const int64_t channels = forward.channels, width = forward.source[2];
  const int64_t rows = forward.source[0] * forward.source[1], parts = (channels + kAtOnce - 1) / kAtOnce;
  const T divisor =
      static_cast<T>(forward.along[0].links->factor * forward.along[1].links->factor * forward.along[2].links->factor);
  const int64_t grain = std::max<int64_t>(1, kGrain / (rows * width * std::min(channels, kAtOnce)));
  parallel_for(0, forward.images * parts, grain, [&](int64_t first, int64_t last) {
    T* row_sums = scratch<T>(2 * (kAtOnce + kLanes<T>));
    T* sums = row_sums + kAtOnce + kLanes<T>;
    for (int64_t i = first; i < last; ++i) {
      const int64_t image = i / parts, start = i % parts * kAtOnce, count = std::min(kAtOnce, channels - start);
      const S* pixel = input + image * rows * width * channels + start;
      std::fill_n(sums, count + kLanes<T>, T(0));
      for (int64_t row = 0; row < rows; ++row) {
        for (int64_t x = 0; x < width; x += 8) {
          const int64_t pixels = std::min<int64_t>(8, width - x);
          add[pixels - 1](pixel, channels, count, x == 0, x + pixels == width, row_sums, sums);
          pixel += pixels * channels;
        }
      }
      for_each_vector_or_part<T>(count, [&](int64_t c, int64_t lanes) {
        write_partial(output + image * channels + start + c, load(sums + c) / divisor, lanes);
      });
    }
  });
}

template <class S>
void spread_over_planes(const S* grad, S* grad_input, const Relation& backward) {
  using T = Wide<S>;
  const int64_t pixels = volume(backward.result);
  const T share = static_cast<T>(backward.along[0].links->factor * backward.along[1].links->factor *
                                 backward.along[2].links->factor);
  parallel_for(0, backward.images * backward.channels, std::max<int64_t>(1, kGrain / pixels),
               [&](int64_t first, int64_t last) {
                 for (int64_t i = first; i < last; ++i) {
                   S number;
                   write_one(&number, share * read_one(grad + i));
                   std::fill_n(grad_input + i * pixels, pixels, number);
                 }
               });
}

// Whether share_rows serves these windows.
template <class T>
SCRATCHNN_INLINE bool gives_rows(const Relation& backward) {
  const EvenColumns& columns = backward.columns;
  return columns.taps > 0 && columns.stride <= kMostParts && columns.taps <= 32 && backward.source[2] > kLanes<T>;
}

// to[m] = sum over terms of terms[i][m]. There are kTerms, unless that is 0.
template <class T, int kTerms>
void sum_shares(const T* const* terms, int64_t term_count, int64_t count, T* to) {
  const T* fixed[kTerms > 0 ? kTerms : 1];  // a copy, which no store can change
  std::copy_n(terms, kTerms, fixed);
  for_each_whole_vector<T>(count, [&](int64_t m) {
    Vec<T> sum = {};
    if constexpr (kTerms > 0) {
#pragma GCC unroll 9
      for (int i = 0; i < kTerms; ++i) sum += load(fixed[i] + m);
    } else {
      for (int64_t i = 0; i < term_count; ++i) sum += load(terms[i] + m);
    }
    store(to + m, sum);
  });
}

template <class T>
auto sum_shares_for(int64_t count) {
  if (count == 1) return &sum_shares<T, 1>;
  if (count == 2) return &sum_shares<T, 2>;
  if (count == 9) return &sum_shares<T, 9>;
  return &sum_shares<T, 0>;
}

// Contiguous planes, row by row: as gather_rows of max_pool_backward.cpp, with shares in place of questions.
template <class S>
void share_rows(const S* grad, S* grad_input, const Relation& backward) {
  using T = Wide<S>;
  constexpr int64_t n = kLanes<T>;
  const EvenColumns& columns = backward.columns;
  const Extent &in = backward.result, &out = backward.source;
  const Pieces pieces(backward, sizeof(T), columns.stride);
  const GatheredRow layout = gathered_row<T>(columns, pieces.columns());
  const int64_t in_rows = in[0] * in[1];
  const bool large = is_large<S>(backward.images * backward.channels * volume(in));
  const auto join_row = join_parts_for<S>(columns.stride);
  pieces.share([&](int64_t first, int64_t last) {
    auto [rows, counts, held, places, terms, factors, shares, dy, parts, values] =
        carve<KeptRow, int64_t, int64_t, int64_t, const T*, double, T, T, T, S>(
            in_rows * backward.most_rows, in_rows, pieces.slots(), columns.stride * columns.taps,
            columns.taps * backward.most_rows, out[2], layout.size, pieces.slots() * layout.size,
            columns.stride * layout.part_size, Outbox<S>::kRoom);
    list_rows(backward, pieces, rows, counts);
    layout.list_places(columns, places);
    for (int64_t x = 0; x < in[2]; ++x) {  // each window's part of the divisor, which all of its links have
      const Links& along = backward.along[2];
      for (const Link* link = along.begin(x); link < along.begin(x + 1); ++link) factors[link->source] = link->factor;
    }
    Outbox<S> outbox(large, values);
    int64_t x_begin = -1;
    double shared_by = 0;  // a row's part of the shares; 0: they are those of other columns
    for (int64_t i = first; i < last; ++i) {
      const Piece piece = pieces.piece(i);
      const int64_t x_count = piece.x_end - piece.x_begin, m_count = (x_count + columns.stride - 1) / columns.stride;
      const int64_t first_window = piece.x_begin / columns.stride - layout.before;
      const int64_t begin = std::max<int64_t>(0, first_window);
      const int64_t end = std::max(begin, std::min(out[2], first_window + layout.size));
      if (piece.x_begin != x_begin) {
        x_begin = piece.x_begin;
        shared_by = 0;
        std::fill_n(dy, pieces.slots() * layout.size, T(0));
      }
      const auto keep = [&](const KeptRow& row) {
        if (row.factor != shared_by) {
          shared_by = row.factor;
          for (int64_t x = begin; x < end; ++x) shares[x - begin] = static_cast<T>(shared_by * factors[x]);
        }
        const S* from = grad + (piece.plane * out[0] * out[1] + row.row) * out[2] + begin;
        T* to = dy + row.slot * layout.size + begin - first_window;
        for_each_vector<T>(end - begin, [&](int64_t x, int64_t lanes) {
          if (lanes == n) {
            store(to + x, read(from + x) * load(shares + x));
          } else {
            for (int64_t i = 0; i < lanes; ++i) to[i] = read_one(from + i) * shares[i];
          }
        });
      };
      const auto finish = [&](int64_t row, const KeptRow* windows, int64_t count) {
        S* to = grad_input + (piece.plane * in_rows + row) * in[2] + x_begin;
        for (int64_t part = 0; part < columns.stride; ++part) {
          int64_t term_count = 0;
          for (int64_t r = 0; r < count; ++r) {
            for (int64_t k = 0; k < columns.taps; ++k) {
              const int64_t at = places[part * columns.taps + k];
              if (at >= 0) terms[term_count++] = dy + windows[r].slot * layout.size + at;
            }
          }
          if constexpr (std::is_same_v<S, T>) {
            if (columns.stride == 1 && x_count >= n) {  // the part is the row
              return sum_shares_for<T>(term_count)(terms, term_count, x_count, outbox.row(to, x_count));
            }
          }
          sum_shares_for<T>(term_count)(terms, term_count, round_up(m_count, n), parts + part * layout.part_size);
        }
        join_row(parts, layout.part_size, x_count, outbox.row(to, x_count));
      };
      for_each_row_of(piece, backward, pieces, rows, counts, held, keep, finish);
    }
    outbox.close();
  });
}

template <class T>
void average_side_by_side(const T* input, T* output, const Relation& forward) {
  for_each_plane_row<T, 2>(
      forward, forward.result[2],
      [&](int64_t plane, int64_t place, const SourceRow* rows, int64_t row_count, int64_t windows) {
        const T* source = input + plane * volume(forward.source);
        const T divisor = static_cast<T>(row_count == 0 ? 1.0 : rows[0].factor * forward.along[2].links->factor);
        for_each_vector<T>(windows, [&](int64_t x, int64_t count) {
          Vec<T> sum = {};
          for (int64_t r = 0; r < row_count; ++r) {
            Vec<T> columns[2];
            load_columns_of<T, 2>(source + rows[r].pixel + 2 * x, count, columns);
            sum += columns[0] + columns[1];
          }
          store_some(output + place + x, sum / divisor, count);
        });
      });
}

template <class T>
void share_side_by_side(const T* grad, T* grad_input, const Relation& backward) {
  for_each_plane_row<T, 2>(
      backward, backward.source[2],
      [&](int64_t plane, int64_t place, const SourceRow* rows, int64_t row_count, int64_t windows) {
        const T* source = grad + plane * volume(backward.source);
        for_each_vector<T>(windows, [&](int64_t x, int64_t count) {
          Vec<T> sum = {};
          for (int64_t r = 0; r < row_count; ++r) {
            const T share = static_cast<T>(rows[r].factor * backward.along[2].links->factor);
            sum += share * load_some(source + rows[r].pixel + x, count);
          }
          store_repeated<2>(grad_input + place + 2 * x, sum, count);
        });
      });
}

template <class S>
void average(const S* input, S* output, const Relation& forward) {
  if (is_global(forward, forward.source, forward.result)) {
    auto* run = forward.channels_last ? &average_pixels<S> : &average_planes<S>;
    return run(input, output, forward);
  }
  if constexpr (std::is_same_v<S, Wide<S>>) {
    if (takes_side_by_side<2>(forward)) return average_side_by_side(input, output, forward);
    Threes threes;
    if (takes_threes<S>(forward, -forward.columns.padding, threes)) {
      return walk_threes<true>(input, output, forward, threes);
    }
  }
  if (forward.channels_last) return walk_channels_last<Averages>(input, output, forward);
  if (!takes_rows<Wide<S>>(forward)) return walk_tiles<Averages>(input, output, forward);
  average_of_rows(input, output, forward);
}

template <class S>
void average_backward(const S* grad, S* grad_input, const Relation& backward) {
  if constexpr (std::is_same_v<S, Wide<S>>) {
    if (gives_side_by_side<2>(backward)) return share_side_by_side(grad, grad_input, backward);
    Threes threes;
    if (takes_threes<S>(backward, backward.columns.padding - 2, threes)) {
      return walk_threes<false>(grad, grad_input, backward, threes);
    }
  }
  if (backward.channels_last) return walk_channels_last<Shares>(grad, grad_input, backward);
  if (is_global(backward, backward.result, backward.source)) return spread_over_planes(grad, grad_input, backward);
  if (!gives_rows<Wide<S>>(backward)) return walk_tiles<Shares>(grad, grad_input, backward);
  share_rows(grad, grad_input, backward);
}

}  // namespace

#define SCRATCHNN_REGISTER_AVERAGE(S)                        \
  SCRATCHNN_REGISTER_KERNEL(average_kernel<S>, &average<S>); \
  SCRATCHNN_REGISTER_KERNEL(average_backward_kernel<S>, &average_backward<S>)

SCRATCHNN_REGISTER_AVERAGE(float);
SCRATCHNN_REGISTER_AVERAGE(double);
SCRATCHNN_REGISTER_AVERAGE(BFloat16);
SCRATCHNN_REGISTER_AVERAGE(Half);

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

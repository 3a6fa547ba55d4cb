// The gradient of max pooling, by gathering: each input pixel asks the windows that hold it whether it was their
// maximum. One compare and one masked add per window, no memory cleared beforehand, no two threads at one pixel.
#include "common/stream.h"
#include "pool/cpu/max_threes.h"
#include "pool/cpu/planes.h"
#include "pool/cpu/rows.h"
#include "pool/cpu/side_by_side.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {
namespace {

// One row of the input's gradient, its channels side by side; past the cache if kStream.
template <bool kStream, class S, class Offset>
void gather_row(const Relation& backward, const S* grad, const Offset* offsets, int64_t channels, const SourceRow* rows,
                int64_t row_count, S* grad_input) {
  using T = Wide<S>;
  for (int64_t x = 0; x < backward.result[2]; ++x, grad_input += channels) {
    const Link* columns = backward.along[2].begin(x);
    const int64_t column_count = backward.along[2].count(x);
    for_each_block<T>(channels, [&](auto block) {
      Vec<T> sum[block.vectors] = {};
      for (int64_t r = 0; r < row_count; ++r) {
        for (int64_t k = 0; k < column_count; ++k) {
          const int64_t p = (rows[r].pixel + columns[k].source) * channels + block.channel;
          const auto tap = static_cast<IntOf<T>>(rows[r].tap + columns[k].tap);
#pragma GCC unroll 4
          for (int v = 0; v < block.vectors; ++v) {
            const Vec<IntOf<T>> chosen = load_offset_vector<T>(offsets + p, v, block);
            sum[v] += chosen == tap ? load_vector(grad + p, v, block) : Vec<T>{};
          }
        }
      }
#pragma GCC unroll 4
      for (int v = 0; v < block.vectors; ++v) {
        if constexpr (kStream) {
          stream(grad_input + block.channel + v * kLanes<T>, sum[v]);
        } else {
          store_vector(grad_input + block.channel, sum[v], v, block);
        }
      }
    });
  }
}

template <class S, class Offset>
void gather_channels_last(const S* grad, const Offset* offsets, S* grad_input, const Relation& backward) {
  const int64_t channels = backward.channels, numbers = backward.images * channels * volume(backward.result);
  const bool large = channels % kLanes<Wide<S>> == 0 && is_worth_streaming(grad_input, numbers, channels);
  auto* run = large ? &gather_row<true, S, Offset> : &gather_row<false, S, Offset>;
  for_each_row(backward, [&](int64_t n, const SourceRow* rows, int64_t row_count, int64_t pixel) {
    const int64_t image = n * volume(backward.source) * channels;
    run(backward, grad + image, offsets + image, channels, rows, row_count,
        grad_input + (n * volume(backward.result) + pixel) * channels);
    if (large) finish_streaming();
  });
}

// What a part of a row's pixels asks a row of windows: theirs was tap `wanted`, and if so, what is its gradient?
template <class T>
struct Term {
  const T* grad;
  const IntOf<T>* chosen;
  IntOf<T> wanted;
};

// to[m] = sum over terms of grad[m], where chosen[m] is the tap wanted. There are kTerms, unless that is 0.
template <class T, int kTerms>
void sum_terms(const Term<T>* terms, int64_t term_count, int64_t count, T* to) {
  Term<T> fixed[kTerms > 0 ? kTerms : 1];  // a copy: the compiler must take it that the stores may change the original
  std::copy_n(terms, kTerms, fixed);
  for_each_whole_vector<T>(count, [&](int64_t m) {
    Vec<T> sum = {};
    const auto add = [&](const Term<T>& term) {
      sum += load(term.chosen + m) == term.wanted ? load(term.grad + m) : Vec<T>{};
    };
    if constexpr (kTerms > 0) {
#pragma GCC unroll 9
      for (int i = 0; i < kTerms; ++i) add(fixed[i]);
    } else {
      for (int64_t i = 0; i < term_count; ++i) add(terms[i]);
    }
    store(to + m, sum);
  });
}

template <class T>
auto sum_terms_for(int64_t count) {
  constexpr decltype(&sum_terms<T, 0>) by_count[] = {&sum_terms<T, 0>, &sum_terms<T, 1>, &sum_terms<T, 2>,
                                                     &sum_terms<T, 3>, &sum_terms<T, 4>};
  if (count == 9) return &sum_terms<T, 9>;
  return by_count[count <= 4 ? count : 0];
}

// Contiguous planes, row by row. With stride S, the pixels S m + part of one part are in the windows m + shift, for a
// few pairs of a tap and a shift that all of them share; the row is then joined from its parts. Short rows of several
// planes are kept one after the other, and are one row to the sums.
template <class S>
void gather_rows(const S* grad, const uint8_t* offsets, S* grad_input, const Relation& backward) {
  using T = Wide<S>;
  using Int = IntOf<T>;
  constexpr int64_t n = kLanes<T>;
  const EvenColumns& columns = backward.columns;
  const Extent &in = backward.result, &out = backward.source;
  const int64_t stride = columns.stride;
  const int64_t worth = stride > 1 ? 256 : 0;  // with stride 1 a row needs no joining, and is written as it is summed
  const Pieces pieces(backward, sizeof(T) + sizeof(Int), stride, worth);
  const int64_t in_rows = in[0] * in[1];
  const GatheredRow layout = gathered_row<T>(columns, pieces.columns());
  const int64_t row_size = pieces.planes() * layout.size;
  // Rows of one plane follow each other; those of several would go past the cache in scraps.
  const bool large = pieces.planes() == 1 && is_large<S>(backward.images * backward.channels * volume(in));
  const auto join_row = join_parts_for<S>(stride);
  pieces.share([&](int64_t first, int64_t last) {
    auto [rows, counts, held, places, terms, dy, chosen, parts, values] =
        carve<KeptRow, int64_t, int64_t, int64_t, Term<T>, T, Int, T, S>(
            in_rows * backward.most_rows, in_rows, pieces.slots(), stride * columns.taps,
            columns.taps * backward.most_rows, pieces.slots() * row_size, pieces.slots() * row_size, stride * row_size,
            Outbox<S>::kRoom);
    list_rows(backward, pieces, rows, counts);
    layout.list_places(columns, places);
    Outbox<S> outbox(large, values);
    int64_t x_begin = -1;
    for (int64_t i = first; i < last; ++i) {
      const Piece piece = pieces.piece(i);
      const int64_t x_count = piece.x_end - piece.x_begin, m_count = (x_count + stride - 1) / stride;
      const int64_t first_window = piece.x_begin / stride - layout.before;  // that of the kept rows' first number
      if (piece.x_begin != x_begin) {
        x_begin = piece.x_begin;
        std::fill_n(dy, pieces.slots() * row_size, T(0));
        std::fill_n(chosen, pieces.slots() * row_size, Int(-1));  // windows outside of the output chose no pixel
      }
      const int64_t begin = std::max<int64_t>(0, first_window);
      const int64_t end = std::max(begin, std::min(out[2], first_window + layout.size));
      const auto keep = [&](const KeptRow& row) {
        for (int64_t plane = 0; plane < piece.planes; ++plane) {
          const int64_t from = ((piece.plane + plane) * out[0] * out[1] + row.row) * out[2];
          const int64_t to = row.slot * row_size + plane * layout.size - first_window;
          copy_numbers(grad + from + begin, end - begin, dy + to + begin);
          for_each_vector<T>(end - begin, [&](int64_t x, int64_t lanes) {
            if (lanes == n) {
              store(chosen + to + begin + x, load_offsets<T>(offsets + from + begin + x));
            } else {
              std::copy_n(offsets + from + begin, lanes, chosen + to + begin);
            }
          });
        }
      };
      const auto finish = [&](int64_t row, const KeptRow* windows, int64_t count) {
        const auto place_of = [&](int64_t plane) {
          return grad_input + ((piece.plane + plane) * in_rows + row) * in[2] + x_begin;
        };
        for (int64_t part = 0; part < stride; ++part) {
          int64_t term_count = 0;
          for (int64_t r = 0; r < count; ++r) {
            for (int64_t k = 0; k < columns.taps; ++k) {
              const int64_t at = places[part * columns.taps + k];
              if (at < 0) continue;
              const int64_t place = windows[r].slot * row_size + at;
              terms[term_count++] = {dy + place, chosen + place, static_cast<Int>(windows[r].tap + k)};
            }
          }
          const auto sum = sum_terms_for<T>(term_count);
          if constexpr (std::is_same_v<S, T>) {
            if (stride == 1 && x_count >= n) {  // the part is the row
              return sum(terms, term_count, x_count, outbox.row(place_of(0), x_count));
            }
          }
          sum(terms, term_count, (piece.planes - 1) * layout.size + round_up(m_count, n), parts + part * row_size);
        }
        for (int64_t plane = 0; plane < piece.planes; ++plane) {
          join_row(parts + plane * layout.size, row_size, x_count, outbox.row(place_of(plane), x_count));
        }
      };
      for_each_row_of(piece, backward, pieces, rows, counts, held, keep, finish);
    }
    outbox.close();
  });
}

// Windows side by side in contiguous planes: each pixel of a row asks one window of each row of windows.
template <int kWide, class T, class Offset>
void gather_side_by_side(const T* grad, const Offset* offsets, T* grad_input, const Relation& backward) {
  using Int = IntOf<T>;
  const Link* columns = backward.along[2].links;  // of the first window's pixels; those of the others are alike
  for_each_plane_row<T, kWide>(
      backward, backward.source[2],
      [&](int64_t plane, int64_t place, const SourceRow* rows, int64_t row_count, int64_t windows) {
        const int64_t source = plane * volume(backward.source);
        for_each_vector<T>(windows, [&](int64_t x, int64_t count) {
          Vec<T> sums[kWide] = {};
          for (int64_t r = 0; r < row_count; ++r) {
            const int64_t window = source + rows[r].pixel + x;
            const Vec<T> dy = load_some(grad + window, count);
            const Vec<Int> chosen = count == kLanes<T>
                                        ? load_offsets<T>(offsets + window)
                                        : load_offset_vector<T>(offsets + window, 0, Block<1, true>{0, count});
#pragma GCC unroll 4
            for (int k = 0; k < kWide; ++k) {
              sums[k] += chosen == static_cast<Int>(rows[r].tap + columns[k].tap) ? dy : Vec<T>{};
            }
          }
          store_columns_of<T, kWide>(grad_input + place + kWide * x, sums, count);
        });
      });
}

template <class S, class Offset>
void max_pool_backward(const S* grad, const Offset* offsets, S* grad_input, const Relation& backward) {
  if constexpr (std::is_same_v<S, Wide<S>>) {
    if (gives_side_by_side<2>(backward)) return gather_side_by_side<2>(grad, offsets, grad_input, backward);
    if (gives_side_by_side<4>(backward)) return gather_side_by_side<4>(grad, offsets, grad_input, backward);
    if constexpr (std::is_same_v<Offset, uint8_t>) {
      if (max_threes_backward(grad, offsets, grad_input, backward)) return;
    }
  }
  if (backward.channels_last) return gather_channels_last(grad, offsets, grad_input, backward);
  if constexpr (std::is_same_v<Offset, uint8_t>) gather_rows(grad, offsets, grad_input, backward);
}

}  // namespace

#define SCRATCHNN_REGISTER_MAX_POOL_BACKWARD(S)                                                        \
  SCRATCHNN_REGISTER_KERNEL((max_pool_backward_kernel<S, uint8_t>), (&max_pool_backward<S, uint8_t>)); \
  SCRATCHNN_REGISTER_KERNEL((max_pool_backward_kernel<S, int32_t>), (&max_pool_backward<S, int32_t>))

SCRATCHNN_REGISTER_MAX_POOL_BACKWARD(float);
SCRATCHNN_REGISTER_MAX_POOL_BACKWARD(double);
SCRATCHNN_REGISTER_MAX_POOL_BACKWARD(BFloat16);
SCRATCHNN_REGISTER_MAX_POOL_BACKWARD(Half);

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

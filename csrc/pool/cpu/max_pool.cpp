// Max pooling, vectorised over channels.
//
// Forward, a vector of maxima and a vector of the taps they came from run over the window. Backward, each
// input pixel asks the windows that hold it whether it was their maximum: one compare and one masked add per
// window, no memory cleared beforehand, no two threads at one pixel.
#include <limits>

#include "pool/chosen.h"
#include "pool/cpu/pairs.h"
#include "pool/cpu/rows.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {
namespace {

// Some columns of a result row: source pixels, output pixels and offsets all have their `channels` side by side.
template <bool kOffsets, class T, class Offset>
void max_row(const Relation& forward, const T* source, int64_t channels, const SourceRow* rows, int64_t row_count,
             Columns result, T* output, Offset* offsets) {
  for (int64_t x = result.begin; x < result.end; ++x, output += channels) {
    const Link* columns = forward.along[2].begin(x);
    const int64_t column_count = forward.along[2].count(x);
    for_each_block<T>(channels, [&](auto block) {
      Vec<T> best[block.vectors];
      Vec<IntOf<T>> best_tap[block.vectors];
      // Nothing is below -inf: where all values are, the first tap inside the input stands, as in torch.
      const bool empty = row_count == 0 || column_count == 0;
      const auto first_tap = static_cast<IntOf<T>>(empty ? 0 : rows[0].tap + columns[0].tap);
      for (int v = 0; v < block.vectors; ++v) {
        best[v] = broadcast(-std::numeric_limits<T>::infinity());
        best_tap[v] = broadcast(first_tap);
      }
      for (int64_t r = 0; r < row_count; ++r) {
        for (int64_t k = 0; k < column_count; ++k) {
          const T* p = source + (rows[r].pixel + columns[k].source) * channels + block.channel;
          const Vec<IntOf<T>> tap = broadcast(static_cast<IntOf<T>>(rows[r].tap + columns[k].tap));
          for (int v = 0; v < block.vectors; ++v) {
            const Vec<T> value = load_vector(p, v, block);
            const Vec<IntOf<T>> better = (value > best[v]) | (value != value);  // NaN beats everything
            best[v] = better ? value : best[v];
            if constexpr (kOffsets) best_tap[v] = better ? tap : best_tap[v];
          }
        }
      }
      for (int v = 0; v < block.vectors; ++v) {
        store_vector(output + block.channel, best[v], v, block);
        if constexpr (kOffsets) {
          store_offset_vector<T>(offsets + (x - result.begin) * channels + block.channel, best_tap[v], v, block);
        }
      }
    });
  }
}

template <class T, class Offset, bool kOffsets>
void max_pool_channels_last(const T* input, T* output, Offset* offsets, const Relation& forward) {
  const int64_t channels = forward.channels;
  for_each_row(forward, [&](int64_t n, const SourceRow* rows, int64_t row_count, int64_t pixel) {
    const T* image = input + n * volume(forward.source) * channels;
    const int64_t place = (n * volume(forward.result) + pixel) * channels;
    max_row<kOffsets>(forward, image, channels, rows, row_count, {0, forward.result[2]}, output + place,
                      kOffsets ? offsets + place : nullptr);
  });
}

template <class T, class Offset, bool kOffsets>
void max_pool_planes(const T* input, T* output, Offset* offsets, const Relation& forward) {
  constexpr int64_t channels = kTilePlanes<T>;
  for_each_tile<T>(forward, [&](const Tile& tile) {
    const int64_t row_size = (tile.columns.end - tile.columns.begin) * channels;
    const int64_t result_size = tile.result_pixels() * channels;
    auto [values, best, taps, rows] =
        carve<T, T, IntOf<T>, SourceRow>(tile.source_pixels() * channels, result_size, result_size, forward.most_rows);
    load_tile(forward, tile, input, values);
    for (int64_t y = tile.y_begin; y < tile.y_end; ++y) {
      const int64_t row_count = source_rows(forward, tile.z, y, tile.region, rows);
      const int64_t place = (y - tile.y_begin) * row_size;
      max_row<kOffsets>(forward, values, channels, rows, row_count, tile.columns, best + place, taps + place);
    }
    store_tile(forward, tile, best, output);
    if constexpr (kOffsets) store_tile(forward, tile, taps, offsets);
  });
}

// Maxima and the taps they came from, lane by lane.
template <class T>
struct Best {
  Vec<T> value;
  Vec<IntOf<T>> tap;

  // The better of the two, lane by lane: of equals the earlier tap, as if taps came one by one; of NaNs, which beat
  // everything, the later.
  SCRATCHNN_MEMBER void meet(const Best& other) {
    const Vec<IntOf<T>> nan = value != value, other_nan = other.value != other.value, later = other.tap > tap;
    const Vec<IntOf<T>> wins = (other.value > value) | ((other.value == value) & ~later);
    const Vec<IntOf<T>> better = (other_nan & (~nan | later)) | (~nan & wins);
    value = better ? other.value : value;
    tap = better ? other.tap : tap;
  }
};

// Whether each plane has a single window, all of it, whose taps are numbered as the plane's pixels.
template <class T>
bool is_plane_by_plane(const Relation& forward) {
  if (forward.channels_last || !is_global(forward, forward.source, forward.result)) return false;
  int64_t first_tap = 0, last_tap = 0;
  for (const Links& along : forward.along) {
    first_tap += along.begin(0)->tap;
    last_tap += (along.begin(1) - 1)->tap;
  }
  const int64_t pixels = volume(forward.source);
  return first_tap == 0 && last_tap == pixels - 1 && pixels >= kLanes<T>;
}

// The best of each lane over a plane of at least a vector of numbers.
template <class T>
SCRATCHNN_INLINE Best<T> best_of_lanes(const T* p, int64_t count, Vec<IntOf<T>> lane) {
  constexpr int64_t n = kLanes<T>;
  Best<T> best = {load(p), lane};
  const auto take = [&](int64_t i) {
    const Vec<T> value = load(p + i);
    const Vec<IntOf<T>> better = (value > best.value) | (value != value);
    best.value = better ? value : best.value;
    best.tap = better ? lane + static_cast<IntOf<T>>(i) : best.tap;
  };
  int64_t i = n;
  for (; i + n <= count; i += n) take(i);
  // The last vector overlaps the one before: a number met again is not better than itself, nor is a NaN's tap later.
  if (i < count) best.meet({load(p + count - n), lane + static_cast<IntOf<T>>(count - n)});
  return best;
}

// Global max pooling of contiguous planes: each is read once, in order; the lanes of kLanes planes are then compared
// all at once.
template <class T, class Offset>
void max_of_planes(const T* input, T* output, Offset* offsets, const Relation& forward) {
  constexpr int n = kLanes<T>;
  const int64_t pixels = volume(forward.source);
  Vec<IntOf<T>> lane;
  for (int v = 0; v < n; ++v) lane[v] = v;
  const int64_t grain = std::max<int64_t>(n, kGrain / pixels);
  parallel_for(0, forward.images * forward.channels, grain, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i += n) {
      Vec<T> values[n];
      Vec<IntOf<T>> taps[n];
      for (int v = 0; v < n; ++v) {
        const Best<T> best = best_of_lanes(input + std::min(i + v, last - 1) * pixels, pixels, lane);
        values[v] = best.value;
        taps[v] = best.tap;
      }
      transpose<T>(values);
      transpose<IntOf<T>>(taps);
      Best<T> best = {values[0], taps[0]};
      for (int v = 1; v < n; ++v) best.meet({values[v], taps[v]});
      const int64_t count = std::min<int64_t>(n, last - i);
      store_partial(output + i, best.value, count);
      if (offsets == nullptr) continue;
      for (int64_t v = 0; v < count; ++v) offsets[i + v] = static_cast<Offset>(best.tap[v]);
    }
  });
}

template <class T, class Offset, bool kOffsets>
void max_of_pairs(const T* input, T* output, Offset* offsets, const Relation& forward) {
  using Int = IntOf<T>;
  for_each_plane_row(forward, [&](int64_t plane, int64_t place, const SourceRow* rows, int64_t row_count) {
    const T* source = input + plane * volume(forward.source);
    const int64_t left = forward.along[2].links[0].tap, right = forward.along[2].links[1].tap;
    const Int first_tap = static_cast<Int>(row_count == 0 ? 0 : rows[0].tap + left);
    for_each_vector<T>(forward.result[2], [&](int64_t x, int64_t count) {
      Vec<T> best = broadcast(-std::numeric_limits<T>::infinity());
      Vec<Int> best_tap = broadcast(first_tap);
      const auto take = [&](Vec<T> value, int64_t tap) {
        const Vec<Int> better = (value > best) | (value != value);
        best = better ? value : best;
        if constexpr (kOffsets) best_tap = better ? broadcast(static_cast<Int>(tap)) : best_tap;
      };
      for (int64_t r = 0; r < row_count; ++r) {
        const Pairs<T> pairs = load_pairs(source + rows[r].pixel + 2 * x, count);
        take(pairs.left, rows[r].tap + left);
        take(pairs.right, rows[r].tap + right);
      }
      store_some(output + place + x, best, count);
      if constexpr (!kOffsets) return;
      if (count == kLanes<T>) {
        store_offsets<T>(offsets + place + x, best_tap);
      } else {
        store_offset_vector<T>(offsets + place + x, best_tap, 0, Block<1, true>{0, count});
      }
    });
  });
}

template <class T, class Offset>
void max_pool(const T* input, T* output, Offset* offsets, const Relation& forward) {
  if (is_plane_by_plane<T>(forward)) return max_of_planes(input, output, offsets, forward);
  if (takes_pairs(forward)) {
    auto* run = offsets == nullptr ? &max_of_pairs<T, Offset, false> : &max_of_pairs<T, Offset, true>;
    return run(input, output, offsets, forward);
  }
  if (offsets == nullptr) {
    auto* run = forward.channels_last ? &max_pool_channels_last<T, Offset, false> : &max_pool_planes<T, Offset, false>;
    run(input, output, offsets, forward);
  } else {
    auto* run = forward.channels_last ? &max_pool_channels_last<T, Offset, true> : &max_pool_planes<T, Offset, true>;
    run(input, output, offsets, forward);
  }
}

// One row of the input's gradient: its pixels gather from the windows whose maximum they were.
template <class T, class Offset>
void max_backward_row(const Relation& backward, const T* grad, const Offset* offsets, int64_t channels,
                      const SourceRow* rows, int64_t row_count, T* grad_input) {
  for (int64_t x = 0; x < backward.result[2]; ++x, grad_input += channels) {
    const Link* columns = backward.along[2].begin(x);
    const int64_t column_count = backward.along[2].count(x);
    for_each_block<T>(channels, [&](auto block) {
      Vec<T> sum[block.vectors] = {};
      for (int64_t r = 0; r < row_count; ++r) {
        for (int64_t k = 0; k < column_count; ++k) {
          const int64_t p = (rows[r].pixel + columns[k].source) * channels + block.channel;
          const auto tap = static_cast<IntOf<T>>(rows[r].tap + columns[k].tap);
          for (int v = 0; v < block.vectors; ++v) {
            const Vec<IntOf<T>> chosen = load_offset_vector<T>(offsets + p, v, block);
            sum[v] += chosen == tap ? load_vector(grad + p, v, block) : Vec<T>{};
          }
        }
      }
      for (int v = 0; v < block.vectors; ++v) store_vector(grad_input + block.channel, sum[v], v, block);
    });
  }
}

template <class T, class Offset>
void gather_gradients(const T* grad, const Offset* offsets, T* grad_input, const Relation& backward) {
  const int64_t channels = backward.channels;
  for_each_row(backward, [&](int64_t n, const SourceRow* rows, int64_t row_count, int64_t pixel) {
    const int64_t image = n * volume(backward.source) * channels;
    max_backward_row(backward, grad + image, offsets + image, channels, rows, row_count,
                     grad_input + (n * volume(backward.result) + pixel) * channels);
  });
}

// Contiguous images, columns stepping by 1 or 2: the same, vectorised along the row. With stride S, the
// pixels x = S m + phase of one phase lie in the windows m + shift, for a few pairs (tap, shift) all of them
// share.
template <int kStride, class T, class Offset>
void gather_rows(const T* grad, const Offset* offsets, T* grad_input, const PoolShape& shape, const Windows& windows,
                 const Relation& backward) {
  using Int = IntOf<T>;
  constexpr int64_t n = kLanes<T>;
  struct Tap {
    int64_t shift;
    Int tap;
  };
  const Extent in = shape.input, out = shape.output;
  const int64_t kernel = windows.taps[2], padding = -windows.begin[2][0];
  const int64_t out_rows = out[0] * out[1], in_rows = in[0] * in[1];
  const int64_t steps = (in[2] + kStride - 1) / kStride;
  // Output rows are copied next to enough columns that no window chose, so that borders need no branches.
  const int64_t left = kernel / kStride + 1;
  const int64_t width = left + std::max(out[2], steps + padding) + 2 * n;
  const int64_t grain = std::max<int64_t>(1, kGrain / (volume(in) + volume(out)));
  parallel_for(0, shape.images * shape.channels, grain, [&](int64_t first, int64_t last) {
    auto [dy, chosen, all_rows, row_counts, taps, last_row] = carve<T, Int, SourceRow, int64_t, Tap, T>(
        out_rows * width, out_rows * width, in_rows * backward.most_rows, in_rows, kernel, steps * kStride + 2 * n);
    for (int64_t y = 0; y < in_rows; ++y) {
      SourceRow* rows = all_rows + y * backward.most_rows;
      row_counts[y] = source_rows(backward, y / in[1], y % in[1], whole(backward), rows);
      for (int64_t r = 0; r < row_counts[y]; ++r) rows[r].pixel = rows[r].pixel / out[2] * width;  // in the copy
    }
    std::fill_n(dy, out_rows * width, T(0));
    std::fill_n(chosen, out_rows * width, Int(-1));
    int64_t phase_end[kStride], count = 0;
    for (int64_t phase = 0; phase < kStride; ++phase) {
      for (int64_t k = (phase + padding) % kStride; k < kernel; k += kStride) {
        taps[count++] = {(phase + padding - k) / kStride + left, static_cast<Int>(k)};
      }
      phase_end[phase] = count;
    }
    for (int64_t i = first; i < last; ++i) {
      for (int64_t r = 0; r < out_rows; ++r) {
        const int64_t from = (i * out_rows + r) * out[2], to = r * width + left;
        for (int64_t x = 0; x < out[2]; ++x) {
          dy[to + x] = grad[from + x];
          chosen[to + x] = static_cast<Int>(offsets[from + x]);
        }
      }
      for (int64_t y = 0; y < in_rows; ++y) {
        const SourceRow* rows = all_rows + y * backward.most_rows;
        const int64_t row_count = row_counts[y];
        T* const row = grad_input + (i * in_rows + y) * in[2];
        // Whole vectors run over the end of a row into the next, which is written later; the last row's may
        // not.
        T* dx = y + 1 < in_rows ? row : last_row;
        if (y + 1 < in_rows && (in_rows - y) * in[2] < (steps + n) * kStride) dx = last_row;
        for (int64_t m = 0; m < steps; m += n) {
          // The gradients of the windows whose maximum the pixels S m + phase were.
          const auto gathered = [&](const Tap* begin, const Tap* end) {
            Vec<T> sum = {};
            for (int64_t r = 0; r < row_count; ++r) {
              for (const Tap* tap = begin; tap < end; ++tap) {
                const int64_t p = rows[r].pixel + m + tap->shift;
                const Int wanted = static_cast<Int>(rows[r].tap) + tap->tap;
                sum += load(chosen + p) == wanted ? load(dy + p) : Vec<T>{};
              }
            }
            return sum;
          };
          const Vec<T> even = gathered(taps, taps + phase_end[0]);
          if constexpr (kStride == 1) {
            store(dx + m, even);
          } else {
            const Vec<T> odd = gathered(taps + phase_end[0], taps + phase_end[1]);
            constexpr auto lanes = std::make_integer_sequence<int, n>();
            store(dx + 2 * m, interleave<T, 0>(even, odd, lanes));
            store(dx + 2 * m + n, interleave<T, n / 2>(even, odd, lanes));
          }
        }
        if (dx == last_row) std::copy_n(last_row, in[2], row);
      }
    }
  });
}

template <class T, class Offset>
void max_pool_backward(const T* grad, const Offset* offsets, T* grad_input, const PoolShape& shape,
                       const Windows& windows, const Relation& backward) {
  // gather_rows keeps a copy of an output plane, asks every window about every pixel it holds, and needs rows
  // of several vectors.
  const bool by_rows = !shape.channels_last && volume(shape.output) > 0 && volume(shape.output) <= 65536 &&
                       windows.taps[0] == 1 && volume(windows.taps) <= 32 && windows.dilation[2] == 1 &&
                       shape.input[2] >= 4 * kLanes<T>;
  if (shape.channels_last && shape.channels >= kLanes<T>) {
    gather_gradients(grad, offsets, grad_input, backward);
  } else if (by_rows && windows.stride[2] == 1) {
    gather_rows<1>(grad, offsets, grad_input, shape, windows, backward);
  } else if (by_rows && windows.stride[2] == 2) {
    gather_rows<2>(grad, offsets, grad_input, shape, windows, backward);
  } else {
    scatter_gradients(grad, offsets, grad_input, shape, {&windows, true});
  }
}

}  // namespace

#define SCRATCHNN_REGISTER_MAX_POOL(T, Offset)                                     \
  SCRATCHNN_REGISTER_KERNEL((max_pool_kernel<T, Offset>), (&max_pool<T, Offset>)); \
  SCRATCHNN_REGISTER_KERNEL((max_pool_backward_kernel<T, Offset>), (&max_pool_backward<T, Offset>))

SCRATCHNN_REGISTER_MAX_POOL(float, uint8_t);
SCRATCHNN_REGISTER_MAX_POOL(float, int32_t);
SCRATCHNN_REGISTER_MAX_POOL(double, uint8_t);
SCRATCHNN_REGISTER_MAX_POOL(double, int32_t);

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

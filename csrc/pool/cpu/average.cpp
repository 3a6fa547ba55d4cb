// Average pooling of any windows, adaptive ones included, vectorised over channels.
//
// A window is summed row by row, each row by itself: the error of a large window grows with its sides, not
// with its area.
#include "pool/cpu/pairs.h"
#include "pool/cpu/rows.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {
namespace {

// Some columns of an output row: sums over windows, each divided by its divisor.
template <class T>
void average_row(const Relation& forward, const T* source, int64_t channels, const SourceRow* rows, int64_t row_count,
                 Columns result, T* output) {
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
          const T* p = source + (rows[r].pixel + columns[k].source) * channels + block.channel;
          for (int v = 0; v < block.vectors; ++v) row_sum[v] += load_vector(p, v, block);
        }
        for (int v = 0; v < block.vectors; ++v) sum[v] += row_sum[v];
      }
      for (int v = 0; v < block.vectors; ++v) store_vector(output + block.channel, sum[v] / divisor, v, block);
    });
  }
}

// Some columns of a row of the input's gradient: its pixels gather their share from the windows that hold them.
template <class T>
void average_backward_row(const Relation& backward, const T* grad, int64_t channels, const SourceRow* rows,
                          int64_t row_count, Columns result, T* grad_input) {
  for (int64_t x = result.begin; x < result.end; ++x, grad_input += channels) {
    const Link* columns = backward.along[2].begin(x);
    const int64_t column_count = backward.along[2].count(x);
    for_each_block<T>(channels, [&](auto block) {
      Vec<T> sum[block.vectors] = {};
      for (int64_t r = 0; r < row_count; ++r) {
        for (int64_t k = 0; k < column_count; ++k) {
          const T* p = grad + (rows[r].pixel + columns[k].source) * channels + block.channel;
          const T share = static_cast<T>(rows[r].factor * columns[k].factor);
          for (int v = 0; v < block.vectors; ++v) sum[v] += share * load_vector(p, v, block);
        }
      }
      for (int v = 0; v < block.vectors; ++v) store_vector(grad_input + block.channel, sum[v], v, block);
    });
  }
}

// Both passes walk alike; kRow computes a row.
template <class T, void (*kRow)(const Relation&, const T*, int64_t, const SourceRow*, int64_t, Columns, T*)>
void walk(const T* source, T* result, const Relation& relation) {
  if (relation.channels_last) {
    const int64_t channels = relation.channels;
    for_each_row(relation, [&](int64_t n, const SourceRow* rows, int64_t row_count, int64_t pixel) {
      kRow(relation, source + n * volume(relation.source) * channels, channels, rows, row_count,
           {0, relation.result[2]}, result + (n * volume(relation.result) + pixel) * channels);
    });
    return;
  }
  constexpr int64_t channels = kTilePlanes<T>;
  for_each_tile<T>(relation, [&](const Tile& tile) {
    const int64_t row_size = (tile.columns.end - tile.columns.begin) * channels;
    auto [from, to, rows] =
        carve<T, T, SourceRow>(tile.source_pixels() * channels, tile.result_pixels() * channels, relation.most_rows);
    load_tile(relation, tile, source, from);
    for (int64_t y = tile.y_begin; y < tile.y_end; ++y) {
      const int64_t row_count = source_rows(relation, tile.z, y, tile.region, rows);
      kRow(relation, from, channels, rows, row_count, tile.columns, to + (y - tile.y_begin) * row_size);
    }
    store_tile(relation, tile, to, result);
  });
}

// A vector whose lanes add up to the sum of `count` numbers. Runs are summed by themselves, four partial sums
// at a time: the error grows with the number of runs, not of numbers.
template <class T>
SCRATCHNN_INLINE Vec<T> partial_sums(const T* p, int64_t count, Vec<IntOf<T>> lane) {
  constexpr int64_t n = kLanes<T>, kRun = 64 * n;
  if (count < n) return load_partial(p, count);
  Vec<T> total = {};
  int64_t i = 0;
  while (i + n <= count) {
    Vec<T> sums[4] = {};
    const int64_t end = std::min(count, i + kRun);
    for (; i + 4 * n <= end; i += 4 * n) {
      for (int v = 0; v < 4; ++v) sums[v] += load(p + i + v * n);
    }
    for (; i + n <= end; i += n) sums[0] += load(p + i);
    total += (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }
  // The last n numbers, without those already counted.
  const auto counted = static_cast<IntOf<T>>(n - (count - i));
  return total + (lane >= counted ? load(p + count - n) : Vec<T>{});
}

// Global average pooling of contiguous planes: no window to slide, nothing to transpose.
template <class T>
void average_planes(const T* input, T* output, const Relation& forward) {
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
                   store_partial(output + i, sums[0] / divisor, std::min<int64_t>(n, last - i));
                 }
               });
}

// sums[c] += from[c]
template <class T>
SCRATCHNN_INLINE void add_channels(const T* from, int64_t channels, T* sums) {
  int64_t c = 0;
  for (; c + kLanes<T> <= channels; c += kLanes<T>) store(sums + c, load(sums + c) + load(from + c));
  for (; c < channels; ++c) sums[c] += from[c];
}

// Global average pooling of channels_last images: memory is read in order, all channels of a pixel, and the sums stay
// in the cache. Each row of an image is summed by itself, as in average_row.
template <class T>
void average_pixels(const T* input, T* output, const Relation& forward) {
  constexpr int64_t kAtOnce = 2048;  // channels
  const int64_t channels = forward.channels, width = forward.source[2];
  const int64_t rows = forward.source[0] * forward.source[1], parts = (channels + kAtOnce - 1) / kAtOnce;
  const T divisor =
      static_cast<T>(forward.along[0].links->factor * forward.along[1].links->factor * forward.along[2].links->factor);
  const int64_t grain = std::max<int64_t>(1, kGrain / (rows * width * std::min(channels, kAtOnce)));
  parallel_for(0, forward.images * parts, grain, [&](int64_t first, int64_t last) {
    T* row_sums = scratch<T>(2 * kAtOnce);
    T* sums = row_sums + kAtOnce;
    for (int64_t i = first; i < last; ++i) {
      const int64_t image = i / parts, start = i % parts * kAtOnce, count = std::min(kAtOnce, channels - start);
      const T* pixel = input + image * rows * width * channels + start;
      std::fill_n(sums, count, T(0));
      for (int64_t row = 0; row < rows; ++row) {
        std::fill_n(row_sums, count, T(0));
        for (int64_t x = 0; x < width; ++x, pixel += channels) add_channels(pixel, count, row_sums);
        add_channels(row_sums, count, sums);
      }
      for (int64_t c = 0; c < count; ++c) output[image * channels + start + c] = sums[c] / divisor;
    }
  });
}

template <class T>
void spread_over_planes(const T* grad, T* grad_input, const Relation& backward) {
  const int64_t pixels = volume(backward.result);
  const T share = static_cast<T>(backward.along[0].links->factor * backward.along[1].links->factor *
                                 backward.along[2].links->factor);
  parallel_for(0, backward.images * backward.channels, std::max<int64_t>(1, kGrain / pixels),
               [&](int64_t first, int64_t last) {
                 for (int64_t i = first; i < last; ++i) std::fill_n(grad_input + i * pixels, pixels, share * grad[i]);
               });
}

template <class T>
void average_pairs(const T* input, T* output, const Relation& forward) {
  for_each_plane_row(forward, [&](int64_t plane, int64_t place, const SourceRow* rows, int64_t row_count) {
    const T* source = input + plane * volume(forward.source);
    const T divisor = static_cast<T>(row_count == 0 ? 1.0 : rows[0].factor * forward.along[2].links->factor);
    for_each_vector<T>(forward.result[2], [&](int64_t x, int64_t count) {
      Vec<T> sum = {};
      for (int64_t r = 0; r < row_count; ++r) {
        const Pairs<T> pairs = load_pairs(source + rows[r].pixel + 2 * x, count);
        sum += pairs.left + pairs.right;
      }
      store_some(output + place + x, sum / divisor, count);
    });
  });
}

template <class T>
void spread_over_pairs(const T* grad, T* grad_input, const Relation& backward) {
  for_each_plane_row(backward, [&](int64_t plane, int64_t place, const SourceRow* rows, int64_t row_count) {
    const T* source = grad + plane * volume(backward.source);
    for_each_vector<T>(backward.source[2], [&](int64_t x, int64_t count) {
      Vec<T> sum = {};
      for (int64_t r = 0; r < row_count; ++r) {
        const T share = static_cast<T>(rows[r].factor * backward.along[2].links->factor);
        sum += share * load_some(source + rows[r].pixel + x, count);
      }
      store_doubled(grad_input + place + 2 * x, sum, count);
    });
  });
}

template <class T>
void average(const T* input, T* output, const Relation& forward) {
  if (is_global(forward, forward.source, forward.result)) {
    auto* run = forward.channels_last ? &average_pixels<T> : &average_planes<T>;
    return run(input, output, forward);
  }
  if (takes_pairs(forward)) return average_pairs(input, output, forward);
  walk<T, &average_row<T>>(input, output, forward);
}

template <class T>
void average_backward(const T* grad, T* grad_input, const Relation& backward) {
  if (!backward.channels_last && is_global(backward, backward.result, backward.source)) {
    return spread_over_planes(grad, grad_input, backward);
  }
  if (gives_pairs(backward)) return spread_over_pairs(grad, grad_input, backward);
  walk<T, &average_backward_row<T>>(grad, grad_input, backward);
}

}  // namespace

SCRATCHNN_REGISTER_KERNEL(average_kernel<float>, &average<float>);
SCRATCHNN_REGISTER_KERNEL(average_kernel<double>, &average<double>);
SCRATCHNN_REGISTER_KERNEL(average_backward_kernel<float>, &average_backward<float>);
SCRATCHNN_REGISTER_KERNEL(average_backward_kernel<double>, &average_backward<double>);

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

// The weight gradient of depthwise convolution, each channel by itself: dw[c, t] = sum over images and pixels o of
// dy[c, o] x[c, o S - P + t D].
//
// The sums of some runs of taps, a vector of channels of each, stay in registers along a row of dy, of which a few
// pixels at a time do as well: each pixel of x that is loaded meets them all. Rows of channels_last images under
// kernels of 3x3, and contiguous planes under stride 1, are gone through as forward. The batch is cut into chunks, a
// fixed number whatever the number of threads, whose sums are added up in order.
#include <algorithm>

#include "conv/cpu/depthwise_planes_weight_grad.h"
#include "conv/cpu/depthwise_rows.h"
#include "conv/kernels.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {
namespace {

constexpr int64_t kChunks = 16;          // of the bands, at most
constexpr int64_t kBandNumbers = 24576;  // of a band, all channels together
constexpr int64_t kSumPixels = 512;      // of a band, at most, where all channels are summed together
constexpr int64_t kBlockPixels = 384;    // of a band of which one block of channels is copied at a time

// Sums, pixels of dy and one of x must fit the sixteen registers of AVX2.
constexpr int runs_together(int width) {
  return width == 1 ? 8 : width == 2 ? 4 : width == 3 ? 3 : width < 7 ? 2 : 1;
}
constexpr int pixels_together(int width) {
  return width == 7 ? 7 : 4;
}

// A row of dy, a vector of channels of each pixel.
template <class T>
struct GradRow {
  const T* dy;
  int64_t length, dy_step;
  int64_t x_pixel, x_columns;  // from one pixel of x to the next, and how many a row has
  int64_t in_step;
  int64_t vector;  // where in its block
};

// Adds the products of some pixels of dy, the first of which is `first`, to the sums of a run.
template <int count, int width, int step, bool clipped, class T>
SCRATCHNN_INLINE void add_run(const GradRow<T>& row, const RunOfRow<T>& run, int64_t first, const Vec<T> (&dy)[count],
                              Vec<T> (&sums)[width]) {
  const int64_t in_step = step > 0 ? step : row.in_step;
  const int64_t column = run.column + first * in_step;
  const T* x = run.x + row.vector + first * in_step * row.x_pixel;
  const auto is_there = [&](int64_t j) __attribute__((always_inline)) {
    return !clipped || static_cast<uint64_t>(column + j) < static_cast<uint64_t>(row.x_columns);
  };
  if constexpr (width == 1) {
#pragma GCC unroll 8
    for (int i = 0; i < count; ++i) {
      if (is_there(i * in_step)) sums[0] = fma(load(x + i * in_step * row.x_pixel), dy[i], sums[0]);
    }
  } else {
#pragma GCC unroll 32
    for (int j = 0; j < (count - 1) * step + width; ++j) {
      if (!is_there(j)) continue;
      Vec<T> v = load(x + j * row.x_pixel);
      SCRATCHNN_KEEP_IN_REGISTER(v);
#pragma GCC unroll 8
      for (int t = 0; t < width; ++t) {
        const int i = (j - t) / step;
        if (j >= t && i < count && i * step + t == j) sums[t] = fma(v, dy[i], sums[t]);
      }
    }
  }
}

// Adds the products of dy's pixels [first, first + count) to the sums of some runs. A clipped tile asks of each pixel
// of x whether it is there.
template <int count, int width, int step, bool clipped, class T, int... r>
SCRATCHNN_INLINE void add_tile(const GradRow<T>& row, const RunOfRow<T>* runs, int64_t first,
                               Vec<T> (&sums)[sizeof...(r)][width], std::integer_sequence<int, r...>) {
  Vec<T> dy[count];
#pragma GCC unroll 8
  for (int i = 0; i < count; ++i) {
    dy[i] = load(row.dy + (first + i) * row.dy_step);
    SCRATCHNN_KEEP_IN_REGISTER(dy[i]);
  }
  (add_run<count, width, step, clipped>(row, runs[r], first, dy, sums[r]), ...);
}

template <int width, class T>
SCRATCHNN_INLINE void load_sums(const T* from, Vec<T> (&sums)[width]) {
#pragma GCC unroll 8
  for (int t = 0; t < width; ++t) sums[t] = load(from + t * kBlock<T>);
}

template <int width, class T>
SCRATCHNN_INLINE void store_sums(const Vec<T> (&sums)[width], T* to) {
#pragma GCC unroll 8
  for (int t = 0; t < width; ++t) store(to + t * kBlock<T>, sums[t]);
}

// Adds a whole row of dy to sums[run's tap * kBlock] of some runs. They are counted at compile time: gcc keeps arrays
// that deeper loops than two go through in memory.
template <int width, int step, class T, int... r>
void add_row(const GradRow<T>& row, const RunOfRow<T>* runs, T* sums, std::integer_sequence<int, r...> together) {
  constexpr int most = pixels_together(width);
  Vec<T> total[sizeof...(r)][width];
  (load_sums(sums + runs[r].tap * kBlock<T>, total[r]), ...);
  const int64_t low = std::min({runs[r].column...}), high = std::max({runs[r].column...});
  for_each_piece<most>(row.length, [&](int64_t first, int64_t length) __attribute__((always_inline)) {
    const bool clipped =
        low + first * row.in_step < 0 || high + width - 1 + (first + length - 1) * row.in_step >= row.x_columns;
    with_rows<most>(length, [&](auto count) __attribute__((always_inline)) {
      clipped ? add_tile<count, width, step, true>(row, runs, first, total, together)
              : add_tile<count, width, step, false>(row, runs, first, total, together);
    });
  });
  (store_sums(total[r], sums + runs[r].tap * kBlock<T>), ...);
}

// Adds a row of dy to the sums of all runs that it meets.
template <int width, int step, class T>
SCRATCHNN_INLINE void add_row_to_runs(const GradRow<T>& row, const RunOfRow<T>* runs, int64_t wide, int64_t count,
                                      T* sums) {
  constexpr int together = runs_together(width);
  int64_t r = 0;
  constexpr auto all = std::make_integer_sequence<int, together>();
  constexpr auto one = std::make_integer_sequence<int, 1>();
  for (; r + together <= wide; r += together) add_row<width, step>(row, runs + r, sums, all);
  for (; r < wide; ++r) add_row<width, step>(row, runs + r, sums, one);
  if constexpr (width > 1) {
    for (; r < count; ++r) add_row<1, step>(row, runs + r, sums, one);
  }
}

// One block of channels of a band: adds each tap's products to sums[tap * kBlock].
template <int width, int step, class T>
void add_band(const Correlation& c, const TapRuns& runs, const Band& band, const BlockView<T>& x,
              const BlockView<T>& dy, int64_t channels, T* sums, RunOfRow<T>* memory, UpcomingPixels (&upcoming)[2]) {
  for (int64_t d = 0; d < band.size[0]; ++d) {
    for (int64_t h = 0; h < band.size[1]; ++h) {
      const auto [wide, count] =
          runs_of_row(runs, c.in_step, {band.first[0] + d, band.first[1] + h, band.first[2]}, x, memory);
      for (int64_t k = 0; k < channels; k += kLanes<T>) {
        const GradRow<T> row{dy.data + d * dy.stride[0] + h * dy.stride[1] + k,
                             band.size[2],
                             dy.stride[2],
                             x.stride[2],
                             x.size[2],
                             c.in_step[2],
                             k};
        for (UpcomingPixels& pixels : upcoming) pixels.step();
        add_row_to_runs<width, step>(row, memory, wide, count, sums + k);
      }
    }
  }
}

// dw[k, tap] = sum over the chunks of sums[chunk][block of k][tap][k % kBlock].
template <class S>
void add_chunks(const Wide<S>* sums, int64_t chunks, int64_t channels, const TapRuns& runs,
                const Filters<S>& grad_weight) {
  using T = Wide<S>;
  const int64_t taps = static_cast<int64_t>(runs.weights.size());
  const int64_t chunk_size = (channels + kBlock<T> - 1) / kBlock<T> * kBlock<T> * taps;
  for (int64_t first = 0; first < channels; first += kBlock<T>) {
    for (int64_t t = 0; t < taps; ++t, sums += kBlock<T>) {
      T total[kBlock<T>] = {};
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        for (int k = 0; k < kBlock<T>; k += kLanes<T>) {
          store(total + k, load(total + k) + load(sums + chunk * chunk_size + k));
        }
      }
      S* out = grad_weight.data + first * grad_weight.out_stride +
               runs.weights[static_cast<size_t>(t)] * grad_weight.tap_stride;
      for (int64_t k = 0; k < std::min<int64_t>(kBlock<T>, channels - first); ++k) {
        write_one(out + k * grad_weight.out_stride, total[k]);
      }
    }
  }
}

// The same row by row (depthwise_rows.h).
template <class T>
void weight_grad_of_rows(const Correlation& c, const TapRuns& runs, const Images<const T>& grad,
                         const Images<const T>& input, int64_t batch, const Filters<T>& grad_weight) {
  constexpr int64_t kRows = 8;  // that are summed up by themselves
  const int64_t rows = batch * c.count[1], chunks = std::clamp<int64_t>(rows, 1, kChunks);
  const int64_t chunk_size = (input.channels + kBlock<T> - 1) / kBlock<T> * kBlock<T> * c.taps.size();
  T* sums = scratch<T>(chunks * chunk_size, Scratch::kCall);
  const auto run = c.in_step[2] == 1 ? &add_rows<1, T> : &add_rows<2, T>;
  parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    T* part = scratch<T>(chunk_size);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      T* own = sums + chunk * chunk_size;
      std::fill_n(own, chunk_size, T(0));
      const int64_t last = rows * (chunk + 1) / chunks;
      for (int64_t row = rows * chunk / chunks; row < last; row += kRows) {
        std::fill_n(part, chunk_size, T(0));
        run(c, runs, input, grad, row, std::min(row + kRows, last), part);
        for (int64_t i = 0; i < chunk_size; i += kLanes<T>) store(own + i, load(own + i) + load(part + i));
      }
    }
  });
  add_chunks(sums, chunks, input.channels, runs, grad_weight);
}

template <class S>
void weight_grad(const ConvGeometry& g, Images<const S> grad, Images<const S> input, Filters<S> grad_weight) {
  using T = Wide<S>;
  const Correlation c = forward_correlation(g);
  const TapRuns runs = runs_of(c);
  if constexpr (std::is_same_v<S, T>) {
    if (takes_planes<S>(c, input, grad)) return weight_grad_of_planes(c, grad, input, g.batch, grad_weight);
    if (takes_rows<S>(c, runs, input, grad)) return weight_grad_of_rows(c, runs, grad, input, g.batch, grad_weight);
  }
  const Extent low = c.first_offset(), high = c.last_offset();
  const int64_t channels = g.in_channels, blocks = (channels + kBlock<T> - 1) / kBlock<T>, taps = g.taps();
  const bool together = input.channels_last && grad.channels_last;
  // Of few channels too a band, which is summed up by itself, has few pixels: longer sums are less exact.
  const int64_t of_pixel = std::max(channels, kBandNumbers / kSumPixels);
  const BlockBands bands(g.batch, g.output, together ? of_pixel : 1, together ? kBandNumbers : kBlockPixels,
                         volume(g.stride));
  const int64_t chunks = std::clamp<int64_t>(bands.total(), 1, kChunks);
  // All blocks of a band one after the other, if that leaves work for all threads: neighbours in memory.
  const int64_t at_once = together && chunks >= 2 * thread_count() ? blocks : 1;
  const int64_t tasks_of_chunk = blocks / at_once, block_sums = taps * kBlock<T>;
  T* sums = scratch<T>(chunks * blocks * block_sums, Scratch::kCall);  // [chunk][block][tap][channel of the block]

  const int64_t x_size = block_size<T>(read_by(c, low, high, {0, 0, 0}, bands.largest()));
  const int64_t dy_size = block_size<T>({{}, bands.largest()});
  const int64_t run_numbers = static_cast<int64_t>(runs.offsets.size() * sizeof(RunOfRow<T>) / sizeof(T));
  const bool whole_bands = together && at_once == blocks && !bands.deep();
  // Rows until what is asked for is read.
  const int64_t steps = kBlockVectors<T> * (whole_bands ? blocks : 1) * bands.largest()[0] * bands.largest()[1];
  parallel_for(0, chunks * tasks_of_chunk, 1, [&](int64_t begin, int64_t end) {
    T* x_memory = scratch<T>(x_size + dy_size + block_sums + run_numbers);
    T* dy_memory = x_memory + x_size;
    T* of_band = dy_memory + dy_size;
    RunOfRow<T>* run_memory = reinterpret_cast<RunOfRow<T>*>(of_band + block_sums);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t chunk = task / tasks_of_chunk, first_block = task % tasks_of_chunk * at_once;
      T* own = sums + (chunk * blocks + first_block) * block_sums;
      std::fill_n(own, at_once * block_sums, T(0));
      const int64_t last = bands.total() * (chunk + 1) / chunks;
      for (int64_t index = bands.total() * chunk / chunks; index < last; ++index) {
        const Band band = bands[index];
        const Rectangle read = read_by(c, low, high, band.first, band.size);
        UpcomingPixels upcoming[2];
        const auto ask_for = [&](int64_t next, int64_t channel, int64_t count) {
          const Band then = bands[next];
          upcoming[0] = {input, then.image, channel, count, read_by(c, low, high, then.first, then.size), steps};
          upcoming[1] = {grad, then.image, channel, count, {then.first, then.size}, steps};
        };
        if (whole_bands && index + 1 < last) ask_for(index + 1, 0, channels);
        for (int64_t b = 0; b < at_once; ++b) {
          const int64_t channel = (first_block + b) * kBlock<T>;
          const int64_t count = std::min<int64_t>(kBlock<T>, channels - channel);
          if (!whole_bands) {
            const int64_t following = b + 1 < at_once ? channel + kBlock<T> : first_block * kBlock<T>;
            if (b + 1 < at_once || index + 1 < last) {
              ask_for(b + 1 < at_once ? index : index + 1, following,
                      std::min<int64_t>(kBlock<T>, channels - following));
            }
          }
          const BlockView<T> x = view_block(input, band.image, channel, count, read, g.border, x_memory);
          const BlockView<T> dy =
              view_block(grad, band.image, channel, count, {band.first, band.size}, Border::kZeros, dy_memory);
          std::fill_n(of_band, block_sums, T(0));
          with_run_width(runs.width, c.in_step[2], [&](auto width, auto step) {
            add_band<width, step>(c, runs, band, x, dy, count, of_band, run_memory, upcoming);
          });
          T* total = own + b * block_sums;
          for (int64_t i = 0; i < block_sums; i += kLanes<T>) store(total + i, load(total + i) + load(of_band + i));
        }
      }
    }
  });
  add_chunks(sums, chunks, channels, runs, grad_weight);
}

}  // namespace

SCRATCHNN_REGISTER_KERNEL(depthwise_weight_grad<float>, &weight_grad<float>);
SCRATCHNN_REGISTER_KERNEL(depthwise_weight_grad<double>, &weight_grad<double>);
SCRATCHNN_REGISTER_KERNEL(depthwise_weight_grad<BFloat16>, &weight_grad<BFloat16>);
SCRATCHNN_REGISTER_KERNEL(depthwise_weight_grad<Half>, &weight_grad<Half>);

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

// Depthwise convolution of channels_last images with kernels of 3x3, row by row.
//
// Along a row of outputs, each column of three pixels is loaded once and is in up to three outputs, whose sums stay in
// registers until the next column is. So do all weights. All blocks of channels of a row come before the next row, so
// that what is read lies together and is asked of memory one line at a time.
#pragma once

#include "conv/cpu/depthwise_tiles.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {

// Some rows of three columns each that a row of positions meets, a vector of channels: position 0 has its first column
// at x[row], which is column `column` of an image of `columns`.
template <int rows, class T>
struct ThreeColumns {
  const T* x[rows];
  int64_t pixel, column, columns;

  // Whether column j, counted from that of position 0, is there; loads it.
  SCRATCHNN_MEMBER bool is_there(int64_t j) const {
    return static_cast<uint64_t>(column + j) < static_cast<uint64_t>(columns);
  }
  SCRATCHNN_MEMBER void load_to(int64_t j, Vec<T> (&pixels)[rows]) const {
#pragma GCC unroll 3
    for (int r = 0; r < rows; ++r) {
      pixels[r] = load(x[r] + j * pixel);
      SCRATCHNN_KEEP_IN_REGISTER(pixels[r]);
    }
  }
};

// put(i, sum) for each of `count` outputs that are `step` columns apart. weights[row] are those of the row's first tap,
// the others kBlock behind.
template <int step, int rows, class T, class Put>
SCRATCHNN_INLINE void slide_along(const ThreeColumns<rows, T> x, const T* const (&weights)[rows], int64_t count,
                                  const Put put) {
  Vec<T> w[rows][3];
#pragma GCC unroll 3
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 3
    for (int t = 0; t < 3; ++t) w[r][t] = load(weights[r] + t * kBlock<T>);
  }
  Vec<T> pixels[rows];
  // What the column is to an output that has it as tap t.
  const auto part = [&](int t) __attribute__((always_inline)) {
    Vec<T> sum = pixels[0] * w[0][t];
#pragma GCC unroll 3
    for (int r = 1; r < rows; ++r) sum = fma(pixels[r], w[r][t], sum);
    return sum;
  };
  if constexpr (step == 1) {
    Vec<T> before = {}, current = {};  // the sums of the outputs of which the next column is tap 2, and tap 1
    const auto take = [&](int64_t j, bool complete) __attribute__((always_inline)) {
      if (x.is_there(j)) {
        x.load_to(j, pixels);
        if (complete) put(j - 2, before + part(2));
        before = current + part(1);
        current = part(0);
      } else {
        if (complete) put(j - 2, before);
        before = current;
        current = Vec<T>{};
      }
    };
    take(0, false);
    take(1, false);
    int64_t j = 2;
    if (x.is_there(j)) {
      for (const int64_t last = std::min(count + 2, x.columns - x.column); j < last; ++j) {
        x.load_to(j, pixels);
        put(j - 2, before + part(2));
        before = current + part(1);
        current = part(0);
      }
    }
    for (; j < count + 2; ++j) take(j, true);
  } else {
    Vec<T> current = {};
    if (x.is_there(0)) x.load_to(0, pixels), current = part(0);
    for (int64_t i = 0; i < count; ++i) {
      if (x.is_there(2 * i + 1)) x.load_to(2 * i + 1, pixels), current += part(1);
      Vec<T> next = {};
      if (x.is_there(2 * i + 2)) x.load_to(2 * i + 2, pixels), current += part(2), next = part(0);
      put(i, current);
      current = next;
    }
  }
}

// Whether a correlation is one of at most three rows of three columns, of one step in both directions, and blocks can
// be read where they are.
template <class S, class AnyImages>
bool takes_rows(const Correlation& c, const TapRuns& runs, const Images<const S>& in, const AnyImages& out) {
  using T = Wide<S>;
  if constexpr (!std::is_same_v<S, T>) return false;
  const int64_t count = static_cast<int64_t>(runs.offsets.size()), step = c.in_step[2];
  if (runs.width != 3 || runs.wide != count || count > 3 || step > 2 || c.in_step[1] != step) return false;
  if (c.out_step != Extent{1, 1, 1} || c.border != Border::kZeros || c.count[0] != 1 || in.size[0] != 1) return false;
  const auto alike = [&](const Extent& offset) { return offset[0] == 0 && offset[2] == runs.offsets[0][2]; };
  return in.channels_last && out.channels_last && in.channels % kLanes<T> == 0 &&
         std::all_of(runs.offsets.begin(), runs.offsets.end(), alike);
}

// One row of outputs, of one vector of channels.
template <int step, int rows, class T, class Put>
SCRATCHNN_INLINE void slide_over(const T* const* x, const T* const* weights, int64_t pixel, int64_t column,
                                 int64_t columns, int64_t at, int64_t weights_at, int64_t count, const Put& put) {
  ThreeColumns<rows, T> three{{}, pixel, column, columns};
  const T* w[rows];
#pragma GCC unroll 3
  for (int r = 0; r < rows; ++r) {
    three.x[r] = x[r] + at;
    w[r] = weights[r] + weights_at;
  }
  slide_along<step, rows>(three, w, count, put);
}

// All outputs, from weights as packed for blocks of channels.
template <int step, class T>
void correlate_rows(const Correlation& c, const TapRuns& runs, int64_t batch, const Images<const T>& in,
                    const T* weights, const Ending<T>& ending, const Images<T>& out, bool streamed) {
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T)), kFarthest = 4096;
  const int64_t channels = in.channels, width = c.count[2], height = c.count[1], in_row = in.size[2] * channels;
  const int64_t taps = static_cast<int64_t>(runs.weights.size()), column = runs.offsets[0][2];
  // Rows of the input that are asked for ahead of those that are new to a row of outputs.
  const int64_t ahead_rows = step + kFarthest / in_row;
  const int64_t grain = 1 + 16384 / (width * channels * taps);
  parallel_for(0, batch * height, grain, [&](int64_t begin, int64_t end) {
    T* buffer = streamed ? scratch<T>(width * kBlock<T>) : nullptr;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t image = item / height, y = item % height;
      const T* const first_row = in.data + image * in.image_stride();
      const T *x[3], *w[3];
      int64_t rows = 0;
      for (size_t r = 0; r < runs.offsets.size(); ++r) {
        const int64_t h = y * step + runs.offsets[r][1];
        if (h < 0 || h >= in.size[1]) continue;
        x[rows] = first_row + h * in_row + column * channels;
        w[rows++] = weights + runs.first_tap(static_cast<int64_t>(r)) * kBlock<T>;
      }
      const T* ahead = first_row + (y * step + runs.offsets.back()[1] + ahead_rows) * in_row;
      T* const row = out.data + item * width * channels;
      for (int64_t channel = 0; channel < channels; channel += kBlock<T>, ahead += step * step * width * kLine) {
        const int64_t block_channels = std::min<int64_t>(kBlock<T>, channels - channel);
        for (int64_t k = 0; k < block_channels; k += kLanes<T>) {
          T* const to = streamed ? buffer + k : row + channel + k;
          const int64_t to_step = streamed ? kBlock<T> : channels;
          const Vec<T> bias = ending.bias == nullptr ? Vec<T>{} : load(ending.bias + channel + k);
          const auto run = [&](auto has_bias) __attribute__((always_inline)) {
            const auto put = [=](int64_t i, Vec<T> sum) __attribute__((always_inline)) {
              if (k == 0) {
#pragma GCC unroll 4
                for (int line = 0; line < step * step; ++line) prefetch(ahead + (i * step * step + line) * kLine);
                if (!streamed) __builtin_prefetch(to + i * to_step + kBlock<T>, 1);
              }
              store(to + i * to_step, has_bias ? sum + bias : sum);
            };
            const int64_t weights_at = channel * taps + k;
            const auto slide = [&](auto count) __attribute__((always_inline)) {
              slide_over<step, count>(x, w, channels, column, in.size[2], channel + k, weights_at, width, put);
            };
            if (rows == 3) return slide(std::integral_constant<int, 3>());
            if (rows == 2) return slide(std::integral_constant<int, 2>());
            if (rows == 1) return slide(std::integral_constant<int, 1>());
            for (int64_t i = 0; i < width; ++i) put(i, Vec<T>{});
          };
          ending.bias == nullptr ? run(std::false_type()) : run(std::true_type());
        }
        if (!streamed) continue;
        for (int64_t i = 0; i < width; ++i) {
#pragma GCC unroll 4
          for (int64_t k = 0; k < kBlock<T>; k += kLanes<T>) {
            if (k < block_channels) stream(row + i * channels + channel + k, load(buffer + i * kBlock<T> + k));
          }
        }
      }
    }
    if (streamed) finish_streaming();
  });
}

// Adds to sums[row][t] the products of `count` pixels of dy, `step` columns apart, with the pixels of x that are tap t
// of that row to them.
template <int step, int rows, class T, class Ask>
SCRATCHNN_INLINE void slide_gradient(const ThreeColumns<rows, T> x, const T* dy, int64_t count, Vec<T> (&sums)[rows][3],
                                     const Ask ask) {
  const int64_t pixel = x.pixel;
  // Column j of x with a pixel of dy that has it as tap t.
  const auto add = [&](int64_t j, int t, Vec<T> gradient) __attribute__((always_inline)) {
#pragma GCC unroll 3
    for (int r = 0; r < rows; ++r) sums[r][t] = fma(load(x.x[r] + j * pixel), gradient, sums[r][t]);
  };
  const auto at = [&](int64_t i) __attribute__((always_inline)) { return load(dy + i * pixel); };
  if constexpr (step == 1) {
    const auto take =
        [&](int64_t j) __attribute__((always_inline)) {  // the first and the last columns are not all taps to a pixel
          if (!x.is_there(j)) return;
#pragma GCC unroll 3
          for (int t = 0; t < 3; ++t) {
            if (j - t >= 0 && j - t < count) add(j, t, at(j - t));
          }
        };
    take(0);
    take(1);
    int64_t j = 2;
    if (count > 2 && x.is_there(j)) {
      Vec<T> before = at(0), current = at(1);
      for (const int64_t last = std::min(count, x.columns - x.column); j < last; ++j) {
        ask(j);
        const Vec<T> next = at(j);
        Vec<T> pixels[rows];
        x.load_to(j, pixels);
#pragma GCC unroll 3
        for (int r = 0; r < rows; ++r) {
          sums[r][0] = fma(pixels[r], next, sums[r][0]);
          sums[r][1] = fma(pixels[r], current, sums[r][1]);
          sums[r][2] = fma(pixels[r], before, sums[r][2]);
        }
        before = current;
        current = next;
      }
    }
    for (; j < count + 2; ++j) take(j);
  } else {
    Vec<T> before = {};
    for (int64_t i = 0; i < count; ++i) {
      ask(i);
      const Vec<T> current = at(i);
      if (x.is_there(2 * i)) {
        add(2 * i, 0, current);
        if (i > 0) add(2 * i, 2, before);
      }
      if (x.is_there(2 * i + 1)) add(2 * i + 1, 1, current);
      before = current;
    }
    if (x.is_there(2 * count)) add(2 * count, 2, before);
  }
}

// A row of dy, and the rows of x that it meets with their taps.
template <class T>
struct MetRows {
  const T *dy, *x[3];
  int64_t tap[3], count;
};

// Adds what rows [begin, end) of dy, counted through the batch, give each tap to sums[block of channels][tap][channel
// of the block]. A few rows at a time, block by block of channels: rows of dy that meet the same row of x find it in
// the first-level cache. The next few are asked of memory meanwhile, in its order.
template <int step, class T>
void add_rows(const Correlation& c, const TapRuns& runs, const Images<const T>& x, const Images<const T>& dy,
              int64_t begin, int64_t end, T* sums) {
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T)), kMost = 8,
                    kBytes = kVectorBytes < 64 ? 192 << 10 : 384 << 10;  // in the second-level cache, and as much again
  const int64_t channels = x.channels, width = c.count[2], height = c.count[1], x_row = x.size[2] * channels;
  const int64_t taps = static_cast<int64_t>(runs.weights.size()), column = runs.offsets[0][2];
  const int64_t row_bytes = (step * x_row + width * channels) * static_cast<int64_t>(sizeof(T));
  int64_t together = kMost;
  while (together > 1 && together * row_bytes > kBytes) together /= 2;
  for (int64_t first = begin; first < end; first += together) {
    const int64_t count = std::min(together, end - first);
    MetRows<T> met[kMost];
    for (int64_t i = 0; i < count; ++i) {
      const int64_t image = (first + i) / height, y = (first + i) % height;
      const T* const first_row = x.data + image * x.image_stride();
      MetRows<T>& row = met[i];
      row.dy = dy.data + (first + i) * width * channels;
      row.count = 0;
      for (size_t r = 0; r < runs.offsets.size(); ++r) {
        const int64_t h = y * step + runs.offsets[r][1];
        if (h < 0 || h >= x.size[1]) continue;
        row.x[row.count] = first_row + h * x_row + column * channels;
        row.tap[row.count++] = runs.first_tap(static_cast<int64_t>(r)) * kBlock<T>;
      }
    }
    const int64_t next = first + count;
    const T* x_ahead =
        x.data + next / height * x.image_stride() + (next % height * step + runs.offsets.back()[1]) * x_row;
    const T* dy_ahead = dy.data + next * width * channels;
    for (int64_t channel = 0; channel < channels; channel += kLanes<T>) {
      const int64_t k = channel % kBlock<T>;
      T* const own = sums + (channel - k) * taps + k;
      for (int64_t i = 0; i < count; ++i) {
        const MetRows<T>& row = met[i];
        const auto along = [&](auto constant) __attribute__((always_inline)) {
          constexpr int n = constant;
          ThreeColumns<n, T> three{{}, channels, column, x.size[2]};
          Vec<T> total[n][3];
#pragma GCC unroll 3
          for (int r = 0; r < n; ++r) {
            three.x[r] = row.x[r] + channel;
#pragma GCC unroll 3
            for (int t = 0; t < 3; ++t) total[r][t] = load(own + row.tap[r] + t * kBlock<T>);
          }
          slide_gradient<step, n>(three, row.dy + channel, width, total, [=](int64_t j) __attribute__((always_inline)) {
            if (k != 0) return;
#pragma GCC unroll 4
            for (int line = 0; line < step * step; ++line) {
              __builtin_prefetch(x_ahead + (j * step * step + line) * kLine);
            }
            __builtin_prefetch(dy_ahead + j * kLine);
          });
#pragma GCC unroll 3
          for (int r = 0; r < n; ++r) {
#pragma GCC unroll 3
            for (int t = 0; t < 3; ++t) store(own + row.tap[r] + t * kBlock<T>, total[r][t]);
          }
        };
        if (row.count == 3) along(std::integral_constant<int, 3>());
        if (row.count == 2) along(std::integral_constant<int, 2>());
        if (row.count == 1) along(std::integral_constant<int, 1>());
        if (k == 0) {
          x_ahead += step * step * width * kLine;
          dy_ahead += width * kLine;
        }
      }
    }
  }
}

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

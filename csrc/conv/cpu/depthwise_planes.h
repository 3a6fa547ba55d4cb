// Depthwise convolution of contiguous planes with stride 1: vectors run along rows, and no channel meets another.
//
// A band of a plane is copied once with its border of zeros. A tap is then the same step away from every output.
#pragma once

#include "common/outbox.h"
#include "conv/cpu/channel_blocks.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {

// How a correlation's planes are copied band by band: what some rows of outputs read, the first output's first column
// first, in rows of `width` numbers. These may be read beyond what any output needs, up to whole vectors.
template <class T>
struct PaddedBands {
  static constexpr int64_t kNumbers = 4096;  // of a band's outputs, about

  PaddedBands(const Correlation& c, const Extent& in_size)
      : in(in_size), out(c.count), low(c.first_offset()), high(c.last_offset()) {
    width = round_up(out[2], kLanes<T>) + high[2] - low[2];
    rows = std::clamp<int64_t>(kNumbers / out[2], 1, out[1]);
    count = (out[1] + rows - 1) / rows;
  }

  int64_t begin(int64_t band) const { return out[1] * band / count; }
  int64_t size() const { return (rows + high[1] - low[1]) * width; }

  // What the output rows [first, last) of a plane read. By vectors, of which those over the border come first: what
  // they take too much is then copied over.
  void copy(const T* plane, int64_t first, int64_t last, T* to) const {
    constexpr int64_t n = kLanes<T>;
    const int64_t from = std::clamp<int64_t>(low[2], 0, in[2]);
    const int64_t inside = std::clamp<int64_t>(low[2] + width, from, in[2]) - from,
                  before = std::max<int64_t>(0, -low[2]);
    const auto clear = [width = width](T* row, int64_t begin, int64_t end) __attribute__((always_inline)) {
      for (int64_t i = begin; i < end; i += n) store(row + std::min(i, width - n), Vec<T>{});
    };
    for (int64_t h = first + low[1]; h < last + high[1]; ++h, to += width) {
      if (h < 0 || h >= in[1] || inside == 0) {
        clear(to, 0, width);
        continue;
      }
      clear(to, 0, std::min(before, width));
      clear(to, before + inside, width);
      const T* row = plane + h * in[2] + from;
      if (inside < n) {
        std::copy_n(row, inside, to + before);
        continue;
      }
      for (int64_t i = 0; i < inside; i += n) {
        const int64_t here = std::min(i, inside - n);
        store(to + before + here, load(row + here));
      }
    }
  }

  Extent in, out, low, high;
  int64_t width, rows, count;  // of a copied row; of a band, at most; of bands
};

// Whether a correlation is of whole planes, with stride 1, and rows that are a vector or more.
template <class S, class AnyImages>
bool takes_planes(const Correlation& c, const Images<const S>& in, const AnyImages& out) {
  constexpr int64_t kWidest = 4096;
  const Extent ones{1, 1, 1};
  return std::is_same_v<S, Wide<S>> && !in.channels_last && !out.channels_last && c.in_step == ones &&
         c.out_step == ones && c.border == Border::kZeros && c.count[0] == 1 && in.size[0] == 1 &&
         c.count[2] >= kLanes<S> && c.count[2] <= kWidest && !c.taps.empty() && c.taps.front().offset[0] == 0 &&
         c.taps.back().offset[0] == 0;
}

// body(count) with the count, at most `most`, as an integral constant.
template <int most, class Body>
SCRATCHNN_INLINE void with_constant(int64_t count, const Body& body) {
  [&]<int... i>(std::integer_sequence<int, i...>) __attribute__((always_inline)) {
    ((count == i + 1 ? body(std::integral_constant<int, i + 1>()) : void()), ...);
  }(std::make_integer_sequence<int, most>());
}

// The kernel of a correlation: rows and columns of taps, that many pixels apart.
struct PlaneKernel {
  // Of images with rows of `width` numbers.
  PlaneKernel(const Correlation& c, int64_t width) {
    const Extent low = c.first_offset(), high = c.last_offset();
    for (const Tap& tap : c.taps) rows += tap.offset[2] == low[2], columns += tap.offset[1] == low[1];
    if (rows > 1) row_step = (high[1] - low[1]) / (rows - 1);
    if (columns > 1) column_step = (high[2] - low[2]) / (columns - 1);
    offsets.resize(c.taps.size());
    weights.resize(c.taps.size());
    for (const Tap& tap : c.taps) {
      const int64_t row = tap.offset[1] - low[1], column = tap.offset[2] - low[2];
      const auto place = static_cast<size_t>(row / row_step * columns + column / column_step);
      offsets[place] = row * width + column;
      weights[place] = tap.weight;
    }
  }
  int64_t taps() const { return rows * columns; }

  int64_t rows = 0, columns = 0, row_step = 1, column_step = 1;
  std::vector<int64_t> offsets, weights;  // of each tap, row by row
};

// Vectors of outputs side by side, only the last of which begins where it is said: the sums over all taps.
template <int vectors, class T>
SCRATCHNN_INLINE void sum_taps(const T* x, const PlaneKernel& kernel, const T* weights, Vec<T> bias, int64_t last,
                               T* y) {
  const auto at = [=](int v) __attribute__((always_inline)) { return v + 1 < vectors ? v * kLanes<T> : last; };
  const int64_t taps = kernel.taps(), *offsets = kernel.offsets.data();
  Vec<T> sums[vectors] = {};
  for (int64_t t = 0; t < taps; ++t) {
    const Vec<T> weight = broadcast(weights[t]);
    const T* from = x + offsets[t];
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) sums[v] = fma(load(from + at(v)), weight, sums[v]);
  }
#pragma GCC unroll 8
  for (int v = 0; v < vectors; ++v) store(y + at(v), sums[v] + bias);
}

// The same of several rows, which share the pixels that are loaded. Rows of x that follow each other in the kernel are
// x_row apart, those of y y_row. A kernel of side x side where that is not 0.
template <int side, int rows, int vectors, class T>
__attribute__((noinline)) void sum_taps_of_rows(const T* x, int64_t x_row, const PlaneKernel& kernel, const T* weights,
                                                Vec<T> bias, int64_t last, T* y, int64_t y_row) {
  const auto at = [=](int v) __attribute__((always_inline)) { return v + 1 < vectors ? v * kLanes<T> : last; };
  const int64_t height = side > 0 ? side : kernel.rows, width = side > 0 ? side : kernel.columns;
  const int64_t step = kernel.column_step;
  Vec<T> sums[rows][vectors] = {};
  // Row i of x, which is row i - r of the kernel to output row r.
  const auto add_row = [&](int64_t i) __attribute__((always_inline)) {
    const int64_t low = std::max<int64_t>(0, i - height + 1), high = std::min<int64_t>(rows - 1, i);
    with_constant<rows>(low + 1, [&](auto first) __attribute__((always_inline)) {
      with_constant<rows>(high + 1, [&](auto end) __attribute__((always_inline)) {
        if constexpr (first <= end) {
          const T* w = weights + i * width;
          const auto add_tap = [&](int64_t t) __attribute__((always_inline)) {
            Vec<T> pixels[vectors];
#pragma GCC unroll 8
            for (int v = 0; v < vectors; ++v) pixels[v] = load(x + i * x_row + t * step + at(v));
#pragma GCC unroll 4
            for (int r = 0; r < rows; ++r) {
              if (r < first - 1 || r >= end) continue;
              Vec<T> weight = broadcast(w[t - r * width]);
              SCRATCHNN_KEEP_IN_REGISTER(weight);
#pragma GCC unroll 8
              for (int v = 0; v < vectors; ++v) sums[r][v] = fma(pixels[v], weight, sums[r][v]);
            }
          };
          if constexpr (side > 0) {
#pragma GCC unroll 3
            for (int t = 0; t < side; ++t) add_tap(t);
          } else {
#pragma GCC unroll 1
            for (int64_t t = 0; t < width; ++t) add_tap(t);
          }
        }
      });
    });
  };
  if constexpr (side > 0) {
#pragma GCC unroll 6
    for (int i = 0; i < side + rows - 1; ++i) add_row(i);
  } else {
    for (int64_t i = 0; i < height + rows - 1; ++i) add_row(i);
  }
#pragma GCC unroll 4
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) store(y + r * y_row + at(v), sums[r][v] + bias);
  }
}

// So many rows of outputs of a band that has been copied. The last vector of a row may have outputs of the one before.
template <int rows, class T>
SCRATCHNN_INLINE void sum_rows(const T* x, int64_t x_row, const PlaneKernel& kernel, const T* weights, Vec<T> bias,
                               int64_t width, T* y, int64_t y_row) {
  constexpr int most = rows == 1 ? 8 : 4;  // vectors whose sums are in registers
  constexpr int64_t n = kLanes<T>;
  for_each_piece<most>((width + n - 1) / n, [&](int64_t vector, int64_t count) __attribute__((always_inline)) {
    const int64_t first = vector * n, last = std::min((count - 1) * n, width - first - n);
    with_constant<most>(count, [&](auto constant) __attribute__((always_inline)) {
      if constexpr (rows == 1) {
        sum_taps<constant>(x + first, kernel, weights, bias, last, y + first);
      } else {
        if (kernel.rows == 3 && kernel.columns == 3) {
          sum_taps_of_rows<3, rows, constant>(x + first, x_row, kernel, weights, bias, last, y + first, y_row);
        } else {
          sum_taps_of_rows<0, rows, constant>(x + first, x_row, kernel, weights, bias, last, y + first, y_row);
        }
      }
    });
  });
}

// weight(channel, tap) and bias may be read for every channel; `bias` may be null.
template <class T>
void correlate_planes(const Correlation& c, int64_t batch, const Images<const T>& in, const Filters<const T>& weight,
                      const T* bias, const Images<T>& out) {
  const PaddedBands<T> bands(c, in.size);
  const PlaneKernel kernel(c, bands.width);
  const int64_t taps = kernel.taps(), width = out.size[2], channels = in.channels;
  // Low kernels see few rows together, but 3x3 ones need no loops; others need many registers.
  constexpr int most = kVectorBytes == 64 ? 4 : 2;
  const bool three = kernel.rows == 3 && kernel.columns == 3, high = kernel.rows > 3 && kVectorBytes == 64;
  const int64_t together = three || high ? most : 1;
  const bool large = is_large<T>(batch * out.image_stride());
  const int64_t grain = 1 + 16384 / (bands.rows * width * taps);
  parallel_for(0, batch * channels * bands.count, grain, [&](int64_t begin, int64_t end) {
    T* memory = scratch<T>(bands.size() + Outbox<T>::kRoom + taps);
    T *padded = memory, *weights = memory + bands.size() + Outbox<T>::kRoom;
    Outbox<T> outbox(large, memory + bands.size());
    for (int64_t item = begin; item < end; ++item) {
      const int64_t plane = item / bands.count, band = item % bands.count, channel = plane % channels;
      const int64_t first = bands.begin(band), rows = bands.begin(band + 1) - first;
      if (item == begin || band == 0) {
        const T* own = weight.data + channel * weight.out_stride;
        for (int64_t t = 0; t < taps; ++t) weights[t] = own[kernel.weights[static_cast<size_t>(t)] * weight.tap_stride];
      }
      const Vec<T> added = bias == nullptr ? Vec<T>{} : broadcast(bias[channel]);
      bands.copy(in.data + plane * in.pixels(), first, first + rows, padded);
      const T* ahead =
          in.data + (plane * in.size[1] + (band + 1 < bands.count ? first + rows : in.size[1])) * in.size[2];
      T* y = outbox.row(out.data + plane * out.pixels() + first * width, rows * width);
      // Rows that are a dilation apart see the same rows of x.
      const int64_t step = kernel.row_step;
      for (int64_t phase = 0; phase < std::min(step, rows); ++phase) {
        for (int64_t row = phase, count; row < rows; row += count * step) {
          count = std::min(together, (rows - row + step - 1) / step);
          for (int64_t r = 0; r < count; ++r) prefetch(ahead + (row + r * step) * in.size[2], in.size[2]);
          with_constant<most>(count, [&](auto constant) __attribute__((always_inline)) {
            sum_rows<constant>(padded + row * bands.width, step * bands.width, kernel, weights, added, width,
                               y + row * width, step * width);
          });
        }
      }
    }
    outbox.close();
  });
}

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

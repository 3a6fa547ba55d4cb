// Normalization where a set lies across the planes of an image: layer norm over the channels of N x C x H x W.
//
// Planes are walked together, a strip of pixels at a time: narrow enough that all its channels stay in the cache
// for the second and the third walk, wide enough that memory is read in runs. Every lane of a vector is a set of
// its own. The vector that ends a strip overlaps the one before it, so that no pixel needs special treatment.
#include <algorithm>
#include <vector>

#include "common/half.h"
#include "common/runtime.h"
#include "norm/cpu/formulas.h"
#include "norm/kernels.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {
namespace {

constexpr int64_t kStripBytes = 128 * 1024;  // of a tensor, for all channels of a strip
constexpr int64_t kWidest = 1024;            // pixels of a strip
constexpr int64_t kBlock = 64;               // channels summed in their own precision
constexpr int64_t kGrain = 32768;            // numbers a thread must have to be worth waking
constexpr int64_t kMostParts = 32;           // of the strips, each with its own gradients of weight and bias

// How an image falls into strips.
template <class T>
struct Strips {
  Planes planes;
  int64_t of_a_sample, count, vectors;  // the most vectors of a strip

  explicit Strips(const Planes& geometry, int64_t tensors) : planes(geometry) {
    const int64_t fitting = kStripBytes / (tensors * geometry.channels * static_cast<int64_t>(sizeof(T)));
    const int64_t width = std::clamp(fitting, kFewestPixels, kWidest);
    of_a_sample = std::max<int64_t>(1, geometry.pixels / width);
    count = of_a_sample * geometry.samples;
    vectors = (geometry.pixels / of_a_sample + 1 + kLanes<T> - 1) / kLanes<T>;
  }

  int64_t columns() const { return vectors * kLanes<T>; }
  int64_t grain() const { return std::max<int64_t>(1, kGrain / (planes.channels * columns())); }
};

// One of them: `vectors` vectors in each channel, the last of which has `rest` pixels that no other has.
template <class T>
struct Strip {
  int64_t start, first_pixel, width, vectors, rest, stride;

  Strip(const Strips<T>& strips, int64_t index) : stride(strips.planes.pixels) {
    const int64_t i = index % strips.of_a_sample, sample = index / strips.of_a_sample;
    const int64_t first = stride * i / strips.of_a_sample;
    width = stride * (i + 1) / strips.of_a_sample - first;
    start = sample * strips.planes.channels * stride + first;
    first_pixel = sample * stride + first;
    vectors = (width + kLanes<T> - 1) / kLanes<T>;
    rest = width - (vectors - 1) * kLanes<T>;
  }

  // Of vector j: its place in memory from the channel's start on. Its sums are kept at j * kLanes.
  int64_t offset(int64_t j) const { return std::min(j * kLanes<T>, width - kLanes<T>); }
};

// Adds up sums over the channels, for every pixel of a strip: add(channel, place in memory, column, sums...) for
// each vector. Sums are taken in T over blocks of channels, and over the blocks in double.
template <class T, int n>
struct PixelSums {
  double* wide[n];
  T* own[n];

  static constexpr int64_t kBytes = n * (sizeof(double) + sizeof(T));  // for one pixel
  PixelSums(char* memory, int64_t columns) {
    for (int i = 0; i < n; ++i) wide[i] = reinterpret_cast<double*>(memory) + i * columns;
    for (int i = 0; i < n; ++i) own[i] = reinterpret_cast<T*>(wide[0] + n * columns) + i * columns;
  }

  template <int rows, class Add>
  [[gnu::always_inline]] void add_channels(const Strip<T>& strip, int64_t channel, const Add& add) const {
    for (int64_t j = 0; j < strip.vectors; ++j) {
      const int64_t place = strip.offset(j), column = j * kLanes<T>;
      Vec<T> sums[n];
      for (int i = 0; i < n; ++i) sums[i] = load(own[i] + column);
#pragma GCC unroll 4
      for (int row = 0; row < rows; ++row) {
        add(channel + row, (channel + row) * strip.stride + place, column, sums);
      }
      for (int i = 0; i < n; ++i) store(own[i] + column, sums[i]);
    }
  }

  template <class Add>
  [[gnu::always_inline]] void add_all(const Strip<T>& strip, int64_t channels, const Add& add) const {
    const int64_t columns = strip.vectors * kLanes<T>;
    for (int i = 0; i < n; ++i) std::fill_n(wide[i], columns, 0.0);
    for (int64_t block = 0; block < channels; block += kBlock) {
      const int64_t end = std::min(block + kBlock, channels);
      for (int i = 0; i < n; ++i) std::fill_n(own[i], columns, T(0));
      int64_t channel = block;
      for (; channel + 4 <= end; channel += 4) add_channels<4>(strip, channel, add);
      for (; channel < end; ++channel) add_channels<1>(strip, channel, add);
      for (int i = 0; i < n; ++i) {
        for (int64_t column = 0; column < columns; ++column) wide[i][column] += own[i][column];
      }
    }
  }
};

template <class S, class T>
void forward_strip(const Strip<T>& strip, int64_t channels, const S* x, S* y, const T* weight, const T* bias,
                   double eps, T* mean, T* variance, const PixelSums<T, 2>& sums, T* centre, T* scale, T* offset) {
  const int64_t columns = strip.vectors * kLanes<T>;
  const double count = static_cast<double>(channels);
  sums.add_all(strip, channels,
               [&](int64_t, int64_t i, int64_t, Vec<T>(&sum)[2]) SCRATCHNN_INLINE_LAMBDA { sum[0] += read(x + i); });
  for (int64_t column = 0; column < columns; ++column) centre[column] = static_cast<T>(sums.wide[0][column] / count);
  sums.add_all(strip, channels, [&](int64_t, int64_t i, int64_t column, Vec<T>(&sum)[2]) SCRATCHNN_INLINE_LAMBDA {
    const Vec<T> d = read(x + i) - load(centre + column);
    sum[0] += d;
    sum[1] = fma(d, d, sum[1]);
  });
  for (int64_t column = 0; column < columns; ++column) {
    const double deviation = sums.wide[0][column] / count;  // of the true mean from the rounded one
    const double m = static_cast<double>(centre[column]) + deviation;
    const double v = std::max(sums.wide[1][column] / count - deviation * deviation, 0.0);
    const ForwardLine<T> line(1, 0, m, v, eps);
    centre[column] = line.centre;
    scale[column] = line.scale;
    offset[column] = line.offset;
    sums.wide[1][column] = v;
  }
  for (int64_t j = 0; j < strip.vectors; ++j) {
    for (int64_t lane = 0; lane < kLanes<T>; ++lane) {
      mean[strip.offset(j) + lane] = centre[j * kLanes<T> + lane];
      variance[strip.offset(j) + lane] = static_cast<T>(sums.wide[1][j * kLanes<T> + lane]);
    }
  }
  for (int64_t channel = 0; channel < channels; ++channel) {
    const Vec<T> w = broadcast(weight == nullptr ? T(1) : weight[channel]);
    const Vec<T> b = broadcast(bias == nullptr ? T(0) : bias[channel]);
    for (int64_t j = 0; j < strip.vectors; ++j) {
      const int64_t i = channel * strip.stride + strip.offset(j), column = j * kLanes<T>;
      const Vec<T> x_hat = fma(read(x + i) - load(centre + column), load(scale + column), load(offset + column));
      write(y + i, fma(x_hat, w, b));
    }
  }
}

template <class S>
void norm(const Planes& geometry, const S* input, S* output, const Wide<S>* weight, const Wide<S>* bias, double eps,
          Wide<S>* mean, Wide<S>* variance) {
  using T = Wide<S>;
  const Strips<T> strips(geometry, 1);
  const int64_t columns = strips.columns();
  parallel_for(0, strips.count, strips.grain(), [&](int64_t first, int64_t last) {
    char* memory = scratch<char>(columns * (PixelSums<T, 2>::kBytes + 3 * static_cast<int64_t>(sizeof(T))));
    const PixelSums<T, 2> sums(memory, columns);
    T* centre = reinterpret_cast<T*>(memory + columns * PixelSums<T, 2>::kBytes);
    for (int64_t index = first; index < last; ++index) {
      const Strip<T> strip(strips, index);
      forward_strip(strip, geometry.channels, input + strip.start, output + strip.start, weight, bias, eps,
                    mean + strip.first_pixel, variance + strip.first_pixel, sums, centre, centre + columns,
                    centre + 2 * columns);
    }
  });
}

// What becomes of a number of every pixel: dx = (w g - mean_wg) r + ((x - centre) input_scale + offset), and
// x_hat = (x - centre) r + x_hat_offset.
template <class T>
struct PixelLines {
  T *centre, *mean_wg, *r, *input_scale, *offset, *x_hat_offset;

  static constexpr int64_t kBytes = 6 * sizeof(T);
  PixelLines(T* memory, int64_t columns)
      : centre(memory),
        mean_wg(memory + columns),
        r(memory + 2 * columns),
        input_scale(memory + 3 * columns),
        offset(memory + 4 * columns),
        x_hat_offset(memory + 5 * columns) {}
};

template <class S, class T>
void backward_strip(const Strip<T>& strip, int64_t channels, const S* g, const S* x, S* dx, const T* weight,
                    const T* mean, const T* variance, double eps, double* dw, double* db, const PixelSums<T, 3>& sums,
                    const PixelLines<T>& lines) {
  const double count = static_cast<double>(channels);
  for (int64_t j = 0; j < strip.vectors; ++j) store(lines.centre + j * kLanes<T>, load(mean + strip.offset(j)));
  // the sums of d = x - centre, of w g and of w g d
  sums.add_all(strip, channels,
               [&](int64_t channel, int64_t i, int64_t column, Vec<T>(&sum)[3]) SCRATCHNN_INLINE_LAMBDA {
                 const Vec<T> d = read(x + i) - load(lines.centre + column);
                 const Vec<T> slope = weight == nullptr ? read(g + i) : read(g + i) * broadcast(weight[channel]);
                 sum[0] += d;
                 sum[1] += slope;
                 sum[2] = fma(slope, d, sum[2]);
               });
  for (int64_t j = 0; j < strip.vectors; ++j) {
    for (int64_t lane = 0; lane < kLanes<T>; ++lane) {
      const int64_t column = j * kLanes<T> + lane;
      const double v = static_cast<double>(variance[strip.offset(j) + lane]);
      const double rounding = sums.wide[0][column] / count;  // what the centre lacks to be the mean
      const double m = static_cast<double>(lines.centre[column]) + rounding, r = 1 / std::sqrt(v + eps);
      const double wg = sums.wide[1][column], wg_d = sums.wide[2][column] - rounding * wg;
      const BackwardLine<T> line(1, m, v, eps, 0, wg_d * r / count);
      lines.centre[column] = line.centre;
      lines.mean_wg[column] = static_cast<T>(wg / count);
      lines.r[column] = line.grad_scale;
      lines.input_scale[column] = line.input_scale;
      lines.offset[column] = line.offset;
      lines.x_hat_offset[column] = ForwardLine<T>(1, 0, m, v, eps).offset;
    }
  }
  const Vec<IntOf<T>> fresh = last_lanes<T>(strip.rest);
  for (int64_t channel = 0; channel < channels; ++channel) {
    const Vec<T> w = broadcast(weight == nullptr ? T(1) : weight[channel]);
    Vec<T> sum_g_x_hat = {}, sum_g = {};
    const auto differentiate = [&](int64_t j, auto mask) SCRATCHNN_INLINE_LAMBDA {
      const int64_t i = channel * strip.stride + strip.offset(j), column = j * kLanes<T>;
      const Vec<T> d = read(x + i) - load(lines.centre + column), slope = read(g + i);
      const Vec<T> r = load(lines.r + column);
      const Vec<T> line = fma(d, load(lines.input_scale + column), load(lines.offset + column));
      Vec<T> wg = w * slope;
      SCRATCHNN_KEEP_IN_REGISTER(wg);  // rounded, as it was when it was summed
      write(dx + i, fma(wg - load(lines.mean_wg + column), r, line));
      sum_g_x_hat += mask(slope * fma(d, r, load(lines.x_hat_offset + column)));
      sum_g += mask(slope);
    };
    for (int64_t j = 0; j + 1 < strip.vectors; ++j) differentiate(j, [](Vec<T> v) { return v; });
    differentiate(strip.vectors - 1, [&](Vec<T> v) { return fresh ? v : Vec<T>{}; });
    if (dw != nullptr) {
      dw[channel] += horizontal_sum<T>(sum_g_x_hat);
      db[channel] += horizontal_sum<T>(sum_g);
    }
  }
}

template <class S>
void norm_backward(const Planes& geometry, const S* grad, const S* input, S* grad_input, const Wide<S>* weight,
                   const Wide<S>* mean, const Wide<S>* variance, double eps, double* grad_weight, double* grad_bias) {
  using T = Wide<S>;
  const Strips<T> strips(geometry, 2);
  const int64_t columns = strips.columns(), channels = geometry.channels;
  const int64_t parts = std::clamp<int64_t>(strips.count / strips.grain(), 1, kMostParts);
  std::vector<double> gradients(grad_weight == nullptr ? 0 : 2 * channels * parts);
  parallel_for(0, parts, 1, [&](int64_t first_part, int64_t last_part) {
    char* memory = scratch<char>(columns * (PixelSums<T, 3>::kBytes + PixelLines<T>::kBytes));
    const PixelSums<T, 3> sums(memory, columns);
    const PixelLines<T> lines(reinterpret_cast<T*>(memory + columns * PixelSums<T, 3>::kBytes), columns);
    for (int64_t part = first_part; part < last_part; ++part) {
      double* dw = grad_weight == nullptr ? nullptr : gradients.data() + 2 * channels * part;
      for (int64_t i = strips.count * part / parts; i < strips.count * (part + 1) / parts; ++i) {
        const Strip<T> strip(strips, i);
        backward_strip(strip, channels, grad + strip.start, input + strip.start, grad_input + strip.start, weight,
                       mean + strip.first_pixel, variance + strip.first_pixel, eps, dw,
                       dw == nullptr ? nullptr : dw + channels, sums, lines);
      }
    }
  });
  if (grad_weight == nullptr) return;
  std::copy_n(gradients.data(), channels, grad_weight);
  std::copy_n(gradients.data() + channels, channels, grad_bias);
  for (int64_t part = 1; part < parts; ++part) {
    const double* dw = gradients.data() + 2 * channels * part;
    for (int64_t i = 0; i < channels; ++i) {
      grad_weight[i] += dw[i];
      grad_bias[i] += dw[channels + i];
    }
  }
}

}  // namespace

#define SCRATCHNN_REGISTER(S)                          \
  SCRATCHNN_REGISTER_KERNEL(norm_strips<S>, &norm<S>); \
  SCRATCHNN_REGISTER_KERNEL(norm_strips_backward<S>, &norm_backward<S>);
SCRATCHNN_REGISTER(float)
SCRATCHNN_REGISTER(double)
SCRATCHNN_REGISTER(BFloat16)
SCRATCHNN_REGISTER(Half)
#undef SCRATCHNN_REGISTER

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

// Depthwise convolution: each channel has a filter of its own. Forward and input gradient.
//
// There is no sum over channels to share a loaded input between outputs, so this is no matrix product: a vector
// holds neighbouring channels (channels_last) or neighbouring pixels (contiguous), and each tap adds one product to
// each output. Bands with their borders written out come from cache, so no pixel asks whether it lies inside.
#include <algorithm>

#include "conv/cpu/band.h"
#include "conv/kernels.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {
namespace {

constexpr int kSideBySide = 4;           // outputs computed together: they share each tap's weight
constexpr int64_t kBandNumbers = 24576;  // of a band, all channels together

// `count` outputs side by side, `lanes` channels of each: y[i][c] = sum over t of w[t][c] x[i][t][c] + bias[c].
template <int count, class T, class Y>
SCRATCHNN_INLINE void channels_of(const T* x, int64_t x_step, const int64_t* taps, int64_t tap_count, const T* w,
                                  int64_t channels, const T* bias, int64_t lanes, Y* y, int64_t y_step) {
  const bool whole = lanes == kLanes<T>;
  Vec<T> sums[count];
  for (int i = 0; i < count; ++i) sums[i] = Vec<T>{};
  for (int64_t t = 0; t < tap_count; ++t, w += channels) {
    const Vec<T> weight = whole ? load(w) : load_partial(w, lanes);
    const T* from = x + taps[t];
    for (int i = 0; i < count; ++i) {
      sums[i] = fma(whole ? load(from + i * x_step) : load_partial(from + i * x_step, lanes), weight, sums[i]);
    }
  }
  if (bias != nullptr) {
    const Vec<T> end = whole ? load(bias) : load_partial(bias, lanes);
    for (int i = 0; i < count; ++i) sums[i] += end;
  }
  for (int i = 0; i < count; ++i) {
    whole ? write(y + i * y_step, sums[i]) : write_partial(y + i * y_step, sums[i], lanes);
  }
}

// channels_last: bands of all channels.
template <class S>
void correlate_channels_last(const Correlation& c, int64_t batch, const Images<const S>& in, const S* filters,
                             int64_t channel_stride, int64_t tap_stride, const S* bias, const Images<S>& out) {
  using T = Wide<S>;
  const int64_t channels = in.channels, tap_count = static_cast<int64_t>(c.taps.size());
  const Bands bands(batch, c.count, std::max<int64_t>(8, kBandNumbers / channels));
  const Extent low = c.first_offset(), high = c.last_offset();
  T* weights = scratch<T>((tap_count + 1) * channels, Scratch::kCall);  // [tap][channel], then the bias
  for (int64_t t = 0; t < tap_count; ++t) {
    for (int64_t k = 0; k < channels; ++k) {
      weights[t * channels + k] = read_one(filters + k * channel_stride + c.taps[t].weight * tap_stride);
    }
  }
  T* ends = weights + tap_count * channels;
  if (bias != nullptr) copy_numbers(bias, channels, ends);
  const int64_t band_size = round_up(volume(read_by(c, low, high, {0, 0, 0}, bands.largest()).size) * channels, 16);
  const int64_t grain = 1 + 16384 / std::max<int64_t>(1, volume(bands.largest()) * channels * (tap_count + 1));
  parallel_for(0, bands.total(), grain, [&](int64_t begin, int64_t end) {
    T* memory = scratch<T>(band_size + 2 * tap_count + 2);
    int64_t* offsets = reinterpret_cast<int64_t*>(memory + band_size);
    for (int64_t index = begin; index < end; ++index) {
      const Band band = bands[index];
      const Rectangle rectangle = read_by(c, low, high, band.first, band.size);
      const PixelView<T> view = view_rectangle(in, band, 0, channels, rectangle, c.border, true, memory);
      tap_offsets(c, low, view, offsets);
      const int64_t x_step = c.in_step[2] * view.stride[2], y_step = c.out_step[2] * channels;
      for (int64_t d = 0; d < band.size[0]; ++d) {
        for (int64_t h = 0; h < band.size[1]; ++h) {
          const T* x = view.data + d * c.in_step[0] * view.stride[0] + h * c.in_step[1] * view.stride[1];
          const int64_t depth = c.out_base[0] + (band.first[0] + d) * c.out_step[0];
          const int64_t row = c.out_base[1] + (band.first[1] + h) * c.out_step[1];
          const int64_t column = c.out_base[2] + band.first[2] * c.out_step[2];
          S* y = out.data + band.image * out.image_stride() +
                 ((depth * out.size[1] + row) * out.size[2] + column) * channels;
          int64_t w = 0;
          const auto step = [&](auto count) __attribute__((always_inline)) {
            for (int64_t k = 0; k < channels; k += kLanes<T>) {
              channels_of<count>(x + w * x_step + k, x_step, offsets, tap_count, weights + k, channels,
                                 bias == nullptr ? nullptr : ends + k, std::min<int64_t>(kLanes<T>, channels - k),
                                 y + w * y_step + k, y_step);
            }
            w += count;
          };
          while (w + kSideBySide <= band.size[2]) step(std::integral_constant<int, kSideBySide>());
          while (w < band.size[2]) step(std::integral_constant<int, 1>());
        }
      }
    }
  });
}

// contiguous: bands of one channel's plane.
template <class S>
void correlate_planes(const Correlation& c, int64_t batch, const Images<const S>& in, const S* filters,
                      int64_t channel_stride, int64_t tap_stride, const S* bias, const Images<S>& out) {
  using T = Wide<S>;
  const int64_t channels = in.channels, tap_count = static_cast<int64_t>(c.taps.size());
  const Bands bands(batch, c.count, kBandNumbers);
  const Extent low = c.first_offset(), high = c.last_offset();
  // Vectors run over the end of a row, and of the band.
  const int64_t slack = kSideBySide * kLanes<T> * c.in_step[2] + kLanes<T>;
  const int64_t band_size = round_up(volume(read_by(c, low, high, {0, 0, 0}, bands.largest()).size) + slack, 16);
  const int64_t grain = 1 + 16384 / std::max<int64_t>(1, volume(bands.largest()) * (tap_count + 1));
  parallel_for(0, bands.total() * channels, grain, [&](int64_t begin, int64_t end) {
    T* memory = scratch<T>(band_size + 3 * tap_count + 2);
    int64_t* offsets = reinterpret_cast<int64_t*>(memory + band_size);
    T* weights = reinterpret_cast<T*>(offsets + tap_count);
    std::fill_n(memory, band_size, T(0));
    for (int64_t item = begin; item < end; ++item) {
      const Band band = bands[item / channels];
      const int64_t channel = item % channels;
      const Rectangle r = read_by(c, low, high, band.first, band.size);
      copy_rectangle(in, band.image, channel, 1, r, c.border, memory);
      tap_offsets(c, low, PixelView<T>{memory, {r.size[1] * r.size[2], r.size[2], 1}}, offsets);
      for (int64_t t = 0; t < tap_count; ++t) {
        weights[t] = read_one(filters + channel * channel_stride + c.taps[t].weight * tap_stride);
      }
      const Vec<T> end = broadcast(bias == nullptr ? T(0) : read_one(bias + channel));
      S* plane = out.data + band.image * out.image_stride() + channel * out.pixels();
      for (int64_t d = 0; d < band.size[0]; ++d) {
        for (int64_t h = 0; h < band.size[1]; ++h) {
          const T* x = memory + (d * c.in_step[0] * r.size[1] + h * c.in_step[1]) * r.size[2];
          const int64_t depth = c.out_base[0] + (band.first[0] + d) * c.out_step[0];
          const int64_t row = c.out_base[1] + (band.first[1] + h) * c.out_step[1];
          S* y = plane + (depth * out.size[1] + row) * out.size[2] + c.out_base[2] + band.first[2] * c.out_step[2];
          const auto step = [&](int64_t w, auto count) __attribute__((always_inline)) {
            Vec<T> sums[count];
            for (int i = 0; i < count; ++i) sums[i] = Vec<T>{};
            for (int64_t t = 0; t < tap_count; ++t) {
              const Vec<T> weight = broadcast(weights[t]);
              const T* from = x + offsets[t] + w * c.in_step[2];
              for (int i = 0; i < count; ++i) {
                sums[i] = fma(load_every(from + i * kLanes<T> * c.in_step[2], c.in_step[2]), weight, sums[i]);
              }
            }
            for (int i = 0; i < count; ++i) {
              sums[i] += end;
              const int64_t at = w + i * kLanes<T>, pixels = std::min<int64_t>(kLanes<T>, band.size[2] - at);
              if (c.out_step[2] != 1) {
                for (int64_t p = 0; p < pixels; ++p) write_one(y + (at + p) * c.out_step[2], sums[i][p]);
              } else if (pixels == kLanes<T>) {
                write(y + at, sums[i]);
              } else if (pixels > 0) {
                write_partial(y + at, sums[i], pixels);
              }
            }
          };
          int64_t w = 0;
          for (; w + kSideBySide * kLanes<T> <= band.size[2]; w += kSideBySide * kLanes<T>) {
            step(w, std::integral_constant<int, kSideBySide>());
          }
          for (; w < band.size[2]; w += kLanes<T>) step(w, std::integral_constant<int, 1>());
        }
      }
    }
  });
}

template <class S>
void correlate(const Correlation& c, int64_t batch, const Images<const S>& in, const Filters<const S>& weight,
               const S* bias, const Images<S>& out) {
  if (volume(c.count) == 0 || batch == 0) return;
  const auto& in_layout = out.channels_last ? correlate_channels_last<S> : correlate_planes<S>;
  in_layout(c, batch, in, weight.data, weight.out_stride, weight.tap_stride, bias, out);
}

template <class S>
void forward(const ConvGeometry& g, Images<const S> input, Filters<const S> weight, const S* bias, Images<S> output) {
  correlate(forward_correlation(g), g.batch, input, weight, bias, output);
}

template <class S>
void input_grad(const ConvGeometry& g, Images<const S> grad, Filters<const S> weight, const S* bias,
                Images<S> grad_input) {
  for (const Correlation& c : input_grad_correlations(g)) correlate(c, g.batch, grad, weight, bias, grad_input);
}

}  // namespace

#define SCRATCHNN_REGISTER(S)                                   \
  SCRATCHNN_REGISTER_KERNEL(depthwise_forward<S>, &forward<S>); \
  SCRATCHNN_REGISTER_KERNEL(depthwise_input_grad<S>, &input_grad<S>);
SCRATCHNN_REGISTER(float)
SCRATCHNN_REGISTER(double)
SCRATCHNN_REGISTER(BFloat16)
SCRATCHNN_REGISTER(Half)
#undef SCRATCHNN_REGISTER

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

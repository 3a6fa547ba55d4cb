// The weight gradient of depthwise convolution, each channel by itself: dw[c, t] = sum over images and pixels o of
// dy[c, o] x[c, o S - P + t D].
//
// A few taps' sums stay in registers while a band goes by. The batch is cut into chunks, a fixed number whatever
// the number of threads, whose sums are added up in order.
#include <algorithm>

#include "conv/cpu/band.h"
#include "conv/kernels.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {
namespace {

constexpr int kTapsTogether = 9;         // sums in registers at a time
constexpr int64_t kChunks = 16;          // of the bands, at most
constexpr int64_t kBandNumbers = 16384;  // of a band, all channels together

// One band of some channels: adds each tap's products to sums[t * sum_stride ...]. Rows of dy are `dy_stride`
// apart, rows of x `x_stride`; the innermost loop runs along a row.
struct Rows {
  int64_t count, length;
  int64_t x_stride, x_step;
  int64_t dy_stride, dy_step;
};

// channels_last: a vector is kLanes channels of one pixel.
template <int taps, class T>
SCRATCHNN_INLINE void add_channels(const Rows& rows, const T* x, const T* dy, const int64_t* offsets, int64_t lanes,
                                   T* sums, int64_t sum_stride) {
  const bool whole = lanes == kLanes<T>;
  Vec<T> total[taps] = {};
  for (int64_t row = 0; row < rows.count; ++row) {
    const T* from = x + row * rows.x_stride;
    const T* grad = dy + row * rows.dy_stride;
    for (int64_t w = 0; w < rows.length; ++w, from += rows.x_step, grad += rows.dy_step) {
      const Vec<T> g = whole ? load(grad) : load_partial(grad, lanes);
      for (int t = 0; t < taps; ++t) {
        total[t] = fma(whole ? load(from + offsets[t]) : load_partial(from + offsets[t], lanes), g, total[t]);
      }
    }
  }
  for (int t = 0; t < taps; ++t) {
    T* sum = sums + t * sum_stride;
    whole ? store(sum, load(sum) + total[t]) : store_partial(sum, load_partial(sum, lanes) + total[t], lanes);
  }
}

// contiguous: a vector is kLanes pixels of one channel.
template <int taps, class T>
SCRATCHNN_INLINE void add_plane(const Rows& rows, const T* x, const T* dy, const int64_t* offsets, T* sums) {
  Vec<T> total[taps] = {};
  for (int64_t row = 0; row < rows.count; ++row) {
    const T* from = x + row * rows.x_stride;
    const T* grad = dy + row * rows.dy_stride;
    for (int64_t w = 0; w < rows.length; w += kLanes<T>) {
      const int64_t pixels = std::min<int64_t>(kLanes<T>, rows.length - w);
      if (pixels == kLanes<T>) {
        const Vec<T> g = load(grad + w);
        for (int t = 0; t < taps; ++t) {
          total[t] = fma(load_every(from + offsets[t] + w * rows.x_step, rows.x_step), g, total[t]);
        }
      } else {  // what lies beyond the row must not count, not even as infinity times zero
        const Vec<T> g = load_partial(grad + w, pixels);
        for (int t = 0; t < taps; ++t) {
          const Vec<T> v = load_every(from + offsets[t] + w * rows.x_step, rows.x_step);
          total[t] = fma(first_lanes<T>(v, pixels), g, total[t]);
        }
      }
    }
  }
  for (int t = 0; t < taps; ++t) sums[t] += horizontal_sum<T>(total[t]);
}

// Calls body(first tap, std::integral_constant<int, number>) for the taps, kTapsTogether at a time where possible.
template <class Body>
SCRATCHNN_INLINE void for_each_taps(int64_t taps, const Body& body) {
  int64_t t = 0;
  for (; t + kTapsTogether <= taps; t += kTapsTogether) body(t, std::integral_constant<int, kTapsTogether>());
  for (; t + 3 <= taps; t += 3) body(t, std::integral_constant<int, 3>());
  for (; t < taps; ++t) body(t, std::integral_constant<int, 1>());
}

template <class S>
void weight_grad(const ConvGeometry& g, Images<const S> grad, Images<const S> input, Filters<S> grad_weight) {
  using T = Wide<S>;
  const Correlation c = forward_correlation(g);
  const Extent low = c.first_offset(), high = c.last_offset();
  const int64_t channels = g.in_channels, taps = g.taps();
  const bool together = input.channels_last;  // all channels of a band at once, or one plane at a time
  const Bands bands(g.batch, g.output, together ? std::max<int64_t>(8, kBandNumbers / channels) : kBandNumbers);
  const int64_t chunks = std::clamp<int64_t>(bands.total(), 1, kChunks);
  const int64_t planes = together ? 1 : channels;
  T* sums = scratch<T>(chunks * taps * channels, Scratch::kCall);  // [chunk][tap][channel], or [chunk][channel][tap]

  const int64_t band_channels = together ? channels : 1;
  const Rectangle largest = read_by(c, low, high, {0, 0, 0}, bands.largest());
  const int64_t band_size = round_up(volume(largest.size) * band_channels + 2 * kLanes<T> * g.stride[2], 16);
  const int64_t grad_size = round_up(volume(bands.largest()) * band_channels, 16);
  parallel_for(0, chunks * planes, 1, [&](int64_t begin, int64_t end) {
    T* memory = scratch<T>(band_size + grad_size + 2 * taps + 2);
    T* grad_memory = memory + band_size;
    int64_t* offsets = reinterpret_cast<int64_t*>(grad_memory + grad_size);
    std::fill_n(memory, band_size, T(0));
    for (int64_t task = begin; task < end; ++task) {
      const int64_t chunk = task / planes, channel = task % planes;
      T* own = sums + (chunk * planes + channel) * taps * band_channels;
      std::fill_n(own, taps * band_channels, T(0));
      for (int64_t index = bands.total() * chunk / chunks; index < bands.total() * (chunk + 1) / chunks; ++index) {
        const Band band = bands[index];
        const Rectangle rectangle = read_by(c, low, high, band.first, band.size);
        const Rectangle positions{band.first, band.size};
        const PixelView<T> x =
            view_rectangle(input, band, channel, band_channels, rectangle, g.border, together, memory);
        const PixelView<T> dy =
            view_rectangle(grad, band, channel, band_channels, positions, Border::kZeros, together, grad_memory);
        tap_offsets(c, low, x, offsets);
        for (int64_t d = 0; d < band.size[0]; ++d) {
          const Rows rows{band.size[1], band.size[2], g.stride[1] * x.stride[1], g.stride[2] * x.stride[2],
                          dy.stride[1], dy.stride[2]};
          const T* from = x.data + d * g.stride[0] * x.stride[0];
          const T* to = dy.data + d * dy.stride[0];
          for_each_taps(taps, [&](int64_t t, auto count) __attribute__((always_inline)) {
            if (!together) {
              add_plane<count, T>(rows, from, to, offsets + t, own + t);
              return;
            }
            for (int64_t k = 0; k < channels; k += kLanes<T>) {
              add_channels<count, T>(rows, from + k, to + k, offsets + t, std::min<int64_t>(kLanes<T>, channels - k),
                                     own + t * channels + k, channels);
            }
          });
        }
      }
    }
  });

  const int64_t tap_stride = together ? channels : 1, channel_stride = together ? 1 : taps;
  for (int64_t k = 0; k < channels; ++k) {
    for (int64_t t = 0; t < taps; ++t) {
      T sum = 0;
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        sum += sums[chunk * taps * channels + k * channel_stride + t * tap_stride];
      }
      write_one(grad_weight.data + k * grad_weight.out_stride + t * grad_weight.tap_stride, sum);
    }
  }
}

}  // namespace

SCRATCHNN_REGISTER_KERNEL(depthwise_weight_grad<float>, &weight_grad<float>);
SCRATCHNN_REGISTER_KERNEL(depthwise_weight_grad<double>, &weight_grad<double>);
SCRATCHNN_REGISTER_KERNEL(depthwise_weight_grad<BFloat16>, &weight_grad<BFloat16>);
SCRATCHNN_REGISTER_KERNEL(depthwise_weight_grad<Half>, &weight_grad<Half>);

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

// The weight gradient of convolution in groups of few channels: dw[k, c, t] = sum over images and pixels o of
// dy[k, o] x[c, o S - P + t D], c a channel of k's group.
//
// A vector is output channels of several whole groups, as in the forward pass. The sums of some taps and channels stay
// in registers while a band goes by. The batch is cut into chunks, a fixed number whatever the number of threads, whose
// sums are added up in order.
#include <algorithm>

#include "conv/cpu/group_lanes.h"
#include "conv/kernels.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {
namespace {

constexpr int64_t kChunks = 8;             // of the bands, at most
constexpr int64_t kBlockBytes = 12 << 10;  // of a band, one block's input
constexpr int64_t kBandBytes = 192 << 10;  // of a band, input and gradient of all blocks of a task
constexpr int64_t kTasksPerThread = 8;
constexpr int kChannelsTogether = 4;    // of a group: with three taps twelve sums
constexpr int64_t kProductsInSum = 64;  // sums of sums are more exact than one long sum

// Taps whose sums are in registers together. `in_row`: what lies under one tap of a position lies under the tap before
// of the next one.
struct TapGroup {
  int64_t first, count;
  bool in_row;
};

inline std::vector<TapGroup> tap_groups(const Correlation& correlation) {
  std::vector<TapGroup> groups;
  for (const TapRun& run : tap_runs(correlation)) {
    const bool in_row = run.count > 1;
    if (!in_row && !groups.empty() && !groups.back().in_row && groups.back().count < kTapsTogether) {
      ++groups.back().count;
    } else {
      groups.push_back({run.first, run.count, in_row});
    }
  }
  return groups;
}

// One block's pixels of a band. Strides in numbers of T.
template <class T>
struct BlockRows {
  const Band& band;
  const T* x;
  Extent x_stride;  // from a position to the next
  int64_t x_image_stride;
  const T* dy;
  Extent dy_stride;
  int64_t dy_image_stride;
};

// sums[c][r] += spread(x[p + r]) dy[p], of `count` positions p side by side.
template <int slot, int j, int count, int channels, int taps, bool in_row, class T>
SCRATCHNN_INLINE void add_positions(const T* const (&x)[taps], int64_t x_step, const T* dy, int64_t dy_step,
                                    Vec<T> (&sums)[channels][taps]) {
  constexpr int64_t next = slot == 1 ? kLanes<T> : 1;  // from a channel to the next, where spread() does not choose it
  constexpr bool chosen = slot > 1 && slot < kLanes<T>;
  Vec<T> grads[count];
#pragma GCC unroll 16
  for (int p = 0; p < count; ++p) {
    grads[p] = load(dy + p * dy_step);
    SCRATCHNN_KEEP_IN_REGISTER(grads[p]);
  }
  const auto channel = [&](auto c) __attribute__((always_inline)) {
    const T* from[taps];
#pragma GCC unroll 16
    for (int r = 0; r < taps; ++r) from[r] = chosen ? read_anew(x[r]) : x[r] + c * next;
    const auto value = [&](int r, int64_t q) __attribute__((always_inline)) {
      Vec<T> v = spread<slot, chosen ? j + c : 0>(from[r] + q * x_step);
      SCRATCHNN_KEEP_IN_REGISTER(v);
      return v;
    };
    if constexpr (in_row) {
#pragma GCC unroll 16
      for (int q = 0; q < count + taps - 1; ++q) {
        const Vec<T> v = value(0, q);
#pragma GCC unroll 16
        for (int r = 0; r < taps; ++r) {
          if (q - r >= 0 && q - r < count) sums[c][r] = fma(v, grads[q - r], sums[c][r]);
        }
      }
    } else {
#pragma GCC unroll 16
      for (int p = 0; p < count; ++p) {
#pragma GCC unroll 16
        for (int r = 0; r < taps; ++r) sums[c][r] = fma(value(r, p), grads[p], sums[c][r]);
      }
    }
  };
  [&]<int... c>(std::integer_sequence<int, c...>) __attribute__((always_inline)) {
    (channel(std::integral_constant<int, c>()), ...);
  }(std::make_integer_sequence<int, channels>());
}

// The products of a band for `channels` channels of the group, the first of which is spread<slot, j>, and a group of
// taps: added to sums[channel][tap][lane].
template <int slot, int j, int channels, int taps, bool in_row, class T>
__attribute__((noinline)) void add_band(const BlockRows<T>& rows, const int64_t* offsets, int64_t channel, T* memory) {
  constexpr int kPositions = 2;
  Vec<T> sums[channels][taps];
#pragma GCC unroll 16
  for (int i = 0; i < channels * taps; ++i) sums[i / taps][i % taps] = Vec<T>{};
  const auto deliver = [&]() __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (int i = 0; i < channels * taps; ++i) {
      T* sum = memory + i * kLanes<T>;
      store(sum, load(sum) + sums[i / taps][i % taps]);
      sums[i / taps][i % taps] = Vec<T>{};
    }
  };
  int64_t products = 0;
  const int64_t x_step = rows.x_stride[2], dy_step = rows.dy_stride[2], length = rows.band.size[2];
  for_each_row(rows.band, [&](int64_t, int64_t n, int64_t d, int64_t h) __attribute__((always_inline)) {
    const T* row = rows.x + n * rows.x_image_stride + d * rows.x_stride[0] + h * rows.x_stride[1] + channel;
    const T* dy = rows.dy + n * rows.dy_image_stride + d * rows.dy_stride[0] + h * rows.dy_stride[1];
    const T* x[taps];
#pragma GCC unroll 16
    for (int r = 0; r < taps; ++r) x[r] = row + offsets[r];
    const auto step = [&](auto count) __attribute__((always_inline)) {
      add_positions<slot, j, count, channels, taps, in_row>(x, x_step, dy, dy_step, sums);
#pragma GCC unroll 16
      for (int r = 0; r < taps; ++r) x[r] += count * x_step;
      dy += count * dy_step;
    };
#pragma GCC unroll 1
    for (int64_t left = length; left > 0;) {
      const int64_t run = std::min(left, kProductsInSum - products);
      int64_t w = 0;
#pragma GCC unroll 1
      for (; w + kPositions <= run; w += kPositions) step(std::integral_constant<int, kPositions>());
#pragma GCC unroll 1
      for (; w < run; ++w) step(std::integral_constant<int, 1>());
      left -= run;
      products += run;
      if (products == kProductsInSum) {
        deliver();
        products = 0;
      }
    }
  });
  deliver();
}

// The same for all channels of the group: sums[channel][tap][lane].
template <int slot, int taps, bool in_row, class T>
void add_channels(const BlockRows<T>& rows, const int64_t* offsets, int64_t channels, T* sums) {
  constexpr int together = std::min(kChannelsTogether, slot == 1 ? kChannelsTogether : slot);
  for (int64_t c = 0; c < channels;) {
    const int64_t room = slot == 1 ? together : std::min<int64_t>(together, slot - c % slot);
    const int64_t count = std::min(room, channels - c);
    with_rows<together>(count, [&](auto number) {
      if constexpr (slot == 1 || slot == kLanes<T>) {
        add_band<slot, 0, number, taps, in_row>(rows, offsets, slot == 1 ? c * kLanes<T> : c, sums);
      } else {
        const int64_t vector = c / slot * kLanes<T>;
        [&]<int... j>(std::integer_sequence<int, j...>) {
          const auto from = [&](auto first) {
            if constexpr (first + number <= slot) {
              if (c % slot == first) add_band<slot, first, number, taps, in_row>(rows, offsets, vector, sums);
            }
          };
          (from(std::integral_constant<int, j * together>()), ...);
        }(std::make_integer_sequence<int, slot / together>());
      }
    });
    sums += count * taps * kLanes<T>;
    c += count;
  }
}

template <class S>
void weight_grad(const ConvGeometry& g, Images<const S> grad, Images<const S> input, Filters<S> grad_weight) {
  using T = Wide<S>;
  constexpr auto bytes = static_cast<int64_t>(sizeof(T));
  const Correlation c = forward_correlation(g);
  const Extent low = c.first_offset(), high = c.last_offset();
  const std::vector<TapGroup> groups = tap_groups(c);
  const int64_t slot = slot_of<T>(g.group_out()), taps = g.taps();
  const GroupLanes<T> in_lanes{g.groups, g.group_in(), slot}, out_lanes{g.groups, g.group_out(), slot};
  const int64_t in_width = in_lanes.width(), out_width = out_lanes.width(), vectors = out_lanes.vectors();
  const int64_t blocks = in_lanes.blocks();
  const int64_t size = taps * g.group_in() * kLanes<T>;  // of a vector's sums: [group of taps][channel][tap][lane]

  const int64_t most_pixels = kBlockBytes / bytes / (in_width * g.stride[1] * g.stride[2]);
  const Bands bands(g.batch, g.output, std::max<int64_t>(16, most_pixels), g.batch);
  const int64_t chunks = std::clamp<int64_t>(bands.total(), 1, kChunks);
  const Rectangle largest = read_by(c, low, high, {0, 0, 0}, bands.largest());
  const int64_t x_size = GroupView<T>::block_size(bands.most_images() * volume(largest.size), in_width);
  const int64_t dy_size = GroupView<T>::block_size(bands.most_pixels(), out_width);
  const int64_t ranges = std::clamp<int64_t>(
      std::max(blocks * (x_size + dy_size) * bytes / kBandBytes, kTasksPerThread * thread_count() / chunks), 1, blocks);
  const int64_t most_blocks = (blocks + ranges - 1) / ranges;
  T* sums = scratch<T>(chunks * blocks * vectors * size, Scratch::kCall);

  parallel_for(0, chunks * ranges, 1, [&](int64_t begin, int64_t end) {
    T* x_memory = scratch<T>(most_blocks * (x_size + dy_size) + 2 * taps);
    T* dy_memory = x_memory + most_blocks * x_size;
    int64_t* offsets = reinterpret_cast<int64_t*>(dy_memory + most_blocks * dy_size);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t chunk = task / ranges;
      const int64_t first = blocks * (task % ranges) / ranges, last = blocks * (task % ranges + 1) / ranges;
      T* own = sums + (chunk * blocks + first) * vectors * size;
      std::fill_n(own, (last - first) * vectors * size, T(0));
      for (int64_t index = bands.total() * chunk / chunks; index < bands.total() * (chunk + 1) / chunks; ++index) {
        const Band band = bands[index];
        const Rectangle rectangle = read_by(c, low, high, band.first, band.size);
        const GroupView<T> x(x_memory, rectangle.size, band.images, in_width);
        const GroupView<T> dy(dy_memory, band.size, band.images, out_width);
        pack_band(in_lanes, input, band, rectangle, g.border, first, last - first, x);
        pack_band(out_lanes, grad, band, {band.first, band.size}, Border::kZeros, first, last - first, dy);
        tap_offsets(c, low, PixelView<T>{x.data, x.stride, x.image_stride}, offsets);
        for (int64_t i = 0; i < (last - first) * vectors; ++i) {
          const int64_t block = i / vectors, vector = i % vectors;
          BlockRows<T> rows{band,
                            x.data + block * x.block_stride,
                            x.stride,
                            x.image_stride,
                            dy.data + block * dy.block_stride + vector * kLanes<T>,
                            dy.stride,
                            dy.image_stride};
          for (int d = 0; d < kSpatialRank; ++d) rows.x_stride[d] *= g.stride[d];
          T* sum = own + i * size;
          for (const TapGroup& group : groups) {
            with_slot<T>(slot, [&](auto lanes) {
              with_rows<kTapsTogether>(group.count, [&](auto count) {
                const auto& add =
                    group.in_row ? add_channels<lanes, count, true, T> : add_channels<lanes, count, false, T>;
                add(rows, offsets + group.first, g.group_in(), sum);
              });
            });
            sum += group.count * g.group_in() * kLanes<T>;
          }
        }
      }
    }
  });

  // Add up the chunks, in order, and write them into the weight's own layout.
  parallel_for(0, blocks * vectors, 1 + 16384 / std::max<int64_t>(1, size * chunks), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      T* total = sums + i * size;
      for (int64_t chunk = 1; chunk < chunks; ++chunk) {
        const T* part = total + chunk * blocks * vectors * size;
        for (int64_t q = 0; q < size; q += kLanes<T>) store(total + q, load(total + q) + load(part + q));
      }
      const int64_t block = i / vectors, channel = i % vectors * slot;
      const int64_t count = std::min(slot, g.group_out() - channel);
      for (int64_t group = 0; group < out_lanes.groups_of(block); ++group) {
        for (int64_t k = 0; k < count; ++k) {
          const T* from = total + group * slot + k;
          S* to = grad_weight.data +
                  ((block * out_lanes.together() + group) * g.group_out() + channel + k) * grad_weight.out_stride;
          for (const TapGroup& tap_group : groups) {
            for (int64_t j = 0; j < g.group_in(); ++j) {
              for (int64_t t = tap_group.first; t < tap_group.first + tap_group.count; ++t, from += kLanes<T>) {
                write_one(to + j * grad_weight.in_stride + t * grad_weight.tap_stride, *from);
              }
            }
          }
        }
      }
    }
  });
}

}  // namespace

// Not compiled for wider vectors, since this is much code: where there are any, AVX2 serves (common/dispatch.h).
#if !defined(CPU_CAPABILITY_AVX512)
SCRATCHNN_REGISTER_KERNEL(grouped_weight_grad<float>, &weight_grad<float>);
SCRATCHNN_REGISTER_KERNEL(grouped_weight_grad<double>, &weight_grad<double>);
SCRATCHNN_REGISTER_KERNEL(grouped_weight_grad<BFloat16>, &weight_grad<BFloat16>);
SCRATCHNN_REGISTER_KERNEL(grouped_weight_grad<Half>, &weight_grad<Half>);
#endif

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

// Convolution in groups of few channels: the forward pass and the input gradient.
//
// A group has too few channels for matrix products, whose register tiles they would leave mostly empty, so a vector is
// output channels of several whole groups. What its lanes are computed from, one input channel of each group, is a
// shuffle of the input's vector of the same groups (group_lanes.h). A tile is a row of neighbouring pixels: they share
// the weights' vectors, and where taps lie as far apart as pixels do, each shuffled vector is used by all outputs that
// see its pixel under the taps of a row.
#include <algorithm>

#include "conv/cpu/group_lanes.h"
#include "conv/cpu/packed_weight.h"
#include "conv/kernels.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {
namespace {

constexpr int kTilePixels = 10;            // with three weights and an input they fill the registers of AVX2
constexpr int64_t kBlockBytes = 24 << 10;  // of a band, one block's input
constexpr int64_t kBandBytes = 384 << 10;  // of a band, all blocks of a task
constexpr int64_t kTasksPerThread = 8;

// A correlation as tiles see it. Strides in numbers of T.
template <class T>
struct Reduction {
  const TapRun* runs;
  int64_t run_count;
  const int64_t* taps;  // where each reads, from a position's first input pixel on
  int64_t channels;     // of a group, that are summed over
  int64_t step;         // from a position to the next
};

// The end of a tile, for one vector of its outputs: `lanes` numbers are written.
template <class T>
SCRATCHNN_INLINE void finish(Vec<T> sum, Vec<T> bias, int64_t lanes, T* y) {
  sum += bias;
  lanes == kLanes<T> ? store(y, sum) : write_partial(y, sum, lanes);
}

// sums[p] += spread(x[p + r]) w[r], for one channel of the group and `taps` neighbouring taps r.
template <int slot, int j, int count, int taps, class T>
SCRATCHNN_INLINE void add_taps(const T* x, int64_t step, const T* w, Vec<T> (&sums)[count]) {
  Vec<T> weights[taps];
#pragma GCC unroll 16
  for (int r = 0; r < taps; ++r) {
    weights[r] = load(w + r * kLanes<T>);
    SCRATCHNN_KEEP_IN_REGISTER(weights[r]);
  }
#pragma GCC unroll 16
  for (int q = 0; q < count + taps - 1; ++q) {
    Vec<T> v = spread<slot, j>(x + q * step);
    SCRATCHNN_KEEP_IN_REGISTER(v);
#pragma GCC unroll 16
    for (int r = 0; r < taps; ++r) {
      if (q - r >= 0 && q - r < count) sums[q - r] = fma(v, weights[r], sums[q - r]);
    }
  }
}

// `count` outputs side by side, one vector of each.
template <int slot, int count, class T>
__attribute__((noinline)) void compute_tile(const Reduction<T>& reduction, const T* x, const T* w, const T* bias,
                                            int64_t lanes, T* y, int64_t y_step) {
  const int64_t step = reduction.step, channels = reduction.channels;
  Vec<T> sums[count];
#pragma GCC unroll 16
  for (int p = 0; p < count; ++p) {
    __builtin_prefetch(y + p * y_step, 1);  // to be there when the sums are
    sums[p] = Vec<T>{};
  }
#pragma GCC unroll 1
  for (int64_t i = 0; i < reduction.run_count; ++i) {
    const TapRun run = reduction.runs[i];
    const auto add = [&](auto taps) __attribute__((always_inline)) {
      for_each_channel<slot>(x + reduction.taps[run.first], channels,
                             [&](auto j, const T* from, int64_t) __attribute__((always_inline)) {
                               add_taps<slot, j, count, taps>(from, step, w, sums);
                               w += taps * kLanes<T>;
                             });
    };
    if (run.count == 3) {
      add(std::integral_constant<int, 3>());
    } else if (run.count == 2) {
      add(std::integral_constant<int, 2>());
    } else {
      add(std::integral_constant<int, 1>());
    }
  }
  const Vec<T> end = load(bias);
#pragma GCC unroll 16
  for (int p = 0; p < count; ++p) finish<T>(sums[p], end, lanes, y + p * y_step);
}

// The weight, packed once per call: for each block of groups and vector of its outputs the vectors of all runs of taps
// by channels by taps, in the order in which tiles read them, then the bias. Lanes of no channel are zero.
template <class T>
struct PackedGroups {
  const T* data;
  int64_t products;  // of an output
  int64_t size() const { return (products + 1) * kLanes<T>; }
};

template <class S, class T>
PackedGroups<T> pack_groups(const Operand<S>& w, const GroupLanes<T>& lanes, const Correlation& correlation,
                            const std::vector<TapRun>& runs, const S* bias) {
  const PackedGroups<T> shape{nullptr, static_cast<int64_t>(correlation.taps.size()) * w.sum};
  const int64_t size = shape.size(), vectors = lanes.vectors(), slot = lanes.slot;
  T* memory = scratch<T>(lanes.blocks() * vectors * size, Scratch::kCall);
  parallel_for(0, lanes.blocks() * vectors, 1 + 16384 / size, [&](int64_t first, int64_t last) {
    std::fill(memory + first * size, memory + last * size, T(0));
    for (int64_t i = first; i < last; ++i) {
      const int64_t block = i / vectors, channel = i % vectors * slot;
      const int64_t count = std::min(slot, w.out - channel);
      for (int64_t g = 0; g < lanes.groups_of(block); ++g) {
        const int64_t group = block * lanes.together() + g;
        for (int64_t k = 0; k < count; ++k) {
          const S* from = w.filters.data + group * w.group_stride + (channel + k) * w.out_stride;
          T* to = memory + i * size + g * slot + k;
          for (const TapRun& run : runs) {
            for (int64_t c = 0; c < w.sum; ++c) {
              for (int64_t t = run.first; t < run.first + run.count; ++t, to += kLanes<T>) {
                *to = read_one(from + c * w.sum_stride + correlation.taps[t].weight * w.filters.tap_stride);
              }
            }
          }
          if (bias != nullptr) *to = read_one(bias + group * w.out + channel + k);
        }
      }
    }
  });
  return {memory, shape.products};
}

// Pixels of a block, [pixel][width], to a row of an image whose pixels are `step` apart.
template <class S, class T>
void unpack_pixels(const GroupLanes<T>& lanes, int64_t block, const T* from, int64_t pixels, const Images<S>& images,
                   int64_t step, S* to) {
  const int64_t width = lanes.width();
  const int64_t channel_stride = images.channel_stride(), pixel_stride = step * images.pixel_stride();
  if (lanes.in_order() && images.channels_last) {
    const int64_t channels = lanes.channels_of(block);
    for (int64_t p = 0; p < pixels; ++p) copy_numbers(from + p * width, channels, to + p * pixel_stride);
  } else if (lanes.in_order() && pixel_stride == 1) {
    transpose_block(from, width, to, channel_stride, pixels, lanes.channels_of(block));
  } else {
    for (int64_t p = 0; p < pixels; ++p) {
      S* channel = to + p * pixel_stride;
      for (int64_t g = 0; g < lanes.groups_of(block); ++g) {
        for (int64_t c = 0; c < lanes.channels; ++c, channel += channel_stride) {
          write_one(channel, from[p * width + lanes.lane(g, c)]);
        }
      }
    }
  }
}

template <class S>
void correlate(const Correlation& c, const Operand<S>& operand, int64_t batch, int64_t groups,
               const Images<const S>& in, const S* bias, const Images<S>& out) {
  using T = Wide<S>;
  if (volume(c.count) == 0 || batch == 0) return;
  const int64_t slot = slot_of<T>(operand.out), taps = static_cast<int64_t>(c.taps.size());
  const GroupLanes<T> in_lanes{groups, operand.sum, slot}, out_lanes{groups, operand.out, slot};
  const int64_t in_width = in_lanes.width(), out_width = out_lanes.width(), vectors = out_lanes.vectors();
  const std::vector<TapRun> runs = tap_runs(c);
  const PackedGroups<T> weight = pack_groups(operand, out_lanes, c, runs, bias);
  const Extent low = c.first_offset(), high = c.last_offset();

  const auto bytes = static_cast<int64_t>(sizeof(T));
  const Bands bands(batch, c.count,
                    std::max<int64_t>(16, kBlockBytes / (in_width * bytes) / (c.in_step[1] * c.in_step[2])), batch);
  const Rectangle largest = read_by(c, low, high, {0, 0, 0}, bands.largest());
  const int64_t block_size = GroupView<T>::block_size(bands.most_images() * volume(largest.size), in_width);
  // Bands, times ranges of blocks: as few as fit the cache, and as give all threads work.
  const int64_t blocks = in_lanes.blocks();
  const int64_t ranges = std::clamp<int64_t>(
      std::max(blocks * block_size * bytes / kBandBytes, kTasksPerThread * thread_count() / bands.total()), 1, blocks);
  const int64_t most_blocks = (blocks + ranges - 1) / ranges;
  // Where a vector's numbers do not lie in the output as they are they are computed first, and written then.
  const bool stage = !out.channels_last || !out_lanes.in_order() || !std::is_same_v<S, T>;
  const int64_t stage_size = stage ? round_up(bands.most_pixels() * out_width, 16) : 0;

  parallel_for(0, bands.total() * ranges, 1, [&](int64_t begin, int64_t end) {
    T* memory = scratch<T>(most_blocks * block_size + stage_size + 2 * taps + 2);
    T* stage_memory = memory + most_blocks * block_size;
    int64_t* offsets = reinterpret_cast<int64_t*>(stage_memory + stage_size);
    for (int64_t task = begin; task < end; ++task) {
      const Band band = bands[task / ranges];
      const int64_t first = blocks * (task % ranges) / ranges, last = blocks * (task % ranges + 1) / ranges;
      const Rectangle rectangle = read_by(c, low, high, band.first, band.size);
      const GroupView<T> view(memory, rectangle.size, band.images, in_width);
      pack_band(in_lanes, in, band, rectangle, c.border, first, last - first, view);
      tap_offsets(c, low, PixelView<T>{view.data, view.stride, view.image_stride}, offsets);
      const Reduction<T> reduction{runs.data(), static_cast<int64_t>(runs.size()), offsets, operand.sum,
                                   c.in_step[2] * in_width};
      for (int64_t block = first; block < last; ++block) {
        const T* x_block = memory + (block - first) * view.block_stride;
        S* out_block =
            out.data + band.image * out.image_stride() + out_lanes.first_channel(block) * out.channel_stride();
        // Rows (n, d, h) of the band as they lie in the output.
        const auto out_row = [&](int64_t n, int64_t d, int64_t h) {
          const int64_t depth = c.out_base[0] + (band.first[0] + d) * c.out_step[0];
          const int64_t line = c.out_base[1] + (band.first[1] + h) * c.out_step[1];
          const int64_t column = c.out_base[2] + band.first[2] * c.out_step[2];
          return out_block + n * out.image_stride() +
                 ((depth * out.size[1] + line) * out.size[2] + column) * out.pixel_stride();
        };
        for (int64_t v = 0; v < vectors; ++v) {
          const T* w = weight.data + (block * vectors + v) * weight.size();
          const int64_t lanes = std::min<int64_t>(kLanes<T>, out_lanes.channels_of(block) - v * kLanes<T>);
          const auto compute_row = [&](const T* x, int64_t written, T* y, int64_t y_step) {
            const int64_t tiles = (band.size[2] + kTilePixels - 1) / kTilePixels;
            for (int64_t tile = 0; tile < tiles; ++tile) {
              const int64_t p = band.size[2] * tile / tiles, pixels = band.size[2] * (tile + 1) / tiles - p;
              with_slot<T>(slot, [&](auto lanes_of_group) {
                with_rows<kTilePixels>(pixels, [&](auto count) {
                  compute_tile<lanes_of_group, count, T>(reduction, x + p * reduction.step, w,
                                                         w + weight.products * kLanes<T>, written, y + p * y_step,
                                                         y_step);
                });
              });
            }
          };
          for_each_row(band, [&](int64_t position, int64_t n, int64_t d, int64_t h) {
            const T* x =
                x_block + n * view.image_stride + d * c.in_step[0] * view.stride[0] + h * c.in_step[1] * view.stride[1];
            if constexpr (std::is_same_v<S, T>) {
              if (!stage) {
                compute_row(x, lanes, out_row(n, d, h) + v * kLanes<T>, c.out_step[2] * out.channels);
                return;
              }
            }
            compute_row(x, kLanes<T>, stage_memory + position * out_width + v * kLanes<T>, out_width);
          });
        }
        if (!stage) continue;
        // Whole rows follow each other in the output as they do here.
        const bool joined = band.size[2] == out.size[2] && c.out_step[1] == 1 && c.out_step[2] == 1;
        for_each_row(band, [&](int64_t position, int64_t n, int64_t d, int64_t h) {
          if (joined && h > 0) return;
          unpack_pixels(out_lanes, block, stage_memory + position * out_width,
                        joined ? band.size[1] * band.size[2] : band.size[2], out, c.out_step[2], out_row(n, d, h));
        });
      }
    }
  });
}

template <class S>
void forward(const ConvGeometry& g, Images<const S> input, Filters<const S> weight, const S* bias, Images<S> output) {
  correlate(forward_correlation(g), forward_operand(g, weight), g.batch, g.groups, input, bias, output);
}

template <class S>
void input_grad(const ConvGeometry& g, Images<const S> grad, Filters<const S> weight, const S* bias,
                Images<S> grad_input) {
  for (const Correlation& correlation : input_grad_correlations(g)) {
    correlate(correlation, input_grad_operand(g, weight), g.batch, g.groups, grad, bias, grad_input);
  }
}

}  // namespace

// Not compiled for wider vectors, since this is much code: where there are any, AVX2 serves (common/dispatch.h).
#if !defined(CPU_CAPABILITY_AVX512)
#define SCRATCHNN_REGISTER(S)                                 \
  SCRATCHNN_REGISTER_KERNEL(grouped_forward<S>, &forward<S>); \
  SCRATCHNN_REGISTER_KERNEL(grouped_input_grad<S>, &input_grad<S>);
SCRATCHNN_REGISTER(float)
SCRATCHNN_REGISTER(double)
SCRATCHNN_REGISTER(BFloat16)
SCRATCHNN_REGISTER(Half)
#undef SCRATCHNN_REGISTER
#endif

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

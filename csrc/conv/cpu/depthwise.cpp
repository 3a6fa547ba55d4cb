// Depthwise convolution: each channel has a filter of its own. Forward and input gradient.
//
// There is no sum over channels to share a loaded input between outputs, so this is no matrix product. Kernels of 3x3
// on channels_last images go row by row (depthwise_rows.h), contiguous planes plane by plane (depthwise_planes.h).
// Else, and in half precision, a vector holds neighbouring channels, in either memory format, and outputs side by side
// share the pixels and weights of a run of taps. A block of channels goes through a band of outputs before the next one
// does, so that its weights and the rows it reads stay in the cache.
#include <algorithm>

#include "common/stream.h"
#include "conv/cpu/depthwise_planes.h"
#include "conv/cpu/depthwise_rows.h"
#include "conv/kernels.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {
namespace {

constexpr int64_t kBandNumbers = 49152;  // of a band, all channels together: what stays in the cache until all are done
constexpr int64_t kBlockPixels = 768;    // of a band of which one block of channels is copied at a time

// The blocks' weights: that of the t-th tap of a phase's runs for channel k is at [k / kBlock][t][k % kBlock].
template <class S>
void pack_weights(const TapRuns& runs, const Filters<const S>& weight, int64_t channels, Wide<S>* out) {
  constexpr int block = kBlock<Wide<S>>;
  for (int64_t first = 0; first < channels; first += block) {
    for (int64_t tap : runs.weights) {
      for (int64_t k = first; k < first + block; ++k) {
        *out++ = k < channels ? read_one(weight.data + k * weight.out_stride + tap * weight.tap_stride) : Wide<S>(0);
      }
    }
  }
}

// Where a block's outputs go: the pixel that is `at` away from the rectangle's first is at data + at * stride.
template <class T>
struct OutputView {
  T* data;
  Extent stride;
};

// The outputs of a band that are a phase's, one block of channels.
template <int width, int step, class T>
void correlate_block(const Correlation& c, const TapRuns& runs, const Band& band, const BlockView<T>& view,
                     const T* weights, const Ending<T>& ending, int64_t channel, int64_t channels,
                     const OutputView<T>& out, RunOfRow<T>* memory, UpcomingPixels& upcoming) {
  Extent size;  // the phases have not all equally many positions
  for (int d = 0; d < kSpatialRank; ++d) size[d] = std::min(band.size[d], c.count[d] - band.first[d]);
  if (size[2] <= 0) return;
  for (int64_t d = 0; d < size[0]; ++d) {
    for (int64_t h = 0; h < size[1]; ++h) {
      const Extent position{band.first[0] + d, band.first[1] + h, band.first[2]};
      const auto [wide, count] = runs_of_row(runs, c.in_step, position, view, memory);
      T* y = out.data;
      const Extent local{d, h, 0};
      for (int i = 0; i < kSpatialRank; ++i) y += (c.out_base[i] + local[i] * c.out_step[i]) * out.stride[i];
      for (int64_t k = 0; k < channels; k += kLanes<T>) {
        const OutputRow<T> row{memory,
                               wide,
                               count,
                               weights + k,
                               k,
                               view.stride[2],
                               c.in_step[2],
                               view.size[2],
                               ending,
                               channel + k,
                               std::min<int64_t>(kLanes<T>, channels - k),
                               y + k,
                               c.out_step[2] * out.stride[2],
                               &upcoming};
        tiles_of_row<width, step, T>(row, size[2]);
      }
    }
  }
}

// Copies a block's outputs from pixels x kBlock to the image, rounded to its type.
template <class S>
void deliver(const Wide<S>* from, const Images<S>& out, int64_t image, int64_t channel, int64_t channels,
             const Rectangle& r, bool streamed) {
  using T = Wide<S>;
  for (int64_t d = 0; d < r.size[0]; ++d) {
    const bool whole_rows = r.size[2] == out.size[2];  // they follow each other in memory
    const int64_t pixels = whole_rows ? r.size[1] * r.size[2] : r.size[2];
    for (int64_t h = 0; h < r.size[1]; h += whole_rows ? r.size[1] : 1, from += pixels * kBlock<T>) {
      const int64_t pixel = ((r.first[0] + d) * out.size[1] + r.first[1] + h) * out.size[2] + r.first[2];
      S* to = out.data + image * out.image_stride() + channel * out.channel_stride() + pixel * out.pixel_stride();
      if (!out.channels_last) {
        const bool aligned = reinterpret_cast<uintptr_t>(to) % 64 == 0;
        lanes_to_channels(from, channels, pixels, to, out.pixels(), streamed && aligned);
        continue;
      }
      for (int64_t p = 0; p < pixels; ++p, to += out.channels) {
        for (int64_t k = 0; k < channels; k += kLanes<T>) {
          const Vec<T> v = load(from + p * kBlock<T> + k);
          if (streamed) {
            stream(to + k, v);
          } else if (k + kLanes<T> <= channels) {
            write(to + k, v);
          } else {
            write_partial(to + k, v, channels - k);
          }
        }
      }
    }
  }
}

// `phases` read the same input, and write pixels that interleave.
template <class S>
void correlate(const std::vector<Correlation>& phases, int64_t batch, const Images<const S>& in,
               const Filters<const S>& weight, const S* bias, const Images<S>& out) {
  using T = Wide<S>;
  if (phases.empty() || volume(phases[0].count) == 0 || batch == 0) return;
  const Correlation& most = phases[0];
  if constexpr (std::is_same_v<S, T>) {
    if (takes_planes<S>(most, in, out)) return correlate_planes(most, batch, in, weight, bias, out);
  }
  const int64_t channels = in.channels, blocks = (channels + kBlock<T> - 1) / kBlock<T>, taps_and_bias = [&] {
    int64_t taps = 1;
    for (const Correlation& c : phases) taps += static_cast<int64_t>(c.taps.size());
    return taps;
  }();
  T* ends = scratch<T>(taps_and_bias * blocks * kBlock<T>, Scratch::kCall);
  std::fill_n(ends, blocks * kBlock<T>, T(0));
  if (bias != nullptr) copy_numbers(bias, channels, ends);
  const Ending<T> ending{bias == nullptr ? nullptr : ends};

  struct Phase {
    TapRuns runs;
    const T* weights;
  };
  std::vector<Phase> prepared;
  Extent low = most.first_offset(), high = most.last_offset();
  T* packed = ends + blocks * kBlock<T>;
  int64_t most_runs = 1;
  for (const Correlation& c : phases) {
    prepared.push_back({runs_of(c), packed});
    pack_weights(prepared.back().runs, weight, channels, packed);
    packed += static_cast<int64_t>(c.taps.size()) * blocks * kBlock<T>;
    most_runs = std::max(most_runs, static_cast<int64_t>(prepared.back().runs.offsets.size()));
    if (c.taps.empty()) continue;
    const Extent first = c.first_offset(), last = c.last_offset();
    for (int d = 0; d < kSpatialRank; ++d) {
      low[d] = std::min(low[d], first[d]);
      high[d] = std::max(high[d], last[d]);
    }
  }

  const int64_t spread = std::max(volume(most.in_step), volume(most.out_step));
  const BlockBands bands(batch, most.count, in.channels_last ? channels : 1,
                         in.channels_last ? kBandNumbers : kBlockPixels, spread);
  const bool streamed =
      is_worth_streaming(out.data, batch * out.image_stride(), out.channels_last ? out.channels : out.pixels()) &&
      (!out.channels_last || channels % kBlock<T> == 0);
  if constexpr (std::is_same_v<S, T>) {
    if (phases.size() == 1 && takes_rows<S>(most, prepared[0].runs, in, out)) {
      auto* run = most.in_step[2] == 1 ? &correlate_rows<1, T> : &correlate_rows<2, T>;
      return run(most, prepared[0].runs, batch, in, prepared[0].weights, ending, out, streamed);
    }
  }
  const bool buffered = streamed || !out.channels_last || !std::is_same_v<S, T>;
  const int64_t in_size = block_size<T>(read_by(most, low, high, {0, 0, 0}, bands.largest()));
  Extent out_size;
  for (int d = 0; d < kSpatialRank; ++d) out_size[d] = bands.largest()[d] * most.out_step[d];
  const int64_t buffer_size = buffered ? volume(out_size) * kBlock<T> : 0;
  // All channels of a band are asked of memory together, where they lie together and are not too much, or a block's.
  const bool whole_bands = in.channels_last && !bands.deep();
  const int64_t steps =
      kBlockVectors<T> * (whole_bands ? blocks : 1) * volume(bands.largest()) / 8;  // tiles until then
  const int64_t grain = 1 + 16384 / (volume(bands.largest()) * kBlock<T> * taps_and_bias);
  parallel_for(0, bands.total() * blocks, grain, [&](int64_t begin, int64_t end) {
    T* memory = scratch<T>(in_size + buffer_size + most_runs * static_cast<int64_t>(sizeof(RunOfRow<T>) / sizeof(T)));
    T* buffer = memory + in_size;
    RunOfRow<T>* run_memory = reinterpret_cast<RunOfRow<T>*>(memory + in_size + buffer_size);
    UpcomingPixels upcoming;
    for (int64_t item = begin; item < end; ++item) {
      const Band band = bands[item / blocks];
      const int64_t block = item % blocks, channel = block * kBlock<T>;
      const int64_t count = std::min<int64_t>(kBlock<T>, channels - channel);
      const Rectangle read = read_by(most, low, high, band.first, band.size);
      if (item == begin || block == 0 || !whole_bands) {
        const int64_t next = whole_bands ? (item / blocks + 1) * blocks : item + 1;
        upcoming = {};
        if (next < end) {
          const Band then = bands[next / blocks];
          const int64_t first = next % blocks * kBlock<T>;
          upcoming = {in,
                      then.image,
                      first,
                      whole_bands ? channels : std::min<int64_t>(kBlock<T>, channels - first),
                      read_by(most, low, high, then.first, then.size),
                      steps};
        }
      }
      const BlockView<T> view = view_block(in, band.image, channel, count, read, most.border, memory);
      Rectangle written;
      for (int d = 0; d < kSpatialRank; ++d) {
        written.first[d] = band.first[d] * most.out_step[d];
        written.size[d] = std::min(band.size[d] * most.out_step[d], out.size[d] - written.first[d]);
      }
      OutputView<T> to{buffer, {written.size[1] * written.size[2] * kBlock<T>, written.size[2] * kBlock<T>, kBlock<T>}};
      if constexpr (std::is_same_v<S, T>) {
        if (!buffered) {
          to.stride = {out.size[1] * out.size[2] * channels, out.size[2] * channels, channels};
          to.data = out.data + band.image * out.image_stride() + channel;
          for (int d = 0; d < kSpatialRank; ++d) to.data += written.first[d] * to.stride[d];
        }
      }
      for (size_t p = 0; p < phases.size(); ++p) {
        const Correlation& c = phases[p];
        const TapRuns& runs = prepared[p].runs;
        const T* weights = prepared[p].weights + block * static_cast<int64_t>(c.taps.size()) * kBlock<T>;
        with_run_width(runs.width, c.in_step[2], [&](auto width, auto step) {
          correlate_block<width, step>(c, runs, band, view, weights, ending, channel,
                                       buffered ? round_up(count, kLanes<T>) : count, to, run_memory, upcoming);
        });
      }
      if (buffered) deliver(buffer, out, band.image, channel, count, written, streamed);
    }
    if (streamed) finish_streaming();
  });
}

template <class S>
void forward(const ConvGeometry& g, Images<const S> input, Filters<const S> weight, const S* bias, Images<S> output) {
  correlate({forward_correlation(g)}, g.batch, input, weight, bias, output);
}

template <class S>
void input_grad(const ConvGeometry& g, Images<const S> grad, Filters<const S> weight, const S* bias,
                Images<S> grad_input) {
  correlate(input_grad_correlations(g), g.batch, grad, weight, bias, grad_input);
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

// 3x3 convolutions of stride 1 by Winograd's F(4x4, 3x3): the forward pass and the input gradient.
//
// A quarter of the multiplications of the direct sum (see winograd_transforms.h), at about three times its
// rounding error. Block by block of tiles, small enough for the second-level cache: inputs to points, one matrix
// product for each of the 36 points, points to outputs. The input gradient is the same computation with the filters
// turned by 180 degrees and the roles of the channels exchanged.
#include <algorithm>

#include "conv/cpu/packed_weight.h"
#include "conv/cpu/winograd_tiles.h"
#include "conv/kernels.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {
namespace {

using namespace winograd;

constexpr int64_t kPlanePad = 16;     // keeps the planes from falling on the same cache sets
constexpr int64_t kOutChannels = 64;  // output channels whose points are in the cache at a time
constexpr int64_t kSlice = 256;       // input channels of which a panel's filters stay in the first-level cache

// Tiles of a block: the points of its inputs fill about half of the second-level cache, but enough tiles to use each
// loaded filter often.
template <class T>
int64_t block_tiles(int64_t channels) {
  return (channels <= 16 ? 96 : 48) * static_cast<int64_t>(sizeof(float)) / static_cast<int64_t>(sizeof(T));
}

// The filters of one panel and input channel to points: taps and points lie `plane` apart.
template <class T>
void transform_filters(const T* taps, int64_t plane, T* points) {
  for (int64_t k = 0; k < kTileColumns<T>; k += kLanes<T>) {
    Vec<T> half[kTaps][kIn];
    for (int j = 0; j < kTaps; ++j) {
      Vec<T> column[kTaps];
      for (int i = 0; i < kTaps; ++i) column[i] = load(taps + (i * kTaps + j) * plane + k);
      filter_transform<T>(column, half[j]);
    }
    for (int i = 0; i < kIn; ++i) {
      const Vec<T> row[kTaps] = {half[0][i], half[1][i], half[2][i]};
      Vec<T> out[kIn];
      filter_transform<T>(row, out);
      for (int j = 0; j < kIn; ++j) store(points + (i * kIn + j) * plane + k, out[j]);
    }
  }
}

// Points of one tile to its outputs, for `channels` channels from `m` on. Only height x width of the 4x4 are written.
template <bool full, class T, class Y>
SCRATCHNN_INLINE void outputs_of_tile(const T* m, int64_t plane, const T* bias, int64_t channels, Y* y,
                                      int64_t row_stride, int64_t pixel_stride, int64_t height, int64_t width) {
  for (int64_t c = 0; c < channels; c += kLanes<T>) {
    if (c % (64 / static_cast<int64_t>(sizeof(Y))) == 0) {  // where the next tile's outputs will go
#pragma GCC unroll 4
      for (int i = 0; i < kOut; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j < kOut; ++j) __builtin_prefetch(y + i * row_stride + (kOut + j) * pixel_stride + c, 1);
      }
    }
    Vec<T> half[kIn][kOut];
#pragma GCC unroll 6
    for (int j = 0; j < kIn; ++j) {
      Vec<T> column[kIn];
#pragma GCC unroll 6
      for (int i = 0; i < kIn; ++i) column[i] = load(m + (i * kIn + j) * plane + c);
      output_transform<T>(column, half[j]);
    }
    const Vec<T> b = bias != nullptr ? load(bias + c) : Vec<T>{};
#pragma GCC unroll 4
    for (int i = 0; i < kOut; ++i) {
      if (!full && i >= height) break;
      Vec<T> row[kIn], out[kOut];
#pragma GCC unroll 6
      for (int j = 0; j < kIn; ++j) row[j] = half[j][i];
      output_transform<T>(row, out);
#pragma GCC unroll 4
      for (int j = 0; j < kOut; ++j) {
        if (full || j < width) write(y + i * row_stride + j * pixel_stride + c, bias != nullptr ? out[j] + b : out[j]);
      }
    }
  }
}

// Points of the tiles [first, last) to the output channels [channel, channel + channels). m is at point p of tile t
// and channel c: m + p * plane + t * channels + c. Contiguous outputs go through `memory`, one row of tiles.
template <class T, class S>
void write_outputs(const Tiles& tiles, int64_t first, int64_t last, const T* m, int64_t plane, const T* bias,
                   int64_t channel, int64_t channels, const Images<S>& out, T* memory) {
  for_each_run(tiles, first, last, [&](const Run& run, int64_t position) {
    const T* from = m + position * channels;
    const int64_t y = run.row * kOut, height = std::min<int64_t>(kOut, tiles.height - y);
    S* image = out.data + run.image * out.image_stride() + channel * out.channel_stride();
    if (out.channels_last) {
      const int64_t row_stride = tiles.width * out.channels;
      for (int64_t t = 0; t < run.count; ++t, from += channels) {
        const int64_t x = (run.column + t) * kOut, width = std::min<int64_t>(kOut, tiles.width - x);
        S* to = image + (y * tiles.width + x) * out.channels;
        if (height == kOut && width == kOut) {
          outputs_of_tile<true>(from, plane, bias, channels, to, row_stride, out.channels, height, width);
        } else {
          outputs_of_tile<false>(from, plane, bias, channels, to, row_stride, out.channels, height, width);
        }
      }
      return;
    }
    const int64_t row_stride = run.count * kOut * channels;
    for (int64_t t = 0; t < run.count; ++t, from += channels) {
      outputs_of_tile<true>(from, plane, bias, channels, memory + t * kOut * channels, row_stride, channels, kOut,
                            kOut);
    }
    const int64_t x = run.column * kOut, width = std::min(run.count * kOut, tiles.width - x);
    for (int64_t i = 0; i < height; ++i) {
      transpose_block(memory + i * row_stride, channels, image + (y + i) * tiles.width + x, out.pixels(), width,
                      channels);
    }
  });
}

// out = in (*) w for 3x3 filters w; the first tap reads pixel (top, left) of `in`, or its border, for output pixel
// (0, 0).
template <class S>
struct Work {
  Operand<S> operand;
  std::vector<Tap> taps;
  int64_t top, left;
  Border border;
  Images<const S> in;
  const S* bias;
  Images<S> out;
  Tiles tiles;
};

// The tiles [first, last) of the input to points, one channel beside the other.
template <class S>
void transform_inputs(const Work<S>& w, int64_t first, int64_t last, Wide<S>* points, int64_t plane, Wide<S>* memory) {
  using T = Wide<S>;
  const int64_t channels = w.operand.sum;
  transform_tiles<kIn>(w.tiles, first, last, w.in, w.border, w.top, w.left, 0, channels,
                       Points<T>{points, plane, channels, channels, 0}, memory,
                       [](const auto& x, auto& v) __attribute__((always_inline)) { input_transform<T>(x, v); });
}

// products[p][t] = points[p][t] filters[p] for the tiles t < count and one panel of output channels: a product for each
// point p. The filters' points lie one panel of `channels` rows after the other; `next` is the panel that is multiplied
// after this one, and asked of memory meanwhile.
template <class T>
void multiply_points(const T* points, int64_t in_plane, const int64_t* in_offsets, int64_t channels, const T* filters,
                     const T* next, T* products, int64_t out_plane, const int64_t* out_offsets, int64_t count,
                     int64_t p) {
  constexpr int64_t columns = kTileColumns<T>;
  const int64_t slices = (channels + kSlice - 1) / kSlice;
  Upcoming upcoming(next, channels * columns, slices * ((count + kTileRows - 1) / kTileRows));
  for (int64_t s = 0; s < slices; ++s) {
    const Segment slice{s * kSlice, std::min(kSlice, channels - s * kSlice)};
    for_each_tile(count, [&](int64_t t, int64_t rows) {
      upcoming.step();
      with_rows(rows, [&](auto n) {
        multiply_tile<n, kPointsInTile, T, T>(points + p * in_plane, in_offsets + t, &slice, 1,
                                              filters + (p * channels + slice.offset) * columns,
                                              products + p * out_plane, out_offsets + t, columns, s > 0, nullptr);
      });
    });
  }
}

// Block by block of tiles, with the points of all filters in the third-level cache at most.
template <class S>
void correlate_in_blocks(const Work<S>& w) {
  using T = Wide<S>;
  constexpr int64_t columns = kTileColumns<T>;
  const Tiles& tiles = w.tiles;
  const int64_t in_channels = w.operand.sum, out_channels = w.operand.out;
  const int64_t filters_size = kPoints * in_channels * out_channels;
  const int64_t step = in_channels * columns, panel_size = kPoints * step;  // of a panel's points, one and all
  T* filters = scratch<T>(filters_size + packed_size(w.operand, 1, kTaps * kTaps), Scratch::kCall);
  const PackedWeight<T> packed = pack<T>(w.operand, 1, w.taps, w.bias, filters + filters_size);
  parallel_for(0, packed.panels * in_channels, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t panel = i / in_channels, row = i % in_channels * columns;
      transform_filters(packed.panel(0, panel) + row, in_channels * columns, filters + panel * panel_size + row);
    }
  });

  // As many blocks for each thread: which tiles share a block never changes a result.
  int64_t blocks = (tiles.total() + block_tiles<T>(in_channels) - 1) / block_tiles<T>(in_channels);
  if (blocks > 1) blocks = std::min(tiles.total(), round_up(blocks, thread_count()));
  const int64_t most = (tiles.total() + blocks - 1) / blocks;
  const int64_t width = std::min(out_channels, kOutChannels);  // of a chunk of output channels
  const int64_t chunks = (out_channels + width - 1) / width;
  // Fewer blocks than threads, as for a single small image: the chunks of output channels are tasks of their own.
  const int64_t splits = std::clamp<int64_t>(thread_count() / blocks, 1, chunks);
  const int64_t in_plane = most * in_channels + kPlanePad, out_plane = most * width + kPlanePad;
  const int64_t in_memory = round_up(tile_memory<kIn>(w.in, in_channels, most), 16);
  const int64_t out_memory = w.out.channels_last ? 0 : kOut * kOut * most * width;

  parallel_for(0, blocks * splits, 1, [&](int64_t begin, int64_t end) {
    T* points = scratch<T>(kPoints * (in_plane + out_plane) + in_memory + out_memory + 2 * 2 * most + 16);
    T* products = points + kPoints * in_plane;
    T* in_scratch = products + kPoints * out_plane;
    T* out_scratch = in_scratch + in_memory;
    int64_t* in_offsets = reinterpret_cast<int64_t*>(out_scratch + out_memory);
    int64_t* out_offsets = in_offsets + most;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t block = task / splits, split = task % splits;
      const int64_t first = tiles.total() * block / blocks, last = tiles.total() * (block + 1) / blocks;
      transform_inputs(w, first, last, points, in_plane, in_scratch);
      for (int64_t chunk = chunks * split / splits; chunk < chunks * (split + 1) / splits; ++chunk) {
        const int64_t channel = chunk * width, count = std::min(width, out_channels - channel);
        for (int64_t t = 0; t < last - first; ++t) {
          in_offsets[t] = t * in_channels;
          out_offsets[t] = t * count;
        }
        for (int64_t p = 0; p < kPoints; ++p) {
          for (int64_t c = 0; c < count; c += columns) {
            const T* panel = filters + (channel + c) / columns * panel_size;
            const T* next =
                (c + columns < count ? panel + panel_size : filters + channel / columns * panel_size + step) + p * step;
            multiply_points(points, in_plane, in_offsets, in_channels, panel, next, products + c, out_plane,
                            out_offsets, last - first, p);
          }
        }
        write_outputs(tiles, first, last, products, out_plane, w.bias != nullptr ? packed.bias + channel : nullptr,
                      channel, count, w.out, out_scratch);
      }
    }
  });
}

// Panel by panel of output channels, where the points of all filters would not stay in the cache: there are four times
// as many of them as weights. The points of many tiles' inputs are shared instead, and a panel's filters are
// transformed where they are used.
template <class S>
void correlate_in_panels(const Work<S>& w) {
  using T = Wide<S>;
  constexpr int64_t columns = kTileColumns<T>;
  const Tiles& tiles = w.tiles;
  const int64_t in_channels = w.operand.sum, panels = w.operand.out / columns;
  const int64_t tile_bytes = kPoints * in_channels * static_cast<int64_t>(sizeof(T));
  const int64_t rounds = (tiles.total() * tile_bytes + kSharedBytes - 1) / kSharedBytes;
  const int64_t most = (tiles.total() + rounds - 1) / rounds;
  const int64_t in_plane = most * in_channels + kPlanePad, out_plane = most * columns + kPlanePad;
  const int64_t in_memory = round_up(tile_memory<kIn>(w.in, in_channels, most), 16);
  const int64_t out_memory = w.out.channels_last ? 0 : kOut * kOut * most * columns;
  const int64_t plane = in_channels * columns;  // of a panel's taps and points

  T* points = scratch<T>(kPoints * in_plane + 2 * 2 * most, Scratch::kCall);
  int64_t* in_offsets = reinterpret_cast<int64_t*>(points + kPoints * in_plane);
  int64_t* out_offsets = in_offsets + most;
  for (int64_t t = 0; t < most; ++t) {
    in_offsets[t] = t * in_channels;
    out_offsets[t] = t * columns;
  }
  for (int64_t round = 0; round < rounds; ++round) {
    const int64_t first = tiles.total() * round / rounds, last = tiles.total() * (round + 1) / rounds;
    parallel_for(first, last, 1, [&](int64_t begin, int64_t end) {
      transform_inputs(w, begin, end, points + (begin - first) * in_channels, in_plane, scratch<T>(in_memory));
    });
    parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
      T* filters = scratch<T>((kPoints + kTaps * kTaps) * plane + columns + kPoints * out_plane + out_memory);
      T* taps = filters + kPoints * plane;
      T* bias = taps + kTaps * kTaps * plane;
      T* products = bias + columns;
      for (int64_t panel = begin; panel < end; ++panel) {
        pack_panel(w.operand, w.taps, w.bias, 0, panel, taps, bias);
        for (int64_t c = 0; c < in_channels; ++c) transform_filters(taps + c * columns, plane, filters + c * columns);
        for (int64_t p = 0; p < kPoints; ++p) {
          multiply_points(points, in_plane, in_offsets, in_channels, filters, filters + (p + 1) * plane, products,
                          out_plane, out_offsets, last - first, p);
        }
        write_outputs(tiles, first, last, products, out_plane, w.bias != nullptr ? bias : nullptr, panel * columns,
                      columns, w.out, products + kPoints * out_plane);
      }
    });
  }
}

template <class S>
void correlate(const Work<S>& w) {
  if (w.tiles.total() == 0) return;
  const int64_t filter_points = kPoints * w.operand.sum * w.operand.out;
  if (filter_points * static_cast<int64_t>(sizeof(Wide<S>)) <= kSharedBytes) {
    correlate_in_blocks(w);
  } else {
    correlate_in_panels(w);
  }
}

template <class S>
void forward(const ConvGeometry& g, Images<const S> input, Filters<const S> weight, const S* bias, Images<S> output) {
  correlate<S>({forward_operand(g, weight), forward_correlation(g).taps, -g.padding[1], -g.padding[2], g.border, input,
                bias, output, Tiles{g.batch, output.size[1], output.size[2]}});
}

template <class S>
void input_grad(const ConvGeometry& g, Images<const S> grad, Filters<const S> weight, const S* bias,
                Images<S> grad_input) {
  std::vector<Tap> turned = forward_correlation(g).taps;
  std::reverse(turned.begin(), turned.end());
  correlate<S>({input_grad_operand(g, weight), turned, g.padding[1] - (kTaps - 1), g.padding[2] - (kTaps - 1),
                Border::kZeros, grad, bias, grad_input, Tiles{g.batch, grad_input.size[1], grad_input.size[2]}});
}

}  // namespace

#define SCRATCHNN_REGISTER(S)                                  \
  SCRATCHNN_REGISTER_KERNEL(winograd_forward<S>, &forward<S>); \
  SCRATCHNN_REGISTER_KERNEL(winograd_input_grad<S>, &input_grad<S>);
SCRATCHNN_REGISTER(float)
SCRATCHNN_REGISTER(double)
SCRATCHNN_REGISTER(BFloat16)
SCRATCHNN_REGISTER(Half)
#undef SCRATCHNN_REGISTER

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

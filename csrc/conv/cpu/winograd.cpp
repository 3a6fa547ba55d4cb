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

// Tiles of a block: the points of its inputs fill about half of the second-level cache, but enough tiles to use each
// loaded filter often.
int64_t block_tiles(int64_t channels) {
  return channels <= 16 ? 96 : 48;
}

// Filters to points: from the packed panels (taps x channels x kTileColumns) to 36 planes of channels x kTileColumns
// for each panel.
template <class T>
void transform_filters(const PackedWeight<T>& packed, int64_t channels, T* points) {
  constexpr int64_t columns = kTileColumns<T>;
  const int64_t plane = channels * columns;
  parallel_for(0, packed.panels * channels, 64, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t panel = item / channels, channel = item % channels;
      const T* taps = packed.panel(0, panel) + channel * columns;
      T* to = points + panel * kPoints * plane + channel * columns;
      for (int64_t c = 0; c < columns; c += kLanes<T>) {
        Vec<T> half[kTaps][kIn];
        for (int j = 0; j < kTaps; ++j) {
          Vec<T> column[kTaps];
          for (int i = 0; i < kTaps; ++i) column[i] = load(taps + (i * kTaps + j) * plane + c);
          filter_transform<T>(column, half[j]);
        }
        for (int i = 0; i < kIn; ++i) {
          const Vec<T> row[kTaps] = {half[0][i], half[1][i], half[2][i]};
          Vec<T> out[kIn];
          filter_transform<T>(row, out);
          for (int j = 0; j < kIn; ++j) store(to + (i * kIn + j) * plane + c, out[j]);
        }
      }
    }
  });
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
void correlate(const Operand<S>& operand, const std::vector<Tap>& taps, int64_t batch, int64_t top, int64_t left,
               Border border, const Images<const S>& in, const S* bias, const Images<S>& out) {
  using T = Wide<S>;
  constexpr int64_t columns = kTileColumns<T>;
  const Tiles tiles{batch, out.size[1], out.size[2]};
  if (tiles.total() == 0) return;
  const int64_t in_channels = operand.sum, out_channels = operand.out;
  const int64_t filters_size = kPoints * in_channels * out_channels;
  T* filters = scratch<T>(filters_size + packed_size(operand, 1, kTaps * kTaps), Scratch::kCall);
  const PackedWeight<T> packed = pack<T>(operand, 1, taps, bias, filters + filters_size);
  transform_filters(packed, in_channels, filters);

  const int64_t blocks = (tiles.total() + block_tiles(in_channels) - 1) / block_tiles(in_channels);
  const int64_t most = (tiles.total() + blocks - 1) / blocks;
  const int64_t width = std::min(out_channels, kOutChannels);  // of a chunk of output channels
  const int64_t chunks = (out_channels + width - 1) / width;
  // Fewer blocks than threads, as for a single small image: the chunks of output channels are tasks of their own.
  const int64_t splits = std::clamp<int64_t>(thread_count() / blocks, 1, chunks);
  const int64_t in_plane = most * in_channels + kPlanePad, out_plane = most * width + kPlanePad;
  const int64_t in_memory = round_up(tile_memory<kIn>(in, in_channels, most), 16);
  const int64_t out_memory = out.channels_last ? 0 : kOut * kOut * most * width;

  parallel_for(0, blocks * splits, 1, [&](int64_t begin, int64_t end) {
    T* points = scratch<T>(kPoints * (in_plane + out_plane) + in_memory + out_memory + 2 * 2 * most + 16);
    T* products = points + kPoints * in_plane;
    T* in_scratch = products + kPoints * out_plane;
    T* out_scratch = in_scratch + in_memory;
    int64_t* in_offsets = reinterpret_cast<int64_t*>(out_scratch + out_memory);
    int64_t* out_offsets = in_offsets + most;
    const Segment whole{0, in_channels};
    for (int64_t task = begin; task < end; ++task) {
      const int64_t block = task / splits, split = task % splits;
      const int64_t first = tiles.total() * block / blocks, last = tiles.total() * (block + 1) / blocks;
      transform_tiles<kIn>(tiles, first, last, in, border, top, left, 0, in_channels,
                           Points<T>{points, in_plane, in_channels, in_channels, 0}, in_scratch,
                           [](const auto& x, auto& v) __attribute__((always_inline)) { input_transform<T>(x, v); });
      for (int64_t chunk = chunks * split / splits; chunk < chunks * (split + 1) / splits; ++chunk) {
        const int64_t channel = chunk * width, count = std::min(width, out_channels - channel);
        for (int64_t t = 0; t < last - first; ++t) {
          in_offsets[t] = t * in_channels;
          out_offsets[t] = t * count;
        }
        for (int64_t p = 0; p < kPoints; ++p) {
          for (int64_t c = 0; c < count; c += columns) {
            const T* panel = filters + ((channel + c) / columns * kPoints + p) * in_channels * columns;
            for_each_tile(last - first, [&](int64_t t, int64_t rows) {
              with_rows(rows, [&](auto n) {
                multiply_tile<n, kPointsInTile, T, T>(points + p * in_plane, in_offsets + t, &whole, 1, panel,
                                                      products + p * out_plane + c, out_offsets + t, columns, false,
                                                      nullptr);
              });
            });
          }
        }
        write_outputs(tiles, first, last, products, out_plane, bias != nullptr ? packed.bias + channel : nullptr,
                      channel, count, out, out_scratch);
      }
    }
  });
}

template <class S>
void forward(const ConvGeometry& g, Images<const S> input, Filters<const S> weight, const S* bias, Images<S> output) {
  correlate(forward_operand(g, weight), forward_correlation(g).taps, g.batch, -g.padding[1], -g.padding[2], g.border,
            input, bias, output);
}

template <class S>
void input_grad(const ConvGeometry& g, Images<const S> grad, Filters<const S> weight, const S* bias,
                Images<S> grad_input) {
  std::vector<Tap> turned = forward_correlation(g).taps;
  std::reverse(turned.begin(), turned.end());
  correlate(input_grad_operand(g, weight), turned, g.batch, g.padding[1] - (kTaps - 1), g.padding[2] - (kTaps - 1),
            Border::kZeros, grad, bias, grad_input);
}

}  // namespace

#define SCRATCHNN_REGISTER(S)                                  \
  SCRATCHNN_REGISTER_KERNEL(winograd_forward<S>, &forward<S>); \
  SCRATCHNN_REGISTER_KERNEL(winograd_input_grad<S>, &input_grad<S>);
SCRATCHNN_REGISTER(float)
SCRATCHNN_REGISTER(BFloat16)
SCRATCHNN_REGISTER(Half)
#undef SCRATCHNN_REGISTER

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

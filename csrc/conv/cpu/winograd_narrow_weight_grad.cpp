// The weight gradient of a 3x3 convolution of stride 1 and few channels (winograd_narrow.h), by the exact adjoint of
// Winograd's F(4x4, 3x3), as in winograd_weight_grad.cpp.
#include <algorithm>

#include "conv/cpu/winograd_filters.h"
#include "conv/cpu/winograd_narrow.h"
#include "conv/kernels.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {
namespace {

using namespace winograd;

constexpr int64_t kTiles = 16;        // of a block
constexpr int64_t kChunkTiles = 192;  // a chunk is worth its sums from here on
constexpr int64_t kMostTiles = 6144;  // of a chunk: sums of sums are more exact
constexpr int64_t kTasks = 16;        // chunks x blocks of channels, at least where there are so many tiles
constexpr int64_t kDenseBytes = 64;   // of a pixel: more channels that all meet each other have too many sums

// The sums of a point that are in registers together: rows x vectors of them.
template <int64_t width, class T>
struct SumTile {
  static constexpr int vectors = width == kLanes<T> ? 1 : 2;
  static constexpr int rows = std::min<int>(width, (kVectorBytes == 64 ? 16 : 8) / vectors);
  static constexpr int64_t count = width / rows * (width / (vectors * kLanes<T>));  // for each point
};

// sums[r][c] += sum over `count` tiles t of grad[t][r] in[t][c], for one point. Of several groups that fill a vector
// the sums where one meets another are nobody's. ask() is called before each SumTile.
template <int64_t width, class T, class Ask>
SCRATCHNN_INLINE void multiply(const T* grad, const T* in, int64_t count, T* sums, const Ask& ask) {
  constexpr int lanes = kLanes<T>, vectors = SumTile<width, T>::vectors, rows = SumTile<width, T>::rows;
  static_assert(width % rows == 0 && width % (vectors * lanes) == 0);
  for (int64_t first = 0; first < width; first += rows) {
    for (int64_t c = 0; c < width; c += vectors * lanes) {
      ask();
      Vec<T> own[rows][vectors];
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) own[r][v] = Vec<T>{};
      }
#pragma GCC unroll 1
      for (int64_t t = 0; t < count; ++t) {
        Vec<T> right[vectors];
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) {
          right[v] = load(in + t * width + c + v * lanes);
          SCRATCHNN_KEEP_IN_REGISTER(right[v]);
        }
#pragma GCC unroll 16
        for (int r = 0; r < rows; ++r) {
          Vec<T> x = broadcast(grad[t * width + first + r]);
          if constexpr (vectors > 1) SCRATCHNN_KEEP_IN_REGISTER(x);
#pragma GCC unroll 2
          for (int v = 0; v < vectors; ++v) own[r][v] = fma(x, right[v], own[r][v]);
        }
      }
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) {
          T* to = sums + (first + r) * width + c + v * lanes;
          store(to, load(to) + own[r][v]);
        }
      }
    }
  }
}

// Adds the products of the tiles [first, last) of one slice, of one block of channels, to its sums.
template <int64_t width, class S, class T>
void add_tiles(const Tiles& tiles, int64_t first, int64_t last, bool cached, const Pixels<const S>& grad,
               const Pixels<const S>& in, Border border, T* sums, T* points, T* memory) {
  using Points = NarrowPoints<T, width, kTiles>;
  constexpr std::integral_constant<int64_t, width> channels;
  T* grad_points = points + Points::size;
  for (int64_t t = first, until; t < last; t = until) {
    until = std::min(last, t + kTiles);
    transform_tiles<kIn>(tiles, t, until, in, border, channels, Points{points}, memory,
                         [](const auto& x, auto& v) __attribute__((always_inline)) { input_transform<T>(x, v); });
    transform_tiles<kOut>(tiles, t, until, grad, Border::kZeros, channels, Points{grad_points}, memory,
                          [](const auto& y, auto& m)
                              __attribute__((always_inline)) { output_transform_adjoint<T>(y, m); });
    const int64_t next = cached ? until : std::min(last, until + kTiles);
    constexpr int64_t steps = kPoints * SumTile<width, T>::count;
    UpcomingTiles<const S, width, kTiles, kIn, kIn - kOut> inputs(tiles, until, next, in, steps);
    UpcomingTiles<const S, width, kTiles> grads(tiles, until, next, grad, steps);
    const auto ask = [&]() __attribute__((always_inline)) {
      inputs.step();
      grads.step();
    };
    for (int64_t p = 0; p < kPoints; ++p) {
      multiply<width>(grad_points + p * Points::plane, points + p * Points::plane, until - t, sums + p * width * width,
                      ask);
    }
  }
}

template <int64_t width, class S>
void weight_grad(const ConvGeometry& g, const Images<const S>& grad, const Images<const S>& input,
                 const Filters<S>& grad_weight) {
  using T = Wide<S>;
  constexpr int64_t point_sums = width * width, block_sums = kPoints * point_sums;
  const Tiles tiles{g.batch, g.output};
  const int64_t channels = g.group_in(), blocks = g.in_channels / width, total = tiles.total() * tiles.size[0];
  // Of contiguous images a chunk is whole rows.
  const bool in_place = input.channels_last && grad.channels_last;
  const int64_t piece_tiles = narrow_piece_tiles<T>(tiles, width, kTiles);
  const int64_t step = in_place ? 1 : std::max<int64_t>(1, tiles.columns()), slice_steps = tiles.total() / step;
  const int64_t chunks =
      std::max(std::clamp<int64_t>(std::min(kTasks / blocks, total / kChunkTiles), 1, kTasks), total / kMostTiles);
  // Of the last sums whole vectors are read, from any of them on.
  T* sums = scratch<T>(chunks * blocks * block_sums + kLanes<T>, Scratch::kCall);
  std::fill_n(sums + chunks * blocks * block_sums, kLanes<T>, T(0));
  constexpr int64_t points_size = 2 * kPoints * kTiles * width;
  const int64_t zeros = round_up(kIn * kIn * input.channels, 16);
  const int64_t in_size = in_place ? 0 : round_up(piece_pixels(tiles, kIn, piece_tiles) * width, 16);
  const int64_t grad_size = in_place ? 0 : piece_pixels(tiles, kOut, piece_tiles) * width;

  parallel_for(0, chunks * blocks, 1, [&](int64_t begin, int64_t end) {
    T* points = scratch<T>(points_size + zeros + in_size + grad_size);
    T* memory = points + points_size;
    T* in_copy = memory + zeros;
    T* grad_copy = in_copy + in_size;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t chunk = task / blocks, channel = task % blocks * width, steps = slice_steps * tiles.size[0];
      T* own = sums + task * block_sums;
      std::fill_n(own, block_sums, T(0));
      for (int64_t i = steps * chunk / chunks, last = steps * (chunk + 1) / chunks, until; i < last; i = until) {
        const int64_t slice = i / slice_steps, from = i % slice_steps;
        until = std::min(last, (slice + 1) * slice_steps);
        const Pixels<const S> out{grad, slice, channel}, in{input, slice, channel, -g.padding[1], -g.padding[2]};
        if (in_place) {
          add_tiles<width>(tiles, from, from + until - i, false, out, in, g.border, own, points, memory);
          continue;
        }
        for_each_piece(tiles, from * step, (from + until - i) * step, piece_tiles, [&](const Piece& piece, int64_t) {
          const Tiles here = piece.tiles(tiles);
          add_tiles<width>(here, 0, here.total(), true, copy_piece<kOut>(piece, out, Border::kZeros, width, grad_copy),
                           copy_piece<kIn>(piece, in, g.border, width, in_copy), g.border, own, points, memory);
        });
      }
    }
  });

  // Add up the chunks, in order, and come back from points to taps: each output channel meets its group's inputs.
  parallel_for(0, g.out_channels, 64, [&](int64_t first, int64_t last) {
    for (int64_t k = first; k < last; ++k) {
      const int64_t row = k % width, group = row / channels * channels;
      for (int64_t c = 0; c < channels; c += kLanes<T>) {
        const T* from = sums + k / width * block_sums + row * width + group + c;
        write_taps<S>(grad_weight, 0, k, c, std::min<int64_t>(kLanes<T>, channels - c),
                      [&](int64_t p) __attribute__((always_inline)) {
                        Vec<T> sum = load(from + p * point_sums);
                        for (int64_t chunk = 1; chunk < chunks; ++chunk) {
                          sum += load(from + chunk * blocks * block_sums + p * point_sums);
                        }
                        return sum;
                      });
      }
    }
  });
}

template <class S>
void weight_grad(const ConvGeometry& g, Images<const S> grad, Images<const S> input, Filters<S> grad_weight) {
  if (g.groups == 1 && g.in_channels * static_cast<int64_t>(sizeof(Wide<S>)) > kDenseBytes) {
    return winograd_weight_grad<S>(g, grad, input, grad_weight);  // has more tiles in a block
  }
  with_width<Wide<S>>(g.group_in(), [&](auto width, auto) { weight_grad<width>(g, grad, input, grad_weight); });
}

}  // namespace

SCRATCHNN_REGISTER_KERNEL(narrow_winograd_weight_grad<float>, &weight_grad<float>);
SCRATCHNN_REGISTER_KERNEL(narrow_winograd_weight_grad<double>, &weight_grad<double>);
SCRATCHNN_REGISTER_KERNEL(narrow_winograd_weight_grad<BFloat16>, &weight_grad<BFloat16>);
SCRATCHNN_REGISTER_KERNEL(narrow_winograd_weight_grad<Half>, &weight_grad<Half>);

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

// The weight gradient of a 3x3 convolution of stride 1 by the exact adjoint of Winograd's F(4x4, 3x3):
//
//   dw = G^T [ sum over tiles of (A dY A^T) . (B^T x B) ] G
//
// Tiles of input and of gradient go to points, each point's sum over tiles is a matrix product, and only the sums
// come back. The tiles are cut into chunks, a fixed number whatever the number of threads, whose sums are added up
// in order.
#include <algorithm>

#include "conv/cpu/winograd_tiles.h"
#include "conv/kernels.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {
namespace {

using namespace winograd;

constexpr int64_t kBlockTiles = 96;     // transformed at a time
constexpr int64_t kChunkTiles = 192;    // a chunk is worth its sums from here on
constexpr int64_t kTasks = 16;          // chunks x blocks of output channels, at most
constexpr int64_t kBlockChannels = 64;  // output channels of a task, at least
constexpr int64_t kPlanePad = 16;

template <class S>
void input_to_points(const Tiles& tiles, int64_t first, int64_t last, const ConvGeometry& g,
                     const Images<const S>& input, const Points<Wide<S>>& points, Wide<S>* memory) {
  using T = Wide<S>;
  transform_tiles<kIn>(tiles, first, last, input, g.border, -g.padding[1], -g.padding[2], 0, g.in_channels, points,
                       memory, [](const auto& x, auto& v) __attribute__((always_inline)) { input_transform<T>(x, v); });
}

template <class S>
void grad_to_points(const Tiles& tiles, int64_t first, int64_t last, const Images<const S>& grad, int64_t channel,
                    int64_t channels, const Points<Wide<S>>& points, Wide<S>* memory) {
  using T = Wide<S>;
  transform_tiles<kOut>(tiles, first, last, grad, Border::kZeros, 0, 0, channel, channels, points, memory,
                        [](const auto& y, auto& m)
                            __attribute__((always_inline)) { output_transform_adjoint<T>(y, m); });
}

// From the sums of one output channel and kLanes input channels, a function of the point, to the gradients of its taps.
template <class S, class Sum>
SCRATCHNN_INLINE void write_taps(const Filters<S>& grad_weight, int64_t k, int64_t c, const Sum& sum) {
  using T = Wide<S>;
  Vec<T> half[kIn][kTaps];
  for (int j = 0; j < kIn; ++j) {
    Vec<T> column[kIn];
    for (int i = 0; i < kIn; ++i) column[i] = sum(i * kIn + j);
    filter_transform_adjoint<T>(column, half[j]);
  }
  for (int i = 0; i < kTaps; ++i) {
    Vec<T> row[kIn], taps[kTaps];
    for (int j = 0; j < kIn; ++j) row[j] = half[j][i];
    filter_transform_adjoint<T>(row, taps);
    for (int j = 0; j < kTaps; ++j) {
      S* to = grad_weight.data + k * grad_weight.out_stride + (i * kTaps + j) * grad_weight.tap_stride +
              c * grad_weight.in_stride;
      if (grad_weight.in_stride == 1) {
        write(to, taps[j]);
      } else {
        for (int lane = 0; lane < kLanes<T>; ++lane) write_one(to + lane * grad_weight.in_stride, taps[j][lane]);
      }
    }
  }
}

// sums[r][c] += sum over tiles t of grad[t][r] in[t][c], for a panel of kTileColumns output and input channels each.
template <class T>
SCRATCHNN_INLINE void multiply_panels(const T* grad, const T* in, const int64_t* offsets, int64_t count, T* sums,
                                      int64_t sums_stride) {
  constexpr int64_t columns = kTileColumns<T>;
  for_each_tile(columns, [&](int64_t r, int64_t rows) {
    with_rows(rows, [&](auto n) {
      accumulate_outer_products<n, T>(grad + r, columns, in, offsets, count, sums + r * sums_stride, sums_stride);
    });
  });
}

// Chunk by chunk of tiles, with sums for all of the weights' points each.
template <class S>
void weight_grad_in_chunks(const ConvGeometry& g, Images<const S> grad, Images<const S> input, Filters<S> grad_weight) {
  using T = Wide<S>;
  constexpr int64_t columns = kTileColumns<T>;  // channels lie in panels of as many
  const Tiles tiles{g.batch, g.output[1], g.output[2]};
  const int64_t blocks = std::max<int64_t>(1, g.out_channels / (2 * kBlockChannels));
  const int64_t chunks = std::clamp<int64_t>(std::min(kTasks / blocks, tiles.total() / kChunkTiles), 1, kTasks);
  const int64_t block_channels = round_up((g.out_channels + blocks - 1) / blocks, columns);

  // sums[chunk][point][k][c]
  const int64_t plane = g.out_channels * g.in_channels;
  T* sums = scratch<T>(chunks * kPoints * plane, Scratch::kCall);

  const int64_t steps = std::max<int64_t>(1, (tiles.total() / chunks + kBlockTiles - 1) / kBlockTiles);
  const int64_t most = std::max<int64_t>(1, (tiles.total() / chunks + 1 + steps - 1) / steps);
  const int64_t panel = most * columns;  // kTileColumns channels of all tiles
  const int64_t in_plane = panel * (g.in_channels / columns) + kPlanePad;
  const int64_t grad_plane = panel * (block_channels / columns) + kPlanePad;
  const int64_t in_memory = round_up(tile_memory<kIn>(input, g.in_channels, most), 16);
  const int64_t grad_memory = round_up(tile_memory<kOut>(grad, block_channels, most), 16);

  parallel_for(0, chunks * blocks, 1, [&](int64_t begin, int64_t end) {
    T* in_points = scratch<T>(kPoints * (in_plane + grad_plane) + in_memory + grad_memory + 2 * most + 16);
    T* grad_points = in_points + kPoints * in_plane;
    T* in_scratch = grad_points + kPoints * grad_plane;
    T* grad_scratch = in_scratch + in_memory;
    int64_t* offsets = reinterpret_cast<int64_t*>(grad_scratch + grad_memory);
    for (int64_t t = 0; t < most; ++t) offsets[t] = t * columns;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t chunk = task / blocks, block = task % blocks;
      const int64_t first_k = std::min(g.out_channels, block * block_channels);
      const int64_t k_count = std::min(block_channels, g.out_channels - first_k);
      const int64_t first = tiles.total() * chunk / chunks, last = tiles.total() * (chunk + 1) / chunks;
      T* own = sums + chunk * kPoints * plane;
      for (int64_t p = 0; p < kPoints; ++p) {
        T* block_sums = own + p * plane + first_k * g.in_channels;
        std::fill(block_sums, block_sums + k_count * g.in_channels, T(0));
      }
      for (int64_t t = first; t < last; t += most) {
        const int64_t until = std::min(last, t + most);
        input_to_points(tiles, t, until, g, input, Points<T>{in_points, in_plane, columns, columns, panel}, in_scratch);
        grad_to_points(tiles, t, until, grad, first_k, k_count,
                       Points<T>{grad_points, grad_plane, columns, columns, panel}, grad_scratch);
        for (int64_t p = 0; p < kPoints; ++p) {
          for (int64_t k = 0; k < k_count; k += columns) {
            const T* a = grad_points + p * grad_plane + k / columns * panel;
            T* row = own + p * plane + (first_k + k) * g.in_channels;
            for (int64_t c = 0; c < g.in_channels; c += columns) {
              const T* b = in_points + p * in_plane + c / columns * panel;
              multiply_panels(a, b, offsets, until - t, row + c, g.in_channels);
            }
          }
        }
      }
    }
  });

  // Add up the chunks, in order, and come back from points to taps.
  parallel_for(0, g.out_channels, 1 + 2048 / g.in_channels, [&](int64_t first, int64_t last) {
    for (int64_t k = first; k < last; ++k) {
      for (int64_t c = 0; c < g.in_channels; c += kLanes<T>) {
        const T* from = sums + k * g.in_channels + c;
        write_taps<S>(grad_weight, k, c, [&](int64_t p) __attribute__((always_inline)) {
          Vec<T> sum = load(from + p * plane);
          for (int64_t chunk = 1; chunk < chunks; ++chunk) sum += load(from + (chunk * kPoints + p) * plane);
          return sum;
        });
      }
    }
  });
}

// Panel by panel of output and input channels, where the sums of all weights' points would not stay in the cache. The
// points of many tiles are shared instead, and a pair of panels' sums go straight back to taps; only where the tiles
// come in several rounds do they wait in memory.
template <class S>
void weight_grad_in_panels(const ConvGeometry& g, Images<const S> grad, Images<const S> input, Filters<S> grad_weight) {
  using T = Wide<S>;
  constexpr int64_t columns = kTileColumns<T>, panel_sums = kPoints * columns * columns;
  const Tiles tiles{g.batch, g.output[1], g.output[2]};
  const int64_t in_panels = g.in_channels / columns, pairs = in_panels * (g.out_channels / columns);
  const int64_t tile_bytes = kPoints * (g.in_channels + g.out_channels) * static_cast<int64_t>(sizeof(T));
  const int64_t rounds = std::max<int64_t>(1, (tiles.total() * tile_bytes + kSharedBytes - 1) / kSharedBytes);
  const int64_t most = std::max<int64_t>(1, (tiles.total() + rounds - 1) / rounds);
  const int64_t panel = most * columns;
  const int64_t in_plane = panel * in_panels + kPlanePad, grad_plane = panel * (g.out_channels / columns) + kPlanePad;
  const int64_t in_memory = round_up(tile_memory<kIn>(input, g.in_channels, most), 16);
  const int64_t grad_memory = round_up(tile_memory<kOut>(grad, g.out_channels, most), 16);

  const int64_t waiting = rounds > 1 ? pairs * panel_sums : 0;
  T* in_points = scratch<T>(kPoints * (in_plane + grad_plane) + waiting + 2 * most + 16, Scratch::kCall);
  T* grad_points = in_points + kPoints * in_plane;
  T* sums = grad_points + kPoints * grad_plane;
  int64_t* offsets = reinterpret_cast<int64_t*>(sums + waiting);
  for (int64_t t = 0; t < most; ++t) offsets[t] = t * columns;
  for (int64_t round = 0; round < rounds; ++round) {
    const int64_t first = tiles.total() * round / rounds, last = tiles.total() * (round + 1) / rounds;
    parallel_for(first, last, 1, [&](int64_t begin, int64_t end) {
      T* memory = scratch<T>(in_memory + grad_memory);
      const int64_t to = (begin - first) * columns;
      input_to_points(tiles, begin, end, g, input, Points<T>{in_points + to, in_plane, columns, columns, panel},
                      memory);
      grad_to_points(tiles, begin, end, grad, 0, g.out_channels,
                     Points<T>{grad_points + to, grad_plane, columns, columns, panel}, memory + in_memory);
    });
    parallel_for(0, pairs, 1, [&](int64_t begin, int64_t end) {
      T* here = scratch<T>(panel_sums);
      for (int64_t pair = begin; pair < end; ++pair) {
        const int64_t k = pair / in_panels, c = pair % in_panels;
        T* own = rounds > 1 ? sums + pair * panel_sums : here;
        if (round == 0) std::fill_n(own, panel_sums, T(0));
        for (int64_t p = 0; p < kPoints; ++p) {
          multiply_panels(grad_points + p * grad_plane + k * panel, in_points + p * in_plane + c * panel, offsets,
                          last - first, own + p * columns * columns, columns);
        }
        if (round + 1 < rounds) continue;
        for (int64_t r = 0; r < columns; ++r) {
          for (int64_t lane = 0; lane < columns; lane += kLanes<T>) {
            const T* from = own + r * columns + lane;
            write_taps<S>(grad_weight, k * columns + r, c * columns + lane,
                          [&](int64_t p) __attribute__((always_inline)) { return load(from + p * columns * columns); });
          }
        }
      }
    });
  }
}

template <class S>
void weight_grad(const ConvGeometry& g, Images<const S> grad, Images<const S> input, Filters<S> grad_weight) {
  const int64_t sums = kPoints * g.in_channels * g.out_channels;
  if (sums * static_cast<int64_t>(sizeof(Wide<S>)) <= kSharedBytes) {
    weight_grad_in_chunks(g, grad, input, grad_weight);
  } else {
    weight_grad_in_panels(g, grad, input, grad_weight);
  }
}

}  // namespace

SCRATCHNN_REGISTER_KERNEL(winograd_weight_grad<float>, &weight_grad<float>);
SCRATCHNN_REGISTER_KERNEL(winograd_weight_grad<double>, &weight_grad<double>);
SCRATCHNN_REGISTER_KERNEL(winograd_weight_grad<BFloat16>, &weight_grad<BFloat16>);
SCRATCHNN_REGISTER_KERNEL(winograd_weight_grad<Half>, &weight_grad<Half>);

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

// The weight gradient of a 3x3 convolution of stride 1, in 3d of any depth, by the exact adjoint of Winograd's
// F(4x4, 3x3):
//
//   dw = G^T [ sum over tiles of (A dY A^T) . (B^T x B) ] G
//
// Tiles of input and of gradient go to points, each point's sum over tiles is a matrix product, and only the sums
// come back. Each depth tap has sums of its own, over the pairs of slices that it connects. The tiles are cut into
// chunks, a fixed number whatever the number of threads, whose sums are added up in order.
#include <algorithm>

#include "conv/cpu/winograd_filters.h"
#include "conv/cpu/winograd_tiles.h"
#include "conv/kernels.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {
namespace {

using namespace winograd;

constexpr int64_t kBlockTiles = 48;   // transformed at a time, twice as many for several depth taps' sums
constexpr int64_t kChunkTiles = 192;  // a chunk is worth its sums from here on
constexpr int64_t kChunks = 4;        // as few sums as can be: more threads share output channels out as well
constexpr int64_t kMostChunks = 16;   // where more than kMostTiles would be in one: sums of sums are more exact
constexpr int64_t kMostTiles = 6144;
constexpr int64_t kSumBytes = 4 << 20;  // of all weights' points: more are computed block by block
constexpr int64_t kBlockPanels = 2;     // panels of output and of input channels in a block
constexpr int64_t kPlanePad = 16;

Depth depth_of(const ConvGeometry& g) {
  return {g.kernel[0], -g.padding[0], g.input[0], g.border};
}

// The pixels of flat channels-last images that belong to the tiles [first, last), asked of memory in as many steps: as
// many rows below those that the tiles have.
template <class S>
Upcoming upcoming_pixels(const Tiles& tiles, int64_t first, int64_t last, const Images<const S>& images, int64_t below,
                         int64_t steps) {
  if (!images.channels_last || images.size[0] != 1 || first >= last) return {};
  const int64_t columns = tiles.columns(), of_image = tiles.rows() * columns;
  const auto pixel = [&](int64_t t) {  // rows of tiles are taken as rows of pixels
    return t / of_image * images.pixels() + (t % of_image * kOut / columns + below) * images.size[2];
  };
  const int64_t from = pixel(first);
  return {images.data + from * images.channels, (pixel(last) - from) * images.channels, steps};
}

// The tiles [first, last) of input slice `slice`, or the border's, to points.
template <class S>
void input_to_points(const Tiles& tiles, int64_t first, int64_t last, int64_t slice, const ConvGeometry& g,
                     const Images<const S>& input, const Points<Wide<S>>& points, Wide<S>* memory) {
  using T = Wide<S>;
  const Pixels<const S> in{input, border_pixel(slice, g.input[0], g.border), 0, -g.padding[1], -g.padding[2]};
  transform_any_tiles<kIn>(tiles, first, last, in, g.border, g.in_channels, points, memory,
                           [](const auto& x, auto& v) __attribute__((always_inline)) { input_transform<T>(x, v); });
}

template <class S>
void grad_to_points(const Tiles& tiles, int64_t first, int64_t last, int64_t slice, const Images<const S>& grad,
                    int64_t channel, int64_t channels, const Points<Wide<S>>& points, Wide<S>* memory) {
  using T = Wide<S>;
  transform_any_tiles<kOut>(
      tiles, first, last, Pixels<const S>{grad, slice, channel}, Border::kZeros, channels, points, memory,
      [](const auto& y, auto& m) __attribute__((always_inline)) { output_transform_adjoint<T>(y, m); });
}

// sums[r][c] += sum over tiles t of grad[t][r] in[t][c], for `outputs` of a panel of output channels and `inputs` of
// one of input channels, at most kTileColumns each.
template <class T>
SCRATCHNN_INLINE void multiply_panels(const T* grad, int64_t outputs, const T* in, int64_t inputs,
                                      const int64_t* offsets, int64_t count, T* sums, int64_t sums_stride,
                                      Upcoming& upcoming) {
  for_each_tile(outputs, [&](int64_t r, int64_t rows) {
    with_rows(rows, [&](auto n) {
      accumulate_outer_products<n, T>(grad + r, kTileColumns<T>, in, offsets, count, inputs, sums + r * sums_stride,
                                      sums_stride, upcoming);
    });
  });
}

// The same for every depth tap: its sums are tap_sums apart, and its tiles those of the output slices that it gives to
// and of the input slices that it reads, `tiles` of each.
template <class T>
void multiply_slices(const Depth& depth, const Range& slices, int64_t tiles, const T* grad, int64_t outputs,
                     const T* in, int64_t inputs, const int64_t* offsets, T* sums, int64_t sums_stride,
                     int64_t tap_sums, Upcoming& upcoming) {
  const int64_t slice_size = tiles * kTileColumns<T>, first_read = depth.read_by(slices).first;
  for (int64_t j = 0; j < depth.taps; ++j) {
    const Range given = depth.outputs_of(j, slices);
    if (given.count() == 0) continue;
    multiply_panels(grad + (given.first - slices.first) * slice_size, outputs,
                    in + (depth.first + given.first + j - first_read) * slice_size, inputs, offsets,
                    given.count() * tiles, sums + j * tap_sums, sums_stride, upcoming);
  }
}

// Chunk by chunk of tiles, with sums for all of the weights' points each.
template <class S>
void weight_grad_in_chunks(const ConvGeometry& g, Images<const S> grad, Images<const S> input, Filters<S> grad_weight) {
  using T = Wide<S>;
  constexpr int64_t columns = kTileColumns<T>;  // channels lie in panels of as many
  const Tiles tiles{g.batch, g.output};
  const Depth depth = depth_of(g);
  const int64_t total = tiles.total() * tiles.size[0];
  const int64_t chunks =
      std::clamp(total / kMostTiles, std::clamp<int64_t>(total / kChunkTiles, 1, kChunks), kMostChunks);
  const int64_t panels = (g.out_channels + columns - 1) / columns;
  const int64_t shares = std::clamp<int64_t>((thread_count() + chunks - 1) / chunks, 1, panels);
  const int64_t block_channels = (panels + shares - 1) / shares * columns;
  const int64_t blocks = (g.out_channels + block_channels - 1) / block_channels;

  // sums[chunk][depth tap][point][k][c]
  const int64_t sums_stride = round_up(g.in_channels, columns), plane = g.out_channels * sums_stride;
  const int64_t tap_sums = kPoints * plane, chunk_sums = depth.taps * tap_sums;
  T* sums = scratch<T>(chunks * chunk_sums, Scratch::kCall);

  // A stack is one tile in each of a run's slices. Chunks are cut into steps of some stacks side by side.
  const int64_t block_tiles = depth.taps > 1 ? 2 * kBlockTiles : kBlockTiles;
  const int64_t runs = depth_runs(tiles, depth.taps, block_tiles), stacks = tiles.total() * runs;
  const int64_t most_slices = (tiles.size[0] + runs - 1) / runs;
  const int64_t steps = std::max<int64_t>(1, (stacks / chunks * most_slices + block_tiles - 1) / block_tiles);
  const int64_t most = std::max<int64_t>(1, (stacks / chunks + 1 + steps - 1) / steps);
  const int64_t in_panel = depth.most_read(most_slices) * most * columns;  // kTileColumns channels of all tiles
  const int64_t grad_panel = most_slices * most * columns;
  const int64_t in_plane = in_panel * (sums_stride / columns) + kPlanePad;
  const int64_t grad_plane = grad_panel * (block_channels / columns) + kPlanePad;
  const int64_t in_memory = round_up(tile_memory<kIn>(tiles, input, g.in_channels), 16);
  const int64_t grad_memory = round_up(tile_memory<kOut>(tiles, grad, block_channels), 16);

  parallel_for(0, chunks * blocks, 1, [&](int64_t begin, int64_t end) {
    T* in_points =
        scratch<T>(kPoints * (in_plane + grad_plane) + in_memory + grad_memory + 2 * most_slices * most + 16);
    T* grad_points = in_points + kPoints * in_plane;
    T* in_scratch = grad_points + kPoints * grad_plane;
    T* grad_scratch = in_scratch + in_memory;
    int64_t* offsets = reinterpret_cast<int64_t*>(grad_scratch + grad_memory);
    for (int64_t t = 0; t < most_slices * most; ++t) offsets[t] = t * columns;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t chunk = task / blocks, block = task % blocks;
      const int64_t first_k = block * block_channels;
      const int64_t k_count = std::min(block_channels, g.out_channels - first_k);
      const int64_t first = stacks * chunk / chunks, last = stacks * (chunk + 1) / chunks;
      T* own = sums + chunk * chunk_sums;
      for (int64_t p = 0; p < depth.taps * kPoints; ++p) {
        T* block_sums = own + p * plane + first_k * sums_stride;
        std::fill(block_sums, block_sums + k_count * sums_stride, T(0));
      }
      for (int64_t stack = first, until; stack < last; stack = until) {
        const int64_t run = stack / tiles.total(), t = stack % tiles.total();
        until = std::min({last, stack + most, (run + 1) * tiles.total()});
        const int64_t count = until - stack;
        const Range slices = depth_run(tiles, run, runs), read = depth.read_by(slices);
        for (int64_t d = read.first; d < read.last; ++d) {
          const int64_t to = (d - read.first) * count * columns;
          input_to_points(tiles, t, t + count, d, g, input,
                          Points<T>{in_points + to, in_plane, columns, columns, in_panel}, in_scratch);
        }
        for (int64_t d = slices.first; d < slices.last; ++d) {
          const int64_t to = (d - slices.first) * count * columns;
          grad_to_points(tiles, t, t + count, d, grad, first_k, k_count,
                         Points<T>{grad_points + to, grad_plane, columns, columns, grad_panel}, grad_scratch);
        }
        // The next tiles are asked of memory meanwhile: first the input's, then, for the other half of points, dy's.
        const int64_t next = std::min(tiles.total(), t + count + most);
        const int64_t half_steps =
            kPoints / 2 * (k_count + kTileRows - 1) / kTileRows * (sums_stride / columns) * count;
        Upcoming upcoming = upcoming_pixels(tiles, t + count, next, input, kOut - g.padding[1], half_steps);
        for (int64_t p = 0; p < kPoints; ++p) {
          if (p == kPoints / 2) upcoming = upcoming_pixels(tiles, t + count, next, grad, 0, half_steps);
          for (int64_t k = 0; k < k_count; k += columns) {
            const T* a = grad_points + p * grad_plane + k / columns * grad_panel;
            T* row = own + p * plane + (first_k + k) * sums_stride;
            for (int64_t c = 0; c < g.in_channels; c += columns) {
              const T* b = in_points + p * in_plane + c / columns * in_panel;
              multiply_slices(depth, slices, count, a, std::min(columns, k_count - k), b, g.in_channels - c, offsets,
                              row + c, sums_stride, tap_sums, upcoming);
            }
          }
        }
      }
    }
  });

  // Add up the chunks, in order, and come back from points to taps.
  parallel_for(0, depth.taps * g.out_channels, 1 + 2048 / g.in_channels, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t tap = i / g.out_channels, k = i % g.out_channels;
      for (int64_t c = 0; c < g.in_channels; c += kLanes<T>) {
        const T* from = sums + tap * tap_sums + k * sums_stride + c;
        write_taps<S>(grad_weight, tap, k, c, kLanes<T>, [&](int64_t p) __attribute__((always_inline)) {
          Vec<T> sum = load(from + p * plane);
          for (int64_t chunk = 1; chunk < chunks; ++chunk) sum += load(from + chunk * chunk_sums + p * plane);
          return sum;
        });
      }
    }
  });
}

// Block by block of output and input channels, where the sums of all weights' points would not stay in the cache. The
// points of many tiles are shared instead, and a block's sums go straight back to taps; only where the tiles come in
// several rounds do they wait in memory. A round has as many bytes of points as there are sums to wait, at least.
template <class S>
void weight_grad_in_blocks(const ConvGeometry& g, Images<const S> grad, Images<const S> input, Filters<S> grad_weight) {
  using T = Wide<S>;
  constexpr int64_t columns = kTileColumns<T>, width = kBlockPanels * columns, point_sums = width * width;
  const Tiles tiles{g.batch, g.output};
  const Depth depth = depth_of(g);
  const int64_t block_sums = depth.taps * kPoints * point_sums;
  const int64_t in_panels = (g.in_channels + columns - 1) / columns, in_blocks = (g.in_channels + width - 1) / width;
  const int64_t grad_panels = (g.out_channels + columns - 1) / columns;
  const int64_t blocks = in_blocks * ((g.out_channels + width - 1) / width);
  const int64_t in_bytes = kPoints * g.in_channels * static_cast<int64_t>(sizeof(T));  // of a tile
  const int64_t grad_bytes = kPoints * g.out_channels * static_cast<int64_t>(sizeof(T));
  const int64_t round_bytes = std::max(kSharedBytes, blocks * block_sums * static_cast<int64_t>(sizeof(T)));
  const int64_t runs = depth_runs(tiles, depth.taps, std::max<int64_t>(1, round_bytes / (in_bytes + grad_bytes)));
  const int64_t most_slices = (tiles.size[0] + runs - 1) / runs, most_read = depth.most_read(most_slices);
  const int64_t stack_bytes = most_read * in_bytes + most_slices * grad_bytes;  // of a tile in each of a run's slices
  const int64_t cuts = std::max<int64_t>(
      1, std::min(tiles.total(), (tiles.total() * stack_bytes + round_bytes - 1) / round_bytes));  // of each run
  const int64_t rounds = cuts * runs;
  const int64_t most = std::max<int64_t>(1, (tiles.total() + cuts - 1) / cuts);
  const int64_t in_panel = most_read * most * columns, grad_panel = most_slices * most * columns;
  const int64_t in_plane = in_panel * in_panels + kPlanePad, grad_plane = grad_panel * grad_panels + kPlanePad;
  const int64_t in_memory = round_up(tile_memory<kIn>(tiles, input, g.in_channels), 16);
  const int64_t grad_memory = round_up(tile_memory<kOut>(tiles, grad, g.out_channels), 16);

  const int64_t waiting = rounds > 1 ? blocks * block_sums : 0;
  T* in_points = scratch<T>(kPoints * (in_plane + grad_plane) + waiting + 2 * most_slices * most + 16, Scratch::kCall);
  T* grad_points = in_points + kPoints * in_plane;
  T* sums = grad_points + kPoints * grad_plane;
  int64_t* offsets = reinterpret_cast<int64_t*>(sums + waiting);
  for (int64_t t = 0; t < most_slices * most; ++t) offsets[t] = t * columns;
  for (int64_t round = 0; round < rounds; ++round) {
    const int64_t cut = round % cuts, first = tiles.total() * cut / cuts;
    const int64_t count = tiles.total() * (cut + 1) / cuts - first;
    const Range slices = depth_run(tiles, round / cuts, runs), read = depth.read_by(slices);
    parallel_for(0, count * (read.count() + slices.count()), 1, [&](int64_t begin, int64_t end) {
      T* memory = scratch<T>(in_memory + grad_memory);
      for (int64_t i = begin, until; i < end; i = until) {
        until = std::min(end, (i / count + 1) * count);
        const int64_t from = first + i % count, to = from + until - i, d = i / count - read.count();
        if (d < 0) {
          input_to_points(tiles, from, to, read.last + d, g, input,
                          Points<T>{in_points + i * columns, in_plane, columns, columns, in_panel}, memory);
        } else {
          grad_to_points(
              tiles, from, to, slices.first + d, grad, 0, g.out_channels,
              Points<T>{grad_points + (i - read.count() * count) * columns, grad_plane, columns, columns, grad_panel},
              memory + in_memory);
        }
      }
    });
    parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
      T* here = scratch<T>(block_sums);
      for (int64_t block = begin; block < end; ++block) {
        const int64_t first_k = block / in_blocks * width, first_c = block % in_blocks * width;
        const int64_t outputs = std::min(width, g.out_channels - first_k);
        const int64_t inputs = std::min(width, g.in_channels - first_c);
        T* own = rounds > 1 ? sums + block * block_sums : here;
        if (round == 0) std::fill_n(own, block_sums, T(0));
        const T* a = grad_points + first_k / columns * grad_panel;
        const T* b = in_points + first_c / columns * in_panel;
        for (int64_t p = 0; p < kPoints; ++p, a += grad_plane, b += in_plane) {
          for (int64_t k = 0; k < outputs; k += columns) {
            for (int64_t c = 0; c < inputs; c += columns) {
              // The panel of the next point that will be needed first among those not asked for yet.
              const bool asks_grad = c > 0;
              const T* next =
                  asks_grad ? a + grad_plane + k / columns * grad_panel : b + in_plane + k / columns * in_panel;
              const int64_t steps = (columns + kTileRows - 1) / kTileRows * slices.count() * count;
              Upcoming upcoming(next, asks_grad ? grad_panel : in_panel, steps);
              multiply_slices(depth, slices, count, a + k / columns * grad_panel, std::min(columns, outputs - k),
                              b + c / columns * in_panel, inputs - c, offsets, own + p * point_sums + k * width + c,
                              width, kPoints * point_sums, upcoming);
            }
          }
        }
        if (round + 1 < rounds) continue;
        for (int64_t i = 0; i < depth.taps * outputs; ++i) {
          const int64_t tap = i / outputs, r = i % outputs;
          for (int64_t c = 0; c < inputs; c += kLanes<T>) {
            const T* from = own + tap * kPoints * point_sums + r * width + c;
            write_taps<S>(grad_weight, tap, first_k + r, first_c + c, kLanes<T>,
                          [&](int64_t p) __attribute__((always_inline)) { return load(from + p * point_sums); });
          }
        }
      }
    });
  }
}

template <class S>
void weight_grad(const ConvGeometry& g, Images<const S> grad, Images<const S> input, Filters<S> grad_weight) {
  const int64_t sums = kPoints * g.kernel[0] * g.in_channels * g.out_channels;
  if (sums * static_cast<int64_t>(sizeof(Wide<S>)) <= kSumBytes) {
    weight_grad_in_chunks(g, grad, input, grad_weight);
  } else {
    weight_grad_in_blocks(g, grad, input, grad_weight);
  }
}

}  // namespace

SCRATCHNN_REGISTER_KERNEL(winograd_weight_grad<float>, &weight_grad<float>);
SCRATCHNN_REGISTER_KERNEL(winograd_weight_grad<double>, &weight_grad<double>);
SCRATCHNN_REGISTER_KERNEL(winograd_weight_grad<BFloat16>, &weight_grad<BFloat16>);
SCRATCHNN_REGISTER_KERNEL(winograd_weight_grad<Half>, &weight_grad<Half>);

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

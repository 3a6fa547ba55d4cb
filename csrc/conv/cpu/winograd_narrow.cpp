// 3x3 convolutions of stride 1 of few channels by Winograd's F(4x4, 3x3) (winograd_narrow.h): forward pass and input
// gradient, which is the same computation with the filters turned round.
#include "conv/cpu/winograd_narrow.h"

#include <algorithm>

#include "conv/cpu/winograd_filters.h"
#include "conv/kernels.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {
namespace {

using namespace winograd;

constexpr int64_t kTiles = 12;              // of a block: the rows of a tile of products
constexpr int64_t kFewTiles = kTiles / 2;   // of a block that has no more: half of the products
constexpr int64_t kRunTiles = 32 * kTiles;  // of a task, at most

// Of a group's sums, the products that are summed up at a time: as where there are more channels (gemm.h).
template <int64_t group>
constexpr int64_t kRun = std::min(group, kPointsInTile);

// Number c of each group's numbers in all of the group's lanes.
template <int64_t group, int64_t c, class T, int... i>
SCRATCHNN_INLINE Vec<T> spread_in_groups(Vec<T> v, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(v, v, (i / group * group + c)...);
}

// The products of a point that are summed in registers together: rows x vectors of them.
template <int64_t width, int64_t tiles, class T>
struct ProductTile {
  static constexpr int vectors = width == kLanes<T> ? 1 : 2;
  static constexpr int rows = std::min(static_cast<int>(tiles), vectors == 1 ? static_cast<int>(kTiles) : kTileRows);
  static constexpr int64_t count = tiles / rows * (width / (vectors * kLanes<T>));  // for each point
};

// products = points filters, for one point of the first `tiles` of a block. Products may be written over other points.
// A row of filters is those of one number of the sum: of several groups that fill a vector, side by side. ask() is
// called before each ProductTile.
template <int64_t width, int64_t group, int64_t tiles, class T, class Ask>
SCRATCHNN_INLINE void multiply_point(const T* points, const T* filters, T* products, const Ask& ask) {
  using Tile = ProductTile<width, tiles, T>;
  constexpr int lanes = kLanes<T>, vectors = Tile::vectors, rows = Tile::rows;
  static_assert(tiles % rows == 0 && width % (vectors * lanes) == 0);
  for (int64_t k = 0; k < width; k += vectors * lanes) {
    for (int64_t t = 0; t < tiles; t += rows) {
      ask();
      for (int64_t first = 0; first < group; first += kRun<group>) {
        Vec<T> sums[rows][vectors];
#pragma GCC unroll 12
        for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 2
          for (int v = 0; v < vectors; ++v) sums[r][v] = Vec<T>{};
        }
        const auto step = [&](auto c) __attribute__((always_inline)) {
          Vec<T> column[vectors];
#pragma GCC unroll 2
          for (int v = 0; v < vectors; ++v) {
            column[v] = load(filters + c * width + k + v * lanes);
            SCRATCHNN_KEEP_IN_REGISTER(column[v]);
          }
#pragma GCC unroll 12
          for (int r = 0; r < rows; ++r) {
            const T* row = points + (t + r) * width;
            Vec<T> x;
            if constexpr (group < width) {
              x = spread_in_groups<group, c, T>(load(row), std::make_integer_sequence<int, lanes>());
            } else {
              x = broadcast(row[c]);
              if constexpr (vectors > 1) SCRATCHNN_KEEP_IN_REGISTER(x);
            }
#pragma GCC unroll 2
            for (int v = 0; v < vectors; ++v) sums[r][v] = fma(x, column[v], sums[r][v]);
          }
        };
        if constexpr (group < width) {
          [&]<int64_t... c>(std::integer_sequence<int64_t, c...>) __attribute__((always_inline)) {
            (step(std::integral_constant<int64_t, c>()), ...);
          }(std::make_integer_sequence<int64_t, group>());
        } else {
#pragma GCC unroll 4
          for (int64_t c = first; c < first + kRun<group>; ++c) step(c);
        }
#pragma GCC unroll 12
        for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 2
          for (int v = 0; v < vectors; ++v) {
            T* to = products + (t + r) * width + k + v * lanes;
            store(to, first > 0 ? load(to) + sums[r][v] : sums[r][v]);
          }
        }
      }
    }
  }
}

// out = in (*) w for 3x3 filters w of groups; the first tap reads pixel (0, top, left) of `in`, or its border, for
// output pixel (0, 0, 0).
template <class S>
struct Work {
  Operand<S> operand;
  int64_t groups;
  std::vector<Tap> taps;
  Border border;
  int64_t top, left;
  Tiles tiles;
  Images<const S> in;
  const S* bias;
  Images<S> out;
};

// The filters' points: for each block of channels and point a matrix of group x width, those of the block's groups side
// by side.
template <int64_t width, int64_t group, class S>
void write_filters(const Work<S>& w, Wide<S>* filters, Wide<S>* memory) {
  using T = Wide<S>;
  constexpr int64_t columns = kTileColumns<T>;
  const PackedWeight<T> packed = pack<T>(w.operand, w.groups, w.taps, w.bias, memory);
  parallel_for(0, w.groups * packed.panels * group, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t g = i / (packed.panels * group), panel = i / group % packed.panels, c = i % group;
      T points[kPoints * columns];
      transform_filters(packed.panel(g, panel) + c * columns, group * columns, points, columns);
      const int64_t first = panel * columns, outputs = std::min(columns, group - first);
      const int64_t block = g * group / width, column = g * group % width + first;
      for (int64_t p = 0; p < kPoints; ++p) {
        std::copy_n(points + p * columns, outputs, filters + ((block * kPoints + p) * group + c) * width + column);
      }
    }
  });
}

// The tiles [first, last) of one slice, for one block of channels: those filters, bias null for none. What tiles read
// and write is asked of memory in time, up to tile `asked`: 0 for images in the cache.
template <int64_t width, int64_t group, class S, class T>
void correlate_tiles(const Tiles& tiles, int64_t first, int64_t last, int64_t asked, const Pixels<const S>& in,
                     Border border, const T* filters, const T* bias, const Pixels<S>& out, T* products, T* memory) {
  using Points = NarrowPoints<T, width, kTiles>;
  constexpr std::integral_constant<int64_t, width> channels;
  constexpr std::integral_constant<int64_t, Points::plane> plane;
  T* points = products + Points::plane;  // each product where the point before it was
  for (int64_t t = first, until; t < last; t = until) {
    until = std::min(last, t + kTiles);
    if (until - t < kTiles) std::fill_n(points, Points::size, T(0));  // more are multiplied
    transform_tiles<kIn>(tiles, t, until, in, border, channels, Points{points}, memory,
                         [](const auto& x, auto& v) __attribute__((always_inline)) { input_transform<T>(x, v); });
    const auto multiply = [&](auto count) __attribute__((always_inline)) {
      constexpr int64_t steps = kPoints * ProductTile<width, count, T>::count;
      UpcomingTiles<S, width, kTiles> outputs(tiles, t, asked > 0 ? until : t, out, steps);
      UpcomingTiles<const S, width, kTiles, kIn, kIn - kOut> inputs(
          tiles, until, std::clamp(asked, until, until + kTiles), in, steps);
      for (int64_t p = 0; p < kPoints; ++p) {
        multiply_point<width, group, count>(points + p * Points::plane, filters + p * group * width,
                                            products + p * Points::plane, [&]() __attribute__((always_inline)) {
                                              outputs.step();
                                              inputs.step();
                                            });
      }
    };
    if (until - t > kFewTiles) {
      multiply(std::integral_constant<int64_t, kTiles>());
    } else {
      multiply(std::integral_constant<int64_t, kFewTiles>());
    }
    write_outputs<false>(tiles, t, until, products, plane, width, bias, channels, out);
  }
}

template <int64_t width, int64_t group, class S>
void correlate(const Work<S>& w) {
  using T = Wide<S>;
  const Tiles& tiles = w.tiles;
  const int64_t channels = w.out.channels, blocks = channels / width, filters_size = kPoints * group * width;
  T* filters =
      scratch<T>(blocks * filters_size + channels + packed_size(w.operand, w.groups, kTaps * kTaps), Scratch::kCall);
  T* bias = filters + blocks * filters_size;
  write_filters<width, group>(w, filters, bias + channels);
  if (w.bias != nullptr) copy_numbers(w.bias, channels, bias);

  // Enough runs of tiles for all threads: which tiles share a run never changes a result. Of contiguous images a run is
  // whole rows, so that all it writes is its own.
  const bool in_place = w.in.channels_last && w.out.channels_last;
  const int64_t piece_tiles = narrow_piece_tiles<T>(tiles, width, kTiles);
  const int64_t step = in_place ? 1 : tiles.columns(), steps = tiles.total() / step, depth = tiles.size[0];
  const int64_t wanted = std::max<int64_t>(1, 4 * thread_count() / (blocks * depth));
  const int64_t most =
      std::clamp<int64_t>(steps / wanted, 1, std::max<int64_t>(1, (in_place ? kRunTiles : piece_tiles) / step));
  const int64_t runs = std::min(steps, round_up((steps + most - 1) / most, thread_count()));
  const int64_t points = (kPoints + 1) * kTiles * width, zeros = round_up(kIn * kIn * w.in.channels, 16);
  const int64_t in_size = in_place ? 0 : round_up(piece_pixels(tiles, kIn, piece_tiles) * width, 16);
  const int64_t out_size = in_place ? 0 : piece_pixels(tiles, kOut, piece_tiles) * width;
  parallel_for(0, depth * runs * blocks, 1, [&](int64_t begin, int64_t end) {
    T* products = scratch<T>(points + zeros + in_size + out_size);
    T* memory = products + points;
    T* in_copy = memory + zeros;
    T* out_copy = in_copy + in_size;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t slice = task / (blocks * runs), run = task / blocks % runs, block = task % blocks;
      const int64_t channel = block * width, first = steps * run / runs, last = steps * (run + 1) / runs;
      const T* own_filters = filters + block * filters_size;
      const T* own_bias = w.bias != nullptr ? bias + channel : nullptr;
      const Pixels<const S> in{w.in, slice, channel, w.top, w.left};
      const Pixels<S> out{w.out, slice, channel};
      if (in_place) {
        correlate_tiles<width, group>(tiles, first, last, blocks > 1 ? last : tiles.total(), in, w.border, own_filters,
                                      own_bias, out, products, memory);
        continue;
      }
      for_each_piece(tiles, first * step, last * step, piece_tiles, [&](const Piece& piece, int64_t) {
        const Tiles own = piece.tiles(tiles);
        const Pixels<const T> own_in = copy_piece<kIn>(piece, in, w.border, width, in_copy);
        const Images<T> copy{out_copy, width, own.size, true};
        correlate_tiles<width, group>(own, 0, own.total(), 0, own_in, w.border, own_filters, own_bias,
                                      Pixels<T>{copy, 0, 0}, products, memory);
        write_piece(piece, copy, out);
      });
    }
  });
}

template <class S>
void correlate(const Work<S>& w) {
  if (w.tiles.total() * w.tiles.size[0] == 0) return;
  with_width<Wide<S>>(w.operand.sum, [&](auto width, auto group) { correlate<width, group>(w); });
}

template <class S>
void forward(const ConvGeometry& g, Images<const S> input, Filters<const S> weight, const S* bias, Images<S> output) {
  correlate<S>({forward_operand(g, weight), g.groups, forward_correlation(g).taps, g.border, -g.padding[1],
                -g.padding[2], Tiles{g.batch, output.size}, input, bias, output});
}

template <class S>
void input_grad(const ConvGeometry& g, Images<const S> grad, Filters<const S> weight, const S* bias,
                Images<S> grad_input) {
  std::vector<Tap> turned = forward_correlation(g).taps;
  std::reverse(turned.begin(), turned.end());
  correlate<S>({input_grad_operand(g, weight), g.groups, turned, Border::kZeros, g.padding[1] - (kTaps - 1),
                g.padding[2] - (kTaps - 1), Tiles{g.batch, grad_input.size}, grad, bias, grad_input});
}

}  // namespace

#define SCRATCHNN_REGISTER(S)                                         \
  SCRATCHNN_REGISTER_KERNEL(narrow_winograd_forward<S>, &forward<S>); \
  SCRATCHNN_REGISTER_KERNEL(narrow_winograd_input_grad<S>, &input_grad<S>);
SCRATCHNN_REGISTER(float)
SCRATCHNN_REGISTER(double)
SCRATCHNN_REGISTER(BFloat16)
SCRATCHNN_REGISTER(Half)
#undef SCRATCHNN_REGISTER

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

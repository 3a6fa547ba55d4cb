// 3x3 convolutions of stride 1, in 3d of any depth, by Winograd's F(4x4, 3x3): forward pass and input gradient.
//
// A quarter of the multiplications of the direct sum (see winograd_transforms.h), at about three times its
// rounding error. Block by block of tiles, small enough for the second-level cache: inputs to points, one matrix
// product for each of the 36 points, points to outputs. The input gradient is the same computation with the filters
// turned round and the roles of the channels exchanged.
#include <algorithm>

#include "conv/cpu/packed_weight.h"
#include "conv/cpu/winograd_filters.h"
#include "conv/cpu/winograd_tiles.h"
#include "conv/kernels.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {
namespace {

using namespace winograd;

constexpr int64_t kPlanePad = 16;     // keeps the planes from falling on the same cache sets
constexpr int64_t kOutChannels = 64;  // output channels whose points are in the cache at a time
constexpr int64_t kSlice = 256;       // numbers of a sum for which a panel's filters stay in the first-level cache

// In panels (see below): channels that are summed over whose filters are points at a time, and tiles whose sums are
// there, so that both stay in the second-level cache.
constexpr int64_t kPanelChannels = 128, kPanelTiles = 64;

// From so many bytes of filters' points on they are not read again for every block, as long as there are at most
// kManyTiles: to transform them again for every kPanelTiles would take longer. Beyond kSharedBytes they never are.
constexpr int64_t kFilterBytes = 4 << 20, kManyTiles = 256;

// Tiles of a block: the points of its inputs fill about half of the second-level cache, but enough tiles to use each
// loaded filter often. Several depth taps use each loaded point several times.
template <class T>
int64_t block_tiles(int64_t channels, int64_t depth_taps) {
  const int64_t tiles = channels <= 16 ? 96 : depth_taps > 1 ? 64 : 48;
  return tiles * static_cast<int64_t>(sizeof(float)) / static_cast<int64_t>(sizeof(T));
}

// out = in (*) w for filters w of 3x3 in any depth; the first tap reads pixel (depth.first, top, left) of `in`, or its
// border, for output pixel (0, 0, 0).
template <class S>
struct Work {
  Operand<S> operand;
  std::vector<Tap> taps;
  Depth depth;
  int64_t top, left;
  Images<const S> in;
  const S* bias;
  Images<S> out;
  Tiles tiles;
};

// The tiles [first, last) of an input slice to points, one channel beside the other.
template <class S>
void transform_inputs(const Work<S>& w, int64_t first, int64_t last, int64_t slice, const Points<Wide<S>>& points,
                      Wide<S>* memory) {
  using T = Wide<S>;
  const Pixels<const S> in{w.in, border_pixel(slice, w.depth.size, w.depth.border), 0, w.top, w.left};
  transform_any_tiles<kIn>(w.tiles, first, last, in, w.depth.border, w.operand.sum, points, memory,
                           [](const auto& x, auto& v) __attribute__((always_inline)) { input_transform<T>(x, v); });
}

// The sums of a block's products, in parts so small that a panel's filters stay in the first-level cache: so many of
// the numbers that are summed, for neighbouring slices of outputs that see the same depth taps.
class Sums {
 public:
  struct Part {
    int64_t first_row, rows;  // of the products
    int64_t segment, segments;
    int64_t filter;  // where the filters' numbers begin: those of a panel follow each other by depth tap and channel
    bool accumulate;
  };

  // Rows are `tiles` for each of the output slices, in_offsets where each row's reading begins in the points of the
  // input slices that read_by() tells.
  void lay_out(const Depth& depth, const Range& slices, int64_t tiles, int64_t channels, int64_t* in_offsets) {
    parts.clear();
    segments.clear();
    steps = 0;
    const int64_t slice_size = tiles * channels, first_read = depth.read_by(slices).first;
    for (int64_t d = slices.first, row = 0; d < slices.last; ++d) {
      const int64_t first = (depth.first + d + depth.taps_of(d).first - first_read) * slice_size;
      for (int64_t t = 0; t < tiles; ++t) in_offsets[row++] = first + t * channels;
    }
    for (int64_t begin = 0; begin < depth.taps * channels; begin += kSlice) {
      for (int64_t d = slices.first, next; d < slices.last; d = next) {
        const Range taps = depth.taps_of(d);
        for (next = d + 1; next < slices.last; ++next) {
          const Range others = depth.taps_of(next);
          if (others.first != taps.first || others.last != taps.last) break;
        }
        const int64_t start = taps.count() > 0 ? taps.first * channels : 0;  // a sum of nothing is zero
        const int64_t from = std::max(begin, start), end = std::min(begin + kSlice, start + taps.count() * channels);
        const bool is_first = begin <= start && start < begin + kSlice;
        if (from >= end && !is_first) continue;
        Part part{
            (d - slices.first) * tiles, (next - d) * tiles, static_cast<int64_t>(segments.size()), 0, from, !is_first};
        for (int64_t q = from; q < end;) {
          const int64_t tap = q / channels, last = std::min(end, (tap + 1) * channels);
          segments.push_back({(tap - taps.first) * slice_size + q % channels, last - q, q - from});
          q = last;
        }
        part.segments = static_cast<int64_t>(segments.size()) - part.segment;
        steps += (part.rows + kTileRows - 1) / kTileRows * std::max<int64_t>(0, end - from);
        parts.push_back(part);
      }
    }
  }

  std::vector<Part> parts;
  std::vector<Segment> segments;
  int64_t steps = 0;  // of all tiles
};

// products[p] = points[p] filters[p] for the rows of a block and one panel of `outputs` channels: a product for each
// point p. The filters' points lie one panel of `filter_plane` numbers after the other; `next` is the panel that is
// multiplied after this one, and asked of memory meanwhile.
template <class T>
void multiply_points(const Sums& sums, const T* points, int64_t in_plane, const int64_t* in_offsets, const T* filters,
                     int64_t filter_plane, const T* next, int64_t outputs, T* products, int64_t out_plane,
                     const int64_t* out_offsets, int64_t p) {
  constexpr int64_t columns = kTileColumns<T>;
  Upcoming upcoming(next, filter_plane, sums.steps);
  for (const Sums::Part& part : sums.parts) {
    for_each_tile(part.rows, [&](int64_t first, int64_t rows) {
      const int64_t row = part.first_row + first;
      with_rows(rows, [&](auto n) {
        multiply_tile<n, kPointsInTile, T, T>(
            points + p * in_plane, in_offsets + row, sums.segments.data() + part.segment, part.segments,
            filters + p * filter_plane + part.filter * columns, products + p * out_plane, out_offsets + row,
            std::min(columns, outputs), part.accumulate, nullptr, false, upcoming);
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
  const int64_t in_channels = w.operand.sum, out_channels = w.operand.out, depth_taps = w.depth.taps;
  const int64_t filters_size = kPoints * depth_taps * in_channels * round_up(out_channels, columns);
  const int64_t tap_size = in_channels * columns;                           // of a panel
  const int64_t step = depth_taps * tap_size, panel_size = kPoints * step;  // of a panel's points, one and all
  T* filters = scratch<T>(filters_size + packed_size(w.operand, 1, depth_taps * kTaps * kTaps), Scratch::kCall);
  const PackedWeight<T> packed = pack<T>(w.operand, 1, w.taps, w.bias, filters + filters_size);
  parallel_for(0, packed.panels * depth_taps * in_channels, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t panel = i / (depth_taps * in_channels), tap = i / in_channels % depth_taps;
      const int64_t row = i % in_channels * columns;
      transform_filters(packed.panel(0, panel) + tap * kTaps * kTaps * tap_size + row, tap_size,
                        filters + panel * panel_size + tap * tap_size + row, step);
    }
  });

  // As many blocks for each thread: which tiles share a block never changes a result.
  const int64_t most_tiles = block_tiles<T>(in_channels, depth_taps), runs = depth_runs(tiles, depth_taps, most_tiles);
  const int64_t most_slices = (tiles.size[0] + runs - 1) / runs;
  int64_t cuts = (tiles.total() * most_slices + most_tiles - 1) / most_tiles;  // of each run
  if (cuts * runs > 1) cuts = std::min(tiles.total(), (round_up(cuts * runs, thread_count()) + runs - 1) / runs);
  const int64_t blocks = cuts * runs;
  const int64_t most = (tiles.total() + cuts - 1) / cuts;                         // tiles of a slice
  const int64_t width = std::min(round_up(out_channels, columns), kOutChannels);  // of a chunk of output channels
  const int64_t chunks = (out_channels + width - 1) / width;
  // Fewer blocks than threads, as for a single small image: the chunks of output channels are tasks of their own.
  const int64_t splits = std::clamp<int64_t>(thread_count() / blocks, 1, chunks);
  const int64_t in_plane = w.depth.most_read(most_slices) * most * in_channels + kPlanePad;
  const int64_t most_rows = most_slices * most, out_plane = most_rows * width + kPlanePad;
  const int64_t in_memory = round_up(tile_memory<kIn>(tiles, w.in, in_channels), 16);
  const int64_t out_memory = output_memory(tiles, w.out, width);

  parallel_for(0, blocks * splits, 1, [&](int64_t begin, int64_t end) {
    T* points = scratch<T>(kPoints * (in_plane + out_plane) + in_memory + out_memory + 2 * 2 * most_rows + 16);
    T* products = points + kPoints * in_plane;
    T* in_scratch = products + kPoints * out_plane;
    T* out_scratch = in_scratch + in_memory;
    int64_t* in_offsets = reinterpret_cast<int64_t*>(out_scratch + out_memory);
    int64_t* out_offsets = in_offsets + most_rows;
    Sums sums;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t cut = task / splits % cuts, split = task % splits;
      const int64_t first = tiles.total() * cut / cuts, last = tiles.total() * (cut + 1) / cuts;
      const Range slices = depth_run(tiles, task / splits / cuts, runs), read = w.depth.read_by(slices);
      for (int64_t d = read.first; d < read.last; ++d) {
        transform_inputs(
            w, first, last, d,
            Points<T>{points + (d - read.first) * (last - first) * in_channels, in_plane, in_channels, in_channels, 0},
            in_scratch);
      }
      sums.lay_out(w.depth, slices, last - first, in_channels, in_offsets);
      for (int64_t chunk = chunks * split / splits; chunk < chunks * (split + 1) / splits; ++chunk) {
        const int64_t channel = chunk * width, count = std::min(width, out_channels - channel);
        const int64_t stride = round_up(count, columns);
        for (int64_t r = 0; r < slices.count() * (last - first); ++r) out_offsets[r] = r * stride;
        for (int64_t p = 0; p < kPoints; ++p) {
          for (int64_t c = 0; c < count; c += columns) {
            const T* panel = filters + (channel + c) / columns * panel_size;
            const T* next =
                (c + columns < count ? panel + panel_size : filters + channel / columns * panel_size + step) + p * step;
            multiply_points(sums, points, in_plane, in_offsets, panel, step, next, count - c, products + c, out_plane,
                            out_offsets, p);
          }
        }
        for (int64_t d = slices.first; d < slices.last; ++d) {
          write_any_outputs(tiles, first, last, products + (d - slices.first) * (last - first) * stride, out_plane,
                            stride, w.bias != nullptr ? packed.bias + channel : nullptr, count,
                            Pixels<S>{w.out, d, channel}, out_scratch);
        }
      }
    }
  });
}

// Panel by panel of output channels, where the points of all filters would not stay in the cache: there are four times
// as many of them as weights. The points of many tiles' inputs are shared instead, and a panel's filters are
// transformed where they are used, for so few channels at a time that they and the sums stay in the second-level cache.
template <class S>
void correlate_in_panels(const Work<S>& w) {
  using T = Wide<S>;
  constexpr int64_t columns = kTileColumns<T>, bytes = static_cast<int64_t>(sizeof(T));
  const Tiles& tiles = w.tiles;
  const Depth& depth = w.depth;
  const int64_t in_channels = w.operand.sum, out_channels = w.operand.out;
  const int64_t panels = (out_channels + columns - 1) / columns;
  const int64_t blocks = (in_channels + kPanelChannels - 1) / kPanelChannels;
  // Of channels, fewer in the last one. Sums are cut where runs of products end, so that they are those of blocks.
  const int64_t block = round_up((in_channels + blocks - 1) / blocks, kPointsInTile);
  const int64_t tile_bytes = kPoints * block * blocks * bytes;
  const int64_t runs = depth_runs(tiles, depth.taps, std::max<int64_t>(1, kSharedBytes / tile_bytes));
  const int64_t most_slices = (tiles.size[0] + runs - 1) / runs, most_read = depth.most_read(most_slices);
  const int64_t cuts =
      std::clamp<int64_t>((tiles.total() * most_read * tile_bytes + kSharedBytes - 1) / kSharedBytes, 1, tiles.total());
  const int64_t most = (tiles.total() + cuts - 1) / cuts;  // tiles of a slice
  const int64_t parts = (most * most_slices + kPanelTiles - 1) / kPanelTiles;
  const int64_t most_rows = most_slices * ((most + parts - 1) / parts);
  const int64_t in_block = most_read * most * block, in_plane = blocks * in_block + kPlanePad;
  const int64_t out_plane = most_rows * columns + kPlanePad;
  const int64_t in_memory = round_up(tile_memory<kIn>(tiles, w.in, in_channels), 16);
  const int64_t out_memory = output_memory(tiles, w.out, columns);
  const int64_t filter_plane = block * columns + kPlanePad;
  std::vector<std::vector<Tap>> taps(depth.taps);
  for (int64_t j = 0; j < depth.taps; ++j) {
    taps[j].assign(w.taps.begin() + j * kTaps * kTaps, w.taps.begin() + (j + 1) * kTaps * kTaps);
  }

  T* points = scratch<T>(kPoints * in_plane, Scratch::kCall);
  for (int64_t round = 0; round < cuts * runs; ++round) {  // as many cuts in each run
    const int64_t cut = round % cuts, first = tiles.total() * cut / cuts, last = tiles.total() * (cut + 1) / cuts;
    const Range slices = depth_run(tiles, round / cuts, runs), read = depth.read_by(slices);
    const int64_t count = last - first, slice = count * block;
    parallel_for(0, count * read.count(), 1, [&](int64_t begin, int64_t end) {
      T* memory = scratch<T>(in_memory);
      for (int64_t t = begin, until; t < end; t = until) {
        until = std::min(end, (t / count + 1) * count);
        transform_inputs(w, first + t % count, first + t % count + until - t, read.first + t / count,
                         Points<T>{points + t * block, in_plane, block, block, in_block}, memory);
      }
    });
    parallel_for(0, panels * parts, 1, [&](int64_t begin, int64_t end) {
      T* filters = scratch<T>(kPoints * (filter_plane + out_plane) + (kTaps * kTaps * block + 1) * columns +
                              out_memory + 2 * 2 * most_rows + 16);
      T* products = filters + kPoints * filter_plane;
      T* packed = products + kPoints * out_plane;
      T* bias = packed + kTaps * kTaps * block * columns;
      T* out_scratch = bias + columns;
      int64_t* in_offsets = reinterpret_cast<int64_t*>(out_scratch + round_up(out_memory, 16));
      int64_t* out_offsets = in_offsets + most_rows;
      for (int64_t task = begin; task < end; ++task) {
        const int64_t panel = task / parts, part = task % parts;
        const int64_t from = count * part / parts, own = count * (part + 1) / parts - from;  // tiles
        const int64_t channel = panel * columns, outputs = std::min(columns, out_channels - channel);
        for (int64_t r = 0; r < slices.count() * own; ++r) {
          in_offsets[r] = (r / own * count + from + r % own) * block;
          out_offsets[r] = r * columns;
        }
        bool accumulate = depth.taps > 1;  // not every slice of outputs sees every tap
        if (accumulate) std::fill_n(products, kPoints * out_plane, T(0));
        for (int64_t j = 0; j < depth.taps; ++j) {
          const Range given = depth.outputs_of(j, slices);
          const int64_t first_row = (given.first - slices.first) * own, rows = given.count() * own;
          for (int64_t b = 0; b < blocks && rows > 0; ++b) {
            const int64_t channels = std::min(block, in_channels - b * block);
            Operand<S> operand = w.operand;
            operand.filters.data += b * block * operand.sum_stride;
            operand.sum = channels;
            pack_panel(operand, taps[j], w.bias, 0, panel, packed, bias);
            for (int64_t c = 0; c < channels; ++c) {
              transform_filters(packed + c * columns, channels * columns, filters + c * columns, filter_plane);
            }
            const Segment segment{(depth.first + slices.first + j - read.first) * slice + b * in_block, channels};
            for (int64_t p = 0; p < kPoints; ++p) {
              const T* a = points + p * in_plane;
              Upcoming upcoming(a + in_plane + segment.offset + in_offsets[first_row], own * block,
                                (rows + kTileRows - 1) / kTileRows * channels);
              for_each_tile(rows, [&](int64_t tile, int64_t tile_rows) {
                const int64_t row = first_row + tile;
                with_rows(tile_rows, [&](auto n) {
                  multiply_tile<n, kPointsInTile, T, T>(a, in_offsets + row, &segment, 1, filters + p * filter_plane,
                                                        products + p * out_plane, out_offsets + row, outputs,
                                                        accumulate, nullptr, false, upcoming);
                });
              });
            }
            accumulate = true;
          }
        }
        for (int64_t d = slices.first; d < slices.last; ++d) {
          write_any_outputs(tiles, first + from, first + from + own, products + (d - slices.first) * own * columns,
                            out_plane, columns, w.bias != nullptr ? bias : nullptr, outputs,
                            Pixels<S>{w.out, d, channel}, out_scratch);
        }
      }
    });
  }
}

template <class S>
void correlate(const Work<S>& w) {
  const int64_t tiles = w.tiles.total() * w.tiles.size[0];
  if (tiles == 0) return;
  const int64_t filter_bytes =
      kPoints * w.depth.taps * w.operand.sum * w.operand.out * static_cast<int64_t>(sizeof(Wide<S>));
  const bool few_tiles = w.depth.taps == 1 && tiles <= kManyTiles;  // either way gives the same numbers then
  if (filter_bytes > (few_tiles ? kFilterBytes : kSharedBytes)) {
    correlate_in_panels(w);
  } else {
    correlate_in_blocks(w);
  }
}

template <class S>
void forward(const ConvGeometry& g, Images<const S> input, Filters<const S> weight, const S* bias, Images<S> output) {
  correlate<S>({forward_operand(g, weight), forward_correlation(g).taps,
                Depth{g.kernel[0], -g.padding[0], g.input[0], g.border}, -g.padding[1], -g.padding[2], input, bias,
                output, Tiles{g.batch, output.size}});
}

template <class S>
void input_grad(const ConvGeometry& g, Images<const S> grad, Filters<const S> weight, const S* bias,
                Images<S> grad_input) {
  std::vector<Tap> turned = forward_correlation(g).taps;
  std::reverse(turned.begin(), turned.end());
  correlate<S>({input_grad_operand(g, weight), turned,
                Depth{g.kernel[0], g.padding[0] - (g.kernel[0] - 1), g.output[0], Border::kZeros},
                g.padding[1] - (kTaps - 1), g.padding[2] - (kTaps - 1), grad, bias, grad_input,
                Tiles{g.batch, grad_input.size}});
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

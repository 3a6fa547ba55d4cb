// The weight gradient of bfloat16 convolutions by a matrix unit (matrix_unit.h).
//
// The same products as in weight_grad.cpp: rows are output channels, columns lie along the input's channels, and the
// sum runs over a band's pixels. The unit takes dy with its pixels side by side, so it is transposed, and pairs of
// pixels of x, a panel of columns at a time.
#include <algorithm>

#include "conv/cpu/matrix_unit.h"
#include "conv/cpu/weight_sums.h"
#include "conv/kernels.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {

#if defined(CPU_CAPABILITY_AVX512)
namespace {

using Number = BFloat16;

constexpr int64_t kColumns = kTileColumns<float>;
constexpr int64_t kLine = 32;  // numbers of a line of the cache

constexpr Number kNoPixel[kColumns] = {};  // what follows the last pixel, up to a whole step of the unit
constexpr float kNothing[kColumns] = {};   // is added to complete sums

// `columns` numbers of each pixel, from data + offsets[p] on, as the right matrix: pixels two by two, kColumns numbers
// of each.
void pair_pixels(const Number* data, const int64_t* offsets, int64_t pixels, int64_t columns, Number* to) {
  for (int64_t p = 0; p < round_up(pixels, kUnitDepth); p += 2, to += 2 * kColumns) {
    const Number* even = p < pixels ? data + offsets[p] : kNoPixel;
    const Number* odd = p + 1 < pixels ? data + offsets[p + 1] : kNoPixel;
    for (int64_t v = 0; v < columns; v += kLanes<float>) {
      const Vec<float> pairs = load_pairs(even + v, odd + v);
      std::memcpy(to + 2 * v, &pairs, sizeof(pairs));
    }
  }
}

// The same for `rows` numbers of each pixel as the left matrix: for each number a row of pixels, `stride` apart. Pairs
// of pixels are transposed like single numbers of 32 bits.
void transpose_pixels(const Number* data, const int64_t* offsets, int64_t pixels, int64_t rows, Number* to,
                      int64_t stride) {
  constexpr int64_t lanes = kLanes<float>;
  for (int64_t p = 0; p < pixels; p += kUnitDepth) {
    for (int64_t r = 0; r < rows; r += lanes) {
      Vec<float> block[lanes];
      for (int64_t i = 0; i < lanes; ++i) {
        const int64_t first = p + 2 * i;
        const Number* even = first < pixels ? data + offsets[first] + r : kNoPixel;
        const Number* odd = first + 1 < pixels ? data + offsets[first + 1] + r : kNoPixel;
        block[i] = load_pairs(even, odd, rows - r);
      }
      transpose<float>(block);
      for (int64_t i = 0; i < std::min(lanes, rows - r); ++i) {
        std::memcpy(to + (r + i) * stride + p, &block[i], sizeof(block[i]));
      }
    }
  }
}

// Where the positions of a band begin to read in a view, `step` of its pixels apart.
void offsets_of(const Band& band, const Extent& step, const PixelView<Number>& view, int64_t* offsets) {
  for_each_position(band, [&](int64_t p, int64_t n, int64_t d, int64_t h, int64_t w) {
    offsets[p] = n * view.image_stride + d * step[0] * view.stride[0] + h * step[1] * view.stride[1] +
                 w * step[2] * view.stride[2];
  });
}

void weight_grad(const ConvGeometry& geometry, Images<const Number> grad, Images<const Number> input,
                 Filters<Number> grad_weight) {
  const ConvGeometry g = flatten_pointwise(geometry, grad, input);
  const Correlation correlation = forward_correlation(g);
  const Extent low = correlation.first_offset(), high = correlation.last_offset(), ones{1, 1, 1};
  const Bands bands(g.batch, g.output, kBandPixels, g.batch);
  const Rectangle largest = read_by(correlation, low, high, {0, 0, 0}, bands.largest());
  const SumLayout<float> layout(g, correlation, largest);
  const int64_t width = layout.width(), patch = layout.patch;
  const auto tasks = WeightTasks::of<float>(g, bands, width, kUnitRows);
  const int64_t sums_size = g.out_channels * width;
  float* sums = scratch<float>(tasks.chunks() * sums_size, Scratch::kCall);

  // The sums of a single band are complete: with one tap, each tile of them is where it belongs.
  const bool at_once = bands.total() == 1 && g.taps() == 1 && grad_weight.in_stride == 1;
  const int64_t pixels = round_up(bands.most_pixels(), kUnitDepth);
  const int64_t grad_stride = pixels + (pixels / kLine % 2 == 0 ? kLine : 0);  // rows on all cache sets
  const int64_t grad_size = round_up(grad_stride * g.group_out(), kLine);
  // Columns may read past the end of what is copied.
  const int64_t band_size = round_up(bands.most_images() * volume(largest.size) * layout.channels + kColumns, kLine);
  const int64_t patches_size = layout.writes_patches ? round_up(bands.most_pixels() * patch + kColumns, kLine) : 0;
  const int64_t pairs_size = pixels * kColumns;
  const int64_t offsets_size = pixels * static_cast<int64_t>(sizeof(int64_t) / sizeof(Number));

  run_weight_tasks(tasks, layout, g.out_channels, sums, grad_weight, [&](int64_t begin, int64_t end, auto finish) {
    Number* band_memory = scratch<Number>(band_size + 2 * grad_size + patches_size + pairs_size + 2 * offsets_size);
    Number* grad_memory = band_memory + band_size;
    Number* rows = grad_memory + grad_size;
    Number* patches = rows + grad_size;
    Number* pairs = patches + patches_size;
    int64_t* offsets = reinterpret_cast<int64_t*>(pairs + pairs_size);
    int64_t* grad_offsets = offsets + pixels;
    MatrixUnit unit;
    std::vector<Segment> segments;
    for (int64_t index = begin; index < end; ++index) {
      const WeightTasks::Task task = tasks[index];
      const int64_t row_count = task.rows.count();
      for (int64_t group = task.groups.first; group < task.groups.last; ++group) {
        const int64_t first_channel = group * g.group_out() + task.rows.first;
        float* own = sums + task.chunk * sums_size + first_channel * width;
        if (task.bands.count() == 0) std::fill_n(own, row_count * width, 0.f);
        for (int64_t i = task.bands.first; i < task.bands.last; ++i) {
          const Band band = bands[i];
          const PixelView<Number> x = view_rectangle(input, band, group * layout.channels, layout.channels,
                                                     read_by(correlation, low, high, band.first, band.size), g.border,
                                                     layout.in_place, band_memory);
          const PixelView<Number> dy = view_rectangle(grad, band, first_channel, row_count, {band.first, band.size},
                                                      Border::kZeros, true, grad_memory);
          offsets_of(band, ones, dy, grad_offsets);
          transpose_pixels(dy.data, grad_offsets, band.pixels(), row_count, rows, grad_stride);

          offsets_of(band, g.stride, x, offsets);
          segments_of(correlation, low, x, layout.channels, segments);
          const Number* columns = x.data;
          if (layout.writes_patches) {
            Number* to = patches;
            for (int64_t p = 0; p < band.pixels(); ++p) {
              for (const Segment& segment : segments) {
                to = std::copy_n(x.data + offsets[p] + segment.offset, segment.length, to);
              }
              offsets[p] = p * patch;
            }
            segments = layout.segments;
            columns = patches;
          }
          const Segment all{0, round_up(band.pixels(), kUnitDepth)};
          float* to = own;
          for (const Segment& segment : segments) {
            for (int64_t c = 0; c < segment.length; c += kColumns, to += kColumns) {
              const int64_t count = std::min(kColumns, segment.length - c);
              pair_pixels(columns + segment.offset + c, offsets, band.pixels(), count, pairs);
              for_each_tile(
                  row_count,
                  [&](int64_t r, int64_t tile_rows) {
                    if (!at_once) {
                      unit.multiply(rows + r * grad_stride, grad_stride, tile_rows, &all, 1, pairs, count,
                                    to + r * width, width, i > task.bands.first);
                      return;
                    }
                    alignas(64) float tile[kUnitRows * kColumns];
                    unit.multiply(rows + r * grad_stride, grad_stride, tile_rows, &all, 1, pairs, count, tile, kColumns,
                                  false);
                    Number* out = grad_weight.data + (first_channel + r) * grad_weight.out_stride + c;
                    for (int64_t k = 0; k < tile_rows; ++k) {
                      MatrixUnit::round(tile + k * kColumns, kNothing, count, out + k * grad_weight.out_stride);
                    }
                  },
                  kUnitRows);
            }
          }
        }
        if (!at_once) finish(Range{first_channel, first_channel + row_count});
      }
    }
  });
}

}  // namespace

SCRATCHNN_REGISTER_KERNEL(matrix_unit_weight_grad<BFloat16>, &weight_grad);
#endif

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

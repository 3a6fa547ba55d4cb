// The weight gradient as matrix products: dw[k, c, t] = sum over images and pixels o of dy[k, o] x[c, o S - P + t D].
//
// Chunk by chunk of the batch (weight_sums.h). Within a band, the rows of a tile are output channels (of dy, packed)
// and its columns lie along the input's channels, side by side in memory. Where there are too few of those, as in a
// network's first layer, it is the other way round: rows are the patch's numbers, and columns lie along dy's channels,
// where they are.
#include <algorithm>

#include "common/gemm.h"
#include "conv/cpu/band.h"
#include "conv/cpu/weight_sums.h"
#include "conv/kernels.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {
namespace {

constexpr int64_t kChunks = 16;         // of the batch, at most, where there are few input channels
constexpr int64_t kChunkPixels = 1536;  // a chunk is worth its sums from here on

// Calls body(p, count, n, d, h, w) for the rows of a band's boxes, box by box: `count` positions from p on, side by
// side from (d, h, w) of the band on.
template <class Body>
SCRATCHNN_INLINE void for_each_row_of(const std::vector<Band>& boxes, const Band& band, const Body& body) {
  int64_t before = 0;
  for (const Band& box : boxes) {
    for_each_row(box, [&](int64_t p, int64_t n, int64_t d, int64_t h) {
      body(before + p, box.size[2], n, d + box.first[0] - band.first[0], h + box.first[1] - band.first[1],
           box.first[2] - band.first[2]);
    });
    before += box.pixels();
  }
}

// Of a band's positions in that order, those that read the image with one of the taps [first, last].
void readers_of(const std::vector<Band>& boxes, const Correlation& c, const Extent& size, int64_t first, int64_t last,
                std::vector<Range>& ranges) {
  ranges.clear();
  int64_t position = 0;
  for (const Band& box : boxes) {
    const int64_t end = position + box.pixels();
    const bool reads = std::any_of(c.taps.begin() + first, c.taps.begin() + last + 1,
                                   [&](const Tap& tap) { return reads_image(c, size, box, tap.offset); });
    if (reads && !ranges.empty() && ranges.back().last == position) {
      ranges.back().last = end;
    } else if (reads) {
      ranges.push_back({position, end});
    }
    position = end;
  }
}

// E is the type of the numbers that are multiplied: Wide<S>, or S itself.
template <class E, class S>
void weight_grad_in(const ConvGeometry& geometry, Images<const S> grad, Images<const S> input, Filters<S> grad_weight) {
  using T = Wide<S>;
  constexpr int64_t columns = kTileColumns<T>, together = kTogether<E, T>;
  const ConvGeometry g = flatten_pointwise(geometry, grad, input);
  const Correlation correlation = forward_correlation(g);
  const Extent low = correlation.first_offset(), high = correlation.last_offset();
  const Bands bands(g.batch, g.output, kBandPixels, g.batch);
  const int64_t sum_channels = g.group_in(), out_channels = g.group_out();

  const Rectangle largest = read_by(correlation, low, high, {0, 0, 0}, bands.largest());
  const SumLayout<T> layout(g, correlation, largest);
  const int64_t width = layout.width(), patch = layout.patch;
  const bool writes_patches = layout.writes_patches;
  // Products with zeros of the border are left out, position by position.
  const bool cuts =
      meets_border(correlation, input.size) && g.border == Border::kZeros && !writes_patches && together == 1;

  const auto tasks = WeightTasks::of<T>(g, bands, width, kTileRows);
  const int64_t sums_size = g.out_channels * width;
  T* sums = scratch<T>(tasks.chunks() * sums_size, Scratch::kCall);
  const int64_t band_size =
      bands.most_images() * volume(largest.size) * sum_channels + 2 * columns;  // columns may read past the end
  const int64_t pixels = round_up(bands.most_pixels(), together);
  const int64_t patches_size = writes_patches ? round_up(bands.most_pixels() * patch + columns, 16) : 0;

  run_weight_tasks(tasks, layout, g.out_channels, sums, grad_weight, [&](int64_t begin, int64_t end, auto finish) {
    const int64_t grad_size = pixels * out_channels + kCopiedRows<T>;
    E* band_memory = scratch<E>(band_size + 2 * grad_size + patches_size +
                                pixels * static_cast<int64_t>(sizeof(int64_t) / sizeof(E)) + 16);
    E* packed_grad = band_memory + round_up(band_size, 4);
    E* copied_grad = packed_grad + round_up(grad_size, 4);
    E* patches = copied_grad + round_up(grad_size, 4);
    int64_t* offsets = reinterpret_cast<int64_t*>(patches + patches_size);
    std::vector<Segment> segments;
    std::vector<Band> boxes;
    std::vector<Range> ranges;
    for (int64_t index = begin; index < end; ++index) {
      const WeightTasks::Task task = tasks[index];
      const int64_t first_row = task.rows.first, row_count = task.rows.count();
      for (int64_t group = task.groups.first; group < task.groups.last; ++group) {
        const int64_t first_channel = group * out_channels + first_row;
        T* own = sums + task.chunk * sums_size + first_channel * width;
        std::fill(own, own + row_count * width, T(0));
        for (int64_t i = task.bands.first; i < task.bands.last; ++i) {
          const Band band = bands[i];
          const Rectangle rectangle = read_by(correlation, low, high, band.first, band.size);
          const PixelView<E> view = view_rectangle(input, band, group * sum_channels, sum_channels, rectangle, g.border,
                                                   layout.in_place, band_memory);
          segments_of(correlation, low, view, sum_channels, segments);
          const PixelView<E> dy = view_rectangle(grad, band, first_channel, row_count, Rectangle{band.first, band.size},
                                                 Border::kZeros, true, copied_grad);
          boxes.assign(1, band);
          if (cuts) cut_at_border(correlation, input.size, band, boxes);
          for_each_row_of(boxes, band, [&](int64_t p, int64_t count, int64_t n, int64_t d, int64_t h, int64_t w) {
            const int64_t step = g.stride[2] * view.stride[2];
            const int64_t first =
                n * view.image_stride + d * g.stride[0] * view.stride[0] + h * g.stride[1] * view.stride[1] + w * step;
            for (int64_t j = 0; j < count; ++j) offsets[p + j] = first + j * step;
          });
          const E* columns_data = view.data;
          if (writes_patches) {
            E* to = patches;
            for (int64_t p = 0; p < band.pixels(); ++p) {
              for (const Segment& segment : segments) {
                copy_numbers(view.data + offsets[p] + segment.offset, segment.length, to);
                to += segment.length;
              }
              offsets[p] = p * patch;
            }
            segments = layout.segments;
            columns_data = patches;
          }
          // dy by tiles of rows, each pixel's (or pair of pixels') numbers of a tile side by side.
          const int64_t packed_pixels = round_up(band.pixels(), together);
          for_each_tile(row_count, [&](int64_t first, int64_t rows) {
            E* to = packed_grad + first * packed_pixels;
            if (packed_pixels > band.pixels())
              std::fill_n(to + (packed_pixels - together) * rows, together * rows, E());
            with_rows(rows, [&](auto count) {
              for_each_row_of(
                  boxes, band, [&](int64_t p, int64_t positions, int64_t n, int64_t d, int64_t h, int64_t w) {
                    const E* from =
                        dy.data + n * dy.image_stride + d * dy.stride[0] + h * dy.stride[1] + w * dy.stride[2] + first;
                    for (const int64_t end = p + positions; p < end; ++p, from += dy.stride[2]) {
                      if constexpr (together == 1) {
                        const bool whole = p + 1 < band.pixels() && dy.stride[2] >= kCopiedRows<T>;
                        copy_rows<count>(from, whole, to + p * count);
                      } else {
                        E* step = to + p / together * together * count + p % together;
                        for (int r = 0; r < count; ++r) step[r * together] = from[r];
                      }
                    }
                  });
            });
          });
          Upcoming upcoming[2];  // of the input and, where one task reads all of it, of dy: tiles take turns
          const int64_t kinds = row_count == g.out_channels ? 2 : 1;
          if (i + 1 < task.bands.last && g.groups == 1) {  // else it would be asked for by every group
            const Band next = bands[i + 1];
            const int64_t tiles = width / columns * ((row_count + kTileRows - 1) / kTileRows);
            const int64_t steps = tiles * packed_pixels / together / kinds;
            upcoming[0] = upcoming_rows(input, next, read_by(correlation, low, high, next.first, next.size), steps);
            if (kinds == 2) upcoming[1] = upcoming_rows(grad, next, {next.first, next.size}, steps);
          }
          int64_t turn = 0;
          T* column = own;
          for (const Segment& segment : segments) {
            for (int64_t c = 0; c < segment.length; c += columns, column += columns) {
              const E* b = columns_data + segment.offset + c;
              ranges.assign(1, {0, band.pixels()});
              if (cuts) {
                const int64_t last = std::min(c + columns, segment.length) - 1;
                readers_of(boxes, correlation, input.size, (segment.first + c) / sum_channels,
                           (segment.first + last) / sum_channels, ranges);
              }
              for_each_tile(row_count, [&](int64_t first, int64_t rows) {
                Upcoming& now = upcoming[turn++ % kinds];
                with_rows(rows, [&](auto count) {
                  accumulate_outer_products<count, E, T>(packed_grad + first * packed_pixels, count, b, offsets,
                                                         ranges.data(), static_cast<int64_t>(ranges.size()),
                                                         segment.length - c, column + first * width, width, now);
                });
              });
            }
          }
        }
        finish(Range{first_channel, first_channel + row_count});
      }
    }
  });
}

// sums[r][j] += sum over p of x[x_offsets[p] + r] dy[dy_offsets[p] + j] for the lanes j of one or two vectors.
template <int rows, int vectors, class T>
__attribute__((noinline)) void accumulate_in_place(const T* x, const int64_t* x_offsets, const T* dy,
                                                   const int64_t* dy_offsets, int64_t count, T* sums, int64_t stride) {
  constexpr int lanes = kLanes<T>;
  for (int64_t p = 0; p < count;) {
    const int64_t last = std::min(p + kOuterProducts, count);
    Vec<T> own[rows][vectors];
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) own[r][v] = Vec<T>{};
    }
#pragma GCC unroll 2
    for (; p < last; ++p) {
      const T *numbers = x + x_offsets[p], *row = dy + dy_offsets[p];
      Vec<T> b[vectors];
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) {
        b[v] = load(row + v * lanes);
        SCRATCHNN_KEEP_IN_REGISTER(b[v]);
      }
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r) {
        const Vec<T> number = spread<T, T>(numbers + r);
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) multiply_add<T, T>(number, b[v], own[r][v]);
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) {
        T* to = sums + r * stride + v * lanes;
        store(to, load(to) + own[r][v]);
      }
    }
  }
}

// For few input channels and one group: neither patches nor dy are written out.
template <class S>
void weight_grad_of_few_channels(const ConvGeometry& geometry, Images<const S> grad, Images<const S> input,
                                 Filters<S> grad_weight) {
  using T = Wide<S>;
  const ConvGeometry g = flatten_pointwise(geometry, grad, input);
  constexpr int64_t columns = kTileColumns<T>;
  const Correlation correlation = forward_correlation(g);
  const Extent low = correlation.first_offset(), high = correlation.last_offset();
  const Bands bands(g.batch, g.output, kBandPixels, g.batch);
  const int64_t patch = g.taps() * g.in_channels, width = round_up(g.out_channels, kLanes<T>);
  const int64_t worth = g.batch * volume(g.output) / kChunkPixels;
  const int64_t chunks = std::clamp<int64_t>(std::min(worth, bands.total()), 1, kChunks);
  T* sums = scratch<T>(chunks * patch * width, Scratch::kCall);  // sums[chunk][number of the patch][k]
  const Rectangle largest = read_by(correlation, low, high, {0, 0, 0}, bands.largest());
  const int64_t x_size = round_up(bands.most_images() * volume(largest.size) * g.in_channels, 16);
  const int64_t dy_size =
      round_up(bands.most_pixels() * g.out_channels + columns, 16);  // columns may read past the end
  const bool in_place = g.out_channels == width;

  parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    T* x_memory =
        scratch<T>(x_size + dy_size + 2 * bands.most_pixels() * static_cast<int64_t>(sizeof(int64_t) / sizeof(T)));
    T* dy_memory = x_memory + x_size;
    int64_t* x_offsets = reinterpret_cast<int64_t*>(dy_memory + dy_size);
    int64_t* dy_offsets = x_offsets + bands.most_pixels();
    std::vector<Segment> segments;
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      T* own = sums + chunk * patch * width;
      std::fill_n(own, patch * width, T(0));
      for (int64_t index = bands.total() * chunk / chunks; index < bands.total() * (chunk + 1) / chunks; ++index) {
        const Band band = bands[index];
        const Rectangle rectangle = read_by(correlation, low, high, band.first, band.size);
        const PixelView<T> x = view_rectangle(input, band, 0, g.in_channels, rectangle, g.border,
                                              /*may_read_in_place=*/g.taps() == 1, x_memory);
        const PixelView<T> dy = view_rectangle(grad, band, 0, g.out_channels, Rectangle{band.first, band.size},
                                               Border::kZeros, in_place, dy_memory);
        segments_of(correlation, low, x, g.in_channels, segments);
        for_each_position(band, [&](int64_t p, int64_t n, int64_t d, int64_t h, int64_t w) {
          x_offsets[p] = n * x.image_stride + d * g.stride[0] * x.stride[0] + h * g.stride[1] * x.stride[1] +
                         w * g.stride[2] * x.stride[2];
          dy_offsets[p] = n * dy.image_stride + d * dy.stride[0] + h * dy.stride[1] + w * dy.stride[2];
        });
        for (int64_t k = 0; k < g.out_channels; k += columns) {
          T* to = own + k;
          for (const Segment& segment : segments) {
            for_each_tile(segment.length, [&](int64_t first, int64_t rows) {
              with_rows(rows, [&](auto count) {
                auto* accumulate =
                    width - k == kLanes<T> ? &accumulate_in_place<count, 1, T> : &accumulate_in_place<count, 2, T>;
                accumulate(x.data + segment.offset + first, x_offsets, dy.data + k, dy_offsets, band.pixels(),
                           to + first * width, width);
              });
            });
            to += segment.length * width;
          }
        }
      }
    }
  });

  // Add up the chunks, in order, into the weight's own layout.
  parallel_for(0, patch, 1 + 16384 / (width * chunks), [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) {
      T* row = sums + r * width;
      for (int64_t chunk = 1; chunk < chunks; ++chunk) {
        const T* other = row + chunk * patch * width;
        for (int64_t k = 0; k < width; k += kLanes<T>) store(row + k, load(row + k) + load(other + k));
      }
      S* to = grad_weight.data + r % g.in_channels * grad_weight.in_stride + r / g.in_channels * grad_weight.tap_stride;
      for (int64_t k = 0; k < g.out_channels; ++k) write_one(to + k * grad_weight.out_stride, row[k]);
    }
  });
}

// Whether an input's channels side by side are too few for a tile's columns, and the output's are not; or, of a 1x1
// convolution, whether they are so few that packing dy, the larger side, would cost more than it saves.
template <class T>
bool has_few_channels(const ConvGeometry& g) {
  constexpr int64_t kFewBytes = 128;
  const int64_t bytes = g.in_channels * static_cast<int64_t>(sizeof(T));
  if (g.groups != 1) return false;
  if (g.taps() == 1 && bytes <= kFewBytes && g.in_channels < g.out_channels) return true;
  return 3 * g.in_channels <= kTileColumns<T> && 2 * g.out_channels >= kTileColumns<T>;
}

template <class S>
void weight_grad(const ConvGeometry& geometry, Images<const S> grad, Images<const S> input, Filters<S> grad_weight) {
  if constexpr (kMultipliesPairs<S>) {
    if (multiplies_pairs()) return weight_grad_in<S>(geometry, grad, input, grad_weight);
  }
  if (has_few_channels<Wide<S>>(geometry)) return weight_grad_of_few_channels(geometry, grad, input, grad_weight);
  weight_grad_in<Wide<S>>(geometry, grad, input, grad_weight);
}

}  // namespace

SCRATCHNN_REGISTER_KERNEL(implicit_gemm_weight_grad<float>, &weight_grad<float>);
SCRATCHNN_REGISTER_KERNEL(implicit_gemm_weight_grad<double>, &weight_grad<double>);
SCRATCHNN_REGISTER_KERNEL(implicit_gemm_weight_grad<BFloat16>, &weight_grad<BFloat16>);
SCRATCHNN_REGISTER_KERNEL(implicit_gemm_weight_grad<Half>, &weight_grad<Half>);

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

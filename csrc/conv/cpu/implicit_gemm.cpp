// Convolution as matrix products over blocks of pixels: the forward pass and the input gradient.
//
// Row p of the left matrix is the patch of input that output pixel p sees, but the patch is never written out
// (that would be im2col): its rows are runs of the band itself, addressed by segments. The right matrix is the
// weight, packed once per call into panels of kTileColumns output channels. Serves every geometry; reads inputs
// once per kReduction-long slice of the reduction and panel, from cache. Zeros of the border are not multiplied.
#include <algorithm>

#include "common/gemm.h"
#include "conv/cpu/band.h"
#include "conv/cpu/band_output.h"
#include "conv/cpu/packed_weight.h"
#include "conv/kernels.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {
namespace {

// Slices of the reduction are this long, so that a panel's slice stays in a near cache: in 16 kilobytes of the first
// level; in 64 of the second with AVX-512, whose tiles take long enough over each row. A whole number of
// multiply_tile's runs.
constexpr int64_t kSliceBytes = kVectorBytes < 64 ? 16 << 10 : 64 << 10;
template <class E, class T>
constexpr int64_t kReduction = kSliceBytes / (2 * kVectorBytes) * kTogether<E, T>;

// The largest weight that stays in the second-level cache while images stream by.
constexpr int64_t kStreamBytes = 512 << 10;

// Outputs of as much are written past the cache.
constexpr int64_t kStreamedBytes = 512 << 10;

// Where there are fewer bands for each thread, the panels of output channels are shared out as well.
constexpr int64_t kTasksPerThread = 16;

// Fewer channels are multiplied by the border's zeros as well: that takes less time than tiles that are not full.
constexpr int64_t kFewChannels = 32;

// Rows of the left matrix that lie a multiple of kPage bytes apart share the same few lines of the first-level cache:
// of kTileRows, not all would stay.
constexpr int64_t kPage = 4096;
constexpr int64_t kRowsOfPages = std::min(kTileRows, 8);

// Positions of a band that read the image with the same taps, and the reduction over those. `first` of them come
// before.
struct Alike {
  Band box;
  int64_t first;
  std::vector<Segment> segments, slice;

  // The segments that [from, to) of the reduction is made of.
  void slice_segments(int64_t from, int64_t to) {
    slice.clear();
    for (const Segment& segment : segments) {
      const int64_t first = std::max(from, segment.first), last = std::min(to, segment.first + segment.length);
      if (first < last) slice.push_back({segment.offset + first - segment.first, last - first, first});
    }
  }
};

// The parts of a band, and how their positions are laid out: part by part, each part's in order.
struct Parts {
  std::vector<Band> boxes;
  std::vector<Alike> all;

  // Cuts the band, whose pixels `view` shows from tap `low` on; cuts it at the border only where `cuts`. in_offsets is
  // where each position begins to read in the view; place(first, count, n, d, h, w) says where `count` positions from
  // `first` on are, side by side from (d, h, w) of the band's image n on.
  template <class E, class Place>
  void lay_out(const Correlation& c, const Extent& low, const Extent& size, bool cuts, const PixelView<E>& view,
               int64_t channels, const Band& band, int64_t* in_offsets, const Place& place) {
    boxes.assign(1, band);
    if (cuts) cut_at_border(c, size, band, boxes);
    all.resize(boxes.size());
    const int64_t pixel = c.in_step[2] * view.stride[2];
    int64_t before = 0;
    for (size_t i = 0; i < boxes.size(); ++i) {
      const Band& box = all[i].box = boxes[i];
      all[i].first = before;
      segments_of(c, low, view, channels, all[i].segments,
                  [&](const Extent& offset) { return !cuts || reads_image(c, size, box, offset); });
      for_each_row(box, [&](int64_t p, int64_t n, int64_t row_d, int64_t row_h) {
        const int64_t d = box.first[0] - band.first[0] + row_d, h = box.first[1] - band.first[1] + row_h;
        const int64_t w = box.first[2] - band.first[2];
        const int64_t from =
            n * view.image_stride + d * c.in_step[0] * view.stride[0] + h * c.in_step[1] * view.stride[1] + w * pixel;
        for (int64_t j = 0; j < box.size[2]; ++j) in_offsets[before + p + j] = from + j * pixel;
        place(before + p, box.size[2], n, d, h, w);
      });
      before += box.pixels();
    }
  }
};

// multiply(part, panel, position, rows, upcoming) for all parts, tile by tile, each by all panels;
// look_ahead(panel, position, end, upcoming) says what of the positions of the next tile is to be asked for meanwhile.
// For a weight that stays in the cache while images stream by.
template <class LookAhead, class Multiply>
SCRATCHNN_INLINE void multiply_in_stream(const std::vector<Alike>& parts, const Range& panels, int64_t tile_rows,
                                         const LookAhead& look_ahead, const Multiply& multiply) {
  for (const Alike& part : parts) {
    const int64_t end = part.first + part.box.pixels();
    for_each_tile(
        part.box.pixels(),
        [&](int64_t tile, int64_t rows) {
          const int64_t p = part.first + tile;
          Upcoming upcoming;
          for (int64_t panel = panels.first; panel < panels.last; ++panel) {
            look_ahead(panel, p + rows, std::min(p + 2 * rows, end), upcoming);
            multiply(part.segments, panel, p, rows, upcoming);
          }
        },
        tile_rows);
  }
}

// multiply(slice, which, panel, position, rows), slice by slice of `length` of the reduction, panel by panel, for all
// tiles of all parts: a panel's slice stays in the cache.
template <class Multiply>
SCRATCHNN_INLINE void multiply_in_slices(std::vector<Alike>& parts, const Range& panels, int64_t slices, int64_t length,
                                         int64_t tile_rows, const Multiply& multiply) {
  for (int64_t s = 0; s < slices; ++s) {
    for (Alike& part : parts) part.slice_segments(s * length, (s + 1) * length);
    for (int64_t panel = panels.first; panel < panels.last; ++panel) {
      for (const Alike& part : parts) {
        for_each_tile(
            part.box.pixels(),
            [&](int64_t tile, int64_t rows) { multiply(part.slice, s, panel, part.first + tile, rows); }, tile_rows);
      }
    }
  }
}

// out = in (*) w: runs a correlation over all bands of all images and groups; or several phases of a stride along the
// rows together, the first of which has the most positions: their outputs interleave, and rows of contiguous images are
// written as a whole. E is the type of the numbers that are multiplied: Wide<S>, or S itself.
template <class E, class S>
void correlate_in(const std::vector<Correlation>& phases, const Operand<S>& operand, int64_t batch, int64_t groups,
                  const Images<const S>& in, const S* bias, const Images<S>& out) {
  using T = Wide<S>;
  constexpr int64_t columns = kTileColumns<T>, together = kTogether<E, T>;
  const Correlation& correlation = phases[0];
  const auto phase_count = static_cast<int64_t>(phases.size());
  const Bands bands(batch, correlation.count, kBandPixels, batch);
  if (bands.total() == 0) return;
  const PackedPhases<E> weights = pack_phases<E>(phases, operand, groups, bias);
  const Extent &low = weights.low, &high = weights.high;

  const Rectangle largest = read_by(correlation, low, high, {0, 0, 0}, bands.largest());
  const int64_t band_size = round_up(bands.most_images() * volume(largest.size) * operand.sum, 16);
  const int64_t pixels = bands.most_pixels(), panels = weights.of_phase[0].panels, padded_out = panels * columns;
  // Contiguous outputs are computed channels last, then transposed; half precision is rounded when sums are complete.
  const bool stage = !out.channels_last || !std::is_same_v<S, T>;
  const int64_t stage_size = stage ? round_up(pixels * phase_count * padded_out, 16) : 0;
  // A tile of short sums is soon complete: fetching the lines it is written to would take longer, though outputs may
  // then be missed in the cache.
  const int64_t outputs = batch * out.image_stride();
  const bool streamed = !stage && weights.of_phase[0].reduction <= kReduction<E, T> &&
                        is_worth_streaming(out.data, outputs, operand.out, kStreamedBytes);
  const bool whole_rows = bands.largest()[2] == correlation.count[2] && correlation.out_base[2] == 0;
  const bool rows_streamed = !out.channels_last && whole_rows && is_worth_streaming(out.data, outputs, out.size[2]);
  const int64_t blocks = bands.total() * groups;
  const int64_t shares =
      std::clamp<int64_t>((kTasksPerThread * thread_count() + blocks - 1) / blocks, 1, std::max<int64_t>(1, panels));
  const bool meets = std::any_of(phases.begin(), phases.end(), [&](auto& c) { return meets_border(c, in.size); });
  const bool cuts = meets && correlation.border == Border::kZeros && operand.sum >= kFewChannels;

  parallel_for(0, blocks * shares, 1, [&](int64_t begin, int64_t end) {
    T* memory = scratch<T>(band_size + stage_size + 2 * pixels * static_cast<int64_t>(sizeof(int64_t) / sizeof(T)));
    E* band_memory = reinterpret_cast<E*>(memory);
    T* stage_memory = memory + band_size;
    int64_t* in_offsets = reinterpret_cast<int64_t*>(stage_memory + stage_size);
    int64_t* out_offsets = in_offsets + pixels;
    Parts parts;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t block = task / shares, share = task % shares;
      const Band band = bands[block / groups];
      const int64_t group = block % groups;
      const Range own{panels * share / shares, panels * (share + 1) / shares};
      const Rectangle rectangle = read_by(correlation, low, high, band.first, band.size);
      const PixelView<E> view =
          view_rectangle(in, band, group * operand.sum, operand.sum, rectangle, correlation.border, true, band_memory);

      // The input of the band that comes next, if another one does, for so many steps of each tile.
      const auto next_band = [&](int64_t tile_steps) {
        const int64_t next = (task + 1) / shares / groups;
        if (task + 1 == end || next == block / groups) return Upcoming();
        const int64_t tiles = (band.pixels() + kTileRows - 1) / kTileRows;
        const Rectangle r = read_by(correlation, low, high, bands[next].first, bands[next].size);
        return upcoming_rows(in, bands[next], r, tiles * tile_steps / together);
      };
      S* out_image = band_output(correlation, band, group * operand.out, out);
      const int64_t in_bytes = correlation.in_step[2] * view.stride[2] * static_cast<int64_t>(sizeof(E));
      const int64_t tile_rows = in_bytes % kPage == 0 ? kRowsOfPages : kTileRows;
      const auto place = [&](int64_t first, int64_t count, int64_t n, int64_t d, int64_t h, int64_t w) {
        const int64_t position = ((n * band.size[0] + d) * band.size[1] + h) * band.size[2] + w;
        const int64_t to = stage ? position * phase_count * padded_out
                                 : n * out.image_stride() + out_pixel(correlation, out.size, d, h, w) * out.channels;
        const int64_t step = stage ? phase_count * padded_out : correlation.out_step[2] * out.channels;
        for (int64_t i = 0; i < count; ++i) out_offsets[first + i] = to + i * step;
      };
      for (int64_t phase = 0; phase < phase_count; ++phase) {
        const Correlation& taps = phases[static_cast<size_t>(phase)];
        const PackedWeight<E>& weight = weights.of_phase[static_cast<size_t>(phase)];
        parts.lay_out(taps, low, in.size, cuts, view, operand.sum, band, in_offsets, place);

        T* result = stage_memory + phase * padded_out;
        if constexpr (std::is_same_v<S, T>) result = stage ? result : out_image;
        const auto multiply = [&](const std::vector<Segment>& segments, bool accumulate, bool last, int64_t panel,
                                  int64_t p, int64_t rows, Upcoming& upcoming) __attribute__((always_inline)) {
          const int64_t used = std::min(columns, operand.out - panel * columns);
          with_rows(rows, [&](auto count) {
            multiply_tile<count, together * kProductsInTile, E, T>(
                view.data, in_offsets + p, segments.data(), static_cast<int64_t>(segments.size()),
                weight.panel(group, panel), result + panel * columns, out_offsets + p,
                stage ? round_up(used, kLanes<T>) : used, accumulate, last ? weight.bias_of(group, panel) : nullptr,
                streamed, upcoming);
          });
        };
        // A 1x1 kernel reads each number once.
        if (taps.taps.size() == 1 && weight.reduction * padded_out * static_cast<int64_t>(sizeof(E)) <= kStreamBytes) {
          multiply_in_stream(
              parts.all, own, tile_rows,
              [&](int64_t panel, int64_t first, int64_t last, Upcoming& upcoming) {
                if (first == last) return;
                const int64_t steps = operand.sum / together, positions = last - first;
                const int64_t numbers = in_offsets[last - 1] - in_offsets[first] + operand.sum;
                if (numbers <= positions * view.stride[2]) {  // in one piece
                  if (panel == own.first) {
                    upcoming = Upcoming(view.data + in_offsets[first], numbers, steps * own.count());
                  }
                  return;
                }
                for (int64_t i = positions * (panel - own.first) / own.count();
                     i < positions * (panel + 1 - own.first) / own.count(); ++i) {
                  prefetch(view.data + in_offsets[first + i], operand.sum);
                }
              },
              [&](const auto& segments, int64_t panel, int64_t p, int64_t rows, Upcoming& upcoming)
                  __attribute__((always_inline)) { multiply(segments, false, true, panel, p, rows, upcoming); });
          continue;
        }
        const int64_t slices = std::max<int64_t>(1, (weight.reduction + kReduction<E, T> - 1) / kReduction<E, T>);
        Upcoming upcoming = next_band(weight.reduction * own.count());
        multiply_in_slices(parts.all, own, slices, kReduction<E, T>, tile_rows,
                           [&](const auto& segments, int64_t s, int64_t panel, int64_t p, int64_t rows)
                               __attribute__((always_inline)) {
                                 multiply(segments, s > 0, s + 1 == slices, panel, p, rows, upcoming);
                               });
      }

      if (stage) {
        const int64_t first_out = own.first * columns, last_out = std::min(operand.out, own.last * columns);
        write_band(correlation, band, phase_count, stage_memory + first_out, padded_out, last_out - first_out, out,
                   out_image + first_out * out.channel_stride(), rows_streamed);
      }
    }
    if (streamed || rows_streamed) finish_streaming();
  });
}

template <class S>
void correlate(const std::vector<Correlation>& phases, const Operand<S>& operand, int64_t batch, int64_t groups,
               const Images<const S>& in, const S* bias, const Images<S>& out) {
  if constexpr (kMultipliesPairs<S>) {
    if (operand.sum % 2 == 0 && multiplies_pairs()) {
      return correlate_in<S>(phases, operand, batch, groups, in, bias, out);
    }
  }
  correlate_in<Wide<S>>(phases, operand, batch, groups, in, bias, out);
}

template <class S>
void forward(const ConvGeometry& geometry, Images<const S> input, Filters<const S> weight, const S* bias,
             Images<S> output) {
  const ConvGeometry g = flatten_pointwise(geometry, input, output);
  correlate({forward_correlation(g)}, forward_operand(g, weight), g.batch, g.groups, input, bias, output);
}

template <class S>
void input_grad(const ConvGeometry& geometry, Images<const S> grad, Filters<const S> weight, const S* bias,
                Images<S> grad_input) {
  const ConvGeometry g = flatten_pointwise(geometry, grad, grad_input);
  for_phases_of_input_grad(g, grad_input.channels_last, [&](const std::vector<Correlation>& phases) {
    correlate(phases, input_grad_operand(g, weight), g.batch, g.groups, grad, bias, grad_input);
  });
}

}  // namespace

#define SCRATCHNN_REGISTER(S)                                       \
  SCRATCHNN_REGISTER_KERNEL(implicit_gemm_forward<S>, &forward<S>); \
  SCRATCHNN_REGISTER_KERNEL(implicit_gemm_input_grad<S>, &input_grad<S>);
SCRATCHNN_REGISTER(float)
SCRATCHNN_REGISTER(double)
SCRATCHNN_REGISTER(BFloat16)
SCRATCHNN_REGISTER(Half)
#undef SCRATCHNN_REGISTER

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

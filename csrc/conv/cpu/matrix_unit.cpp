// Convolutions of bfloat16 by a matrix unit (matrix_unit.h): the forward pass and the input gradient.
//
// The same products as in implicit_gemm.cpp, in larger tiles. The unit takes rows that lie a fixed number apart, 64
// bytes of each at a time. So whole rows of pixels are multiplied where they lie, tap by tap, as long as their channels
// come in such portions; otherwise the patches of a tile's pixels are written out first.
#include "conv/cpu/matrix_unit.h"

#include <algorithm>

#include "conv/cpu/band.h"
#include "conv/cpu/band_output.h"
#include "conv/cpu/packed_weight.h"
#include "conv/kernels.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {

#if defined(CPU_CAPABILITY_AVX512)
namespace {

using Number = BFloat16;

constexpr int64_t kColumns = kTileColumns<float>;
constexpr int64_t kWeightBytes = 512 << 10;  // of panels that are used for all of a band, one tile after the other
constexpr int64_t kTasksPerThread = 16;      // where there are fewer bands, panels are shared out as well
constexpr int64_t kShortRun = 12;            // a run of fewer pixels leaves too much of a tile empty
constexpr int64_t kPage = 4096;              // rows as many bytes apart share cache sets: a tile's would not all stay

// Numbers from one patch to the next: an odd number of lines, which fall on all cache sets.
int64_t patch_stride(int64_t reduction) {
  return reduction + (reduction / kUnitDepth % 2 == 0 ? kUnitDepth : 0);
}

// The numbers of a patch, and zeros after them up to a whole step of the unit. What comes after that is written over.
void copy_patch(const Number* data, const std::vector<Segment>& segments, Number* to) {
  constexpr int64_t kNumbers = sizeof(__m512i) / sizeof(Number);
  for (const Segment& segment : segments) {
    const Number* from = data + segment.offset;
    for (int64_t i = 0; i < segment.length; i += kNumbers) {
      const int64_t left = segment.length - i;
      const __mmask32 mask = left < kNumbers ? (1u << left) - 1 : ~0u;
      _mm512_storeu_si512(to + i, _mm512_maskz_loadu_epi16(mask, from + i));
    }
    to += segment.length;
  }
  _mm512_storeu_si512(to, _mm512_setzero_si512());
}

// The positions of a band in the order they are computed in, in runs of positions that read `step` numbers apart.
//
// With a stride of one that is so for all pixels of an image, not only for those of a row, if what lies between two
// rows is computed as well. It is not written.
class Positions {
 public:
  static constexpr int64_t kNowhere = -1;
  struct Run {
    int64_t first, count;
  };

  // Where the positions of row h of depth d of the band's image n are written: from place(n, d, h) on, to_step apart.
  // One run of everything where patches are written out anyway.
  template <class Place>
  void lay_out(const Correlation& c, const Band& band, const PixelView<Number>& view, bool in_patches, int64_t to_step,
               const Place& place) {
    step = c.in_step[2] * view.stride[2];
    const int64_t width = band.size[2], joined = in_patches ? 0 : joined_width(c, band, view);
    const int64_t pitch = joined > 0 ? joined : width;  // positions from one row to the next
    const auto most = static_cast<size_t>(band.images * band.size[0] * band.size[1] * pitch);
    from.resize(most);
    to.resize(most);
    runs.clear();
    int64_t count = 0, first = 0;
    for_each_row(band, [&](int64_t, int64_t n, int64_t d, int64_t h) {
      const bool last = h + 1 == band.size[1];
      const int64_t begin =
          n * view.image_stride + d * c.in_step[0] * view.stride[0] + h * c.in_step[1] * view.stride[1];
      const int64_t written = place(n, d, h), positions = last ? width : pitch;
      for (int64_t w = 0; w < positions; ++w) from[count + w] = begin + w * step;
      for (int64_t w = 0; w < width; ++w) to[count + w] = written + w * to_step;
      for (int64_t w = width; w < positions; ++w) to[count + w] = kNowhere;
      count += positions;
      if (!in_patches && (joined == 0 || last)) {
        runs.push_back({first, count - first});
        first = count;
      }
    });
    if (in_patches) runs.push_back({0, count});
  }

  // Whether runs fill tiles.
  static bool fill_tiles(const Correlation& c, const Band& band, const PixelView<Number>& view) {
    return band.size[2] >= kShortRun || joined_width(c, band, view) > 0;
  }

  std::vector<int64_t> from, to;
  std::vector<Run> runs;
  int64_t step = 0;

 private:
  // Positions from one row to the next, where rows are joined: it pays if few of them are written nowhere. Else 0.
  static int64_t joined_width(const Correlation& c, const Band& band, const PixelView<Number>& view) {
    if (c.in_step[1] != 1 || c.in_step[2] != 1 || band.size[1] == 1) return 0;
    const int64_t pitch = view.stride[1] / view.stride[2];
    return 3 * (pitch - band.size[2]) <= band.size[2] ? pitch : 0;
  }
};

// Products of a band's pixels with panels of the weight: write(sums, bias, to, panel) for each position and panel, the
// sums and their biases being kColumns numbers. Panels few enough to stay in the second-level cache are used for all
// positions.
template <class Write>
void multiply_band(MatrixUnit& unit, const Positions& positions, const Number* data,
                   const std::vector<Segment>& segments, const PackedWeight<Number>& weight, int64_t group,
                   const Range& panels, int64_t channels, Number* patches, const Write& write) {
  alignas(64) float sums[kUnitRows * kColumns];
  const int64_t panel_bytes = weight.reduction * kColumns * static_cast<int64_t>(sizeof(Number));
  const int64_t together = std::max<int64_t>(1, kWeightBytes / std::max<int64_t>(1, panel_bytes));
  const Segment patch{0, weight.reduction};
  const int64_t stride = patches != nullptr ? patch_stride(weight.reduction) : positions.step;
  const Segment* parts = patches != nullptr ? &patch : segments.data();
  const int64_t part_count = patches != nullptr ? 1 : static_cast<int64_t>(segments.size());
  for (int64_t first = panels.first; first < panels.last; first += together) {
    const int64_t last = std::min(first + together, panels.last);
    for (const Positions::Run& run : positions.runs) {
      for_each_tile(
          run.count,
          [&](int64_t tile, int64_t rows) {
            const int64_t p = run.first + tile;
            const Number* a = patches != nullptr ? patches : data + positions.from[p];
            for (int64_t r = 0; r < rows && patches != nullptr; ++r) {
              copy_patch(data + positions.from[p + r], segments, patches + r * stride);
            }
            for (int64_t panel = first; panel < last; ++panel) {
              unit.multiply(a, stride, rows, parts, part_count, weight.panel(group, panel), channels - panel * kColumns,
                            sums, kColumns, false);
              for (int64_t r = 0; r < rows; ++r) {
                if (positions.to[p + r] != Positions::kNowhere) {
                  write(sums + r * kColumns, weight.bias_of(group, panel), positions.to[p + r], panel);
                }
              }
            }
          },
          kUnitRows);
    }
  }
}

// out = in (*) w: a correlation over all bands, or several phases of a stride together, as in implicit_gemm.cpp. Where
// the output is contiguous and one row of pixels, these may have biases, and not its channels.
void correlate(const std::vector<Correlation>& phases, const Operand<Number>& operand, int64_t batch, int64_t groups,
               const Images<const Number>& in, const Number* bias, const Images<Number>& out,
               const Number* pixel_bias = nullptr) {
  const Correlation& correlation = phases[0];
  const auto phase_count = static_cast<int64_t>(phases.size());
  const Bands bands(batch, correlation.count, kBandPixels, batch);
  if (bands.total() == 0) return;
  const PackedPhases<Number> weights = pack_phases<Number>(phases, operand, groups, bias);
  const Rectangle largest = read_by(correlation, weights.low, weights.high, {0, 0, 0}, bands.largest());
  const int64_t band_size = round_up(bands.most_images() * volume(largest.size) * operand.sum, 32);
  const int64_t panels = weights.of_phase[0].panels, padded_out = panels * kColumns;
  // Contiguous outputs are computed channels last, then transposed.
  const bool stage = !out.channels_last;
  const int64_t stage_size = stage ? bands.most_pixels() * phase_count * padded_out : 0;
  int64_t longest = 0;
  for (const auto& weight : weights.of_phase) longest = std::max(longest, weight.reduction);
  const int64_t patches_size = kUnitRows * patch_stride(longest) + kUnitDepth;  // copy_patch() writes more
  const int64_t blocks = bands.total() * groups;
  const int64_t shares =
      std::clamp<int64_t>((kTasksPerThread * thread_count() + blocks - 1) / blocks, 1, std::max<int64_t>(1, panels));

  parallel_for(0, blocks * shares, 1, [&](int64_t begin, int64_t end) {
    Number* band_memory = scratch<Number>(band_size + patches_size + 2 * stage_size);
    Number* patches_memory = band_memory + band_size;
    float* stage_memory = reinterpret_cast<float*>(patches_memory + patches_size);
    MatrixUnit unit;
    Positions positions;
    std::vector<Segment> segments;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t block = task / shares, share = task % shares;
      const Band band = bands[block / groups];
      const int64_t group = block % groups;
      const Range own{panels * share / shares, panels * (share + 1) / shares};
      const Rectangle rectangle = read_by(correlation, weights.low, weights.high, band.first, band.size);
      const PixelView<Number> view =
          view_rectangle(in, band, group * operand.sum, operand.sum, rectangle, correlation.border, true, band_memory);
      const bool in_patches =
          operand.sum % kUnitDepth != 0 || !Positions::fill_tiles(correlation, band, view) ||
          correlation.in_step[2] * view.stride[2] * static_cast<int64_t>(sizeof(Number)) % kPage == 0;
      Number* patches = in_patches ? patches_memory : nullptr;
      Number* out_image = band_output(correlation, band, group * operand.out, out);
      for (int64_t phase = 0; phase < phase_count; ++phase) {
        const PackedWeight<Number>& weight = weights.of_phase[static_cast<size_t>(phase)];
        segments_of(phases[static_cast<size_t>(phase)], weights.low, view, operand.sum, segments);
        if (stage) {
          positions.lay_out(correlation, band, view, in_patches, phase_count * padded_out,
                            [&](int64_t n, int64_t d, int64_t h) {
                              const int64_t row = (n * band.size[0] + d) * band.size[1] + h;
                              return (row * band.size[2] * phase_count + phase) * padded_out;
                            });
          multiply_band(unit, positions, view.data, segments, weight, group, own, operand.out, patches,
                        [&](const float* sums, const float* biases, int64_t to, int64_t panel) {
                          float* row = stage_memory + to + panel * kColumns;
                          const float of_pixel =
                              pixel_bias == nullptr ? 0 : read_one(pixel_bias + band.first[2] + to / padded_out);
                          for (int64_t k = 0; k < kColumns; k += kLanes<float>) {
                            store(row + k, load(sums + k) + load(biases + k) + broadcast(of_pixel));
                          }
                        });
        } else {
          positions.lay_out(correlation, band, view, in_patches, correlation.out_step[2] * out.channels,
                            [&](int64_t n, int64_t d, int64_t h) {
                              return n * out.image_stride() + out_pixel(correlation, out.size, d, h, 0) * out.channels;
                            });
          multiply_band(unit, positions, view.data, segments, weight, group, own, operand.out, patches,
                        [&](const float* sums, const float* biases, int64_t to, int64_t panel) {
                          MatrixUnit::round(sums, biases, std::min(kColumns, operand.out - panel * kColumns),
                                            out_image + to + panel * kColumns);
                        });
        }
      }
      if (stage) {
        const int64_t first = own.first * kColumns, last = std::min(operand.out, own.last * kColumns);
        write_band(correlation, band, phase_count, stage_memory + first, padded_out, last - first, out,
                   out_image + first * out.channel_stride());
      }
    }
  });
}

void forward(const ConvGeometry& geometry, Images<const Number> input, Filters<const Number> weight, const Number* bias,
             Images<Number> output) {
  const ConvGeometry g = flatten_pointwise(geometry, input, output);
  const Correlation correlation = forward_correlation(g);
  const int64_t pixels = g.output[2];
  const Extent ones{1, 1, 1};
  // What is packed should be what there is less of. So a few pixels are the filters of a 1x1 convolution whose pixels
  // are the true filters. Its sums are the same, and its contiguous output is the true one in channels_last.
  const bool is_product = g.kernel == ones && g.stride == ones && g.output == Extent{1, 1, pixels} &&
                          g.input == g.output && g.batch == 1 && g.groups == 1 && input.channels_last &&
                          output.channels_last && weight.in_stride == 1;
  if (is_product && pixels > 0 && pixels < g.out_channels) {
    Correlation swapped = correlation;
    swapped.count = {1, 1, g.out_channels};
    const Filters<const Number> filters{input.data, g.in_channels, 1, g.in_channels};
    const Images<const Number> rows{weight.data, g.in_channels, swapped.count, true};
    correlate({swapped}, {filters, g.in_channels, 1, pixels, g.in_channels, 0}, 1, 1, rows, nullptr,
              Images<Number>{output.data, pixels, swapped.count, false}, bias);
  } else {
    correlate({correlation}, forward_operand(g, weight), g.batch, g.groups, input, bias, output);
  }
}

void input_grad(const ConvGeometry& geometry, Images<const Number> grad, Filters<const Number> weight,
                const Number* bias, Images<Number> grad_input) {
  const ConvGeometry g = flatten_pointwise(geometry, grad, grad_input);
  for_phases_of_input_grad(g, grad_input.channels_last, [&](const std::vector<Correlation>& phases) {
    correlate(phases, input_grad_operand(g, weight), g.batch, g.groups, grad, bias, grad_input);
  });
}

}  // namespace

SCRATCHNN_REGISTER_KERNEL(matrix_unit_forward<BFloat16>, &forward);
SCRATCHNN_REGISTER_KERNEL(matrix_unit_input_grad<BFloat16>, &input_grad);
#endif

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

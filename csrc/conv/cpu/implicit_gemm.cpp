// Convolution as matrix products over blocks of pixels: the forward pass and the input gradient.
//
// Row p of the left matrix is the patch of input that output pixel p sees, but the patch is never written out
// (that would be im2col): its rows are runs of the band itself, addressed by segments. The right matrix is the
// weight, packed once per call into panels of kTileColumns output channels. Serves every geometry; reads inputs
// once per kReduction-long slice of the reduction and panel, from cache.
#include <algorithm>

#include "common/gemm.h"
#include "conv/cpu/band.h"
#include "conv/cpu/packed_weight.h"
#include "conv/kernels.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {
namespace {

// Slices of the reduction are at most this long, so that a panel's slice stays in the first-level cache.
template <class T>
constexpr int64_t kReduction = 320 * 4 / sizeof(T);

// A slice [first, last) of the reduction: the segments it is made of.
void slice_segments(const std::vector<Segment>& segments, int64_t first, int64_t last, std::vector<Segment>& slice) {
  slice.clear();
  int64_t position = 0;
  for (const Segment& segment : segments) {
    const int64_t from = std::max(first, position), to = std::min(last, position + segment.length);
    if (from < to) slice.push_back({segment.offset + from - position, to - from});
    position += segment.length;
  }
}

// out = in (*) w: runs one correlation over all bands of all images and groups. E is the type of the numbers that are
// multiplied: Wide<S>, or S itself.
template <class E, class S>
void correlate_in(const Correlation& correlation, const Operand<S>& operand, int64_t batch, int64_t groups,
                  const Images<const S>& in, const S* bias, const Images<S>& out) {
  using T = Wide<S>;
  constexpr int64_t columns = kTileColumns<T>, together = kTogether<E, T>;
  const Bands bands(batch, correlation.count);
  if (bands.total() == 0) return;
  const auto taps = static_cast<int64_t>(correlation.taps.size());
  T* weight_memory = scratch<T>(packed_size(operand, groups, taps), Scratch::kCall);
  const PackedWeight<E> weight = pack<E>(operand, groups, correlation.taps, bias, weight_memory);
  const Extent low = correlation.first_offset(), high = correlation.last_offset();

  const Rectangle largest = read_by(correlation, low, high, {0, 0, 0}, bands.largest());
  const int64_t band_size = round_up(volume(largest.size) * operand.sum, 16);
  const int64_t pixels = volume(bands.largest());
  const int64_t padded_out = weight.panels * columns;
  // Contiguous outputs are computed channels last, then transposed; half precision is rounded when sums are complete.
  const bool stage = !out.channels_last || !std::is_same_v<S, T>;
  const int64_t stage_size = stage ? round_up(pixels * padded_out, 16) : 0;
  const int64_t slices = std::max<int64_t>(1, (weight.reduction + kReduction<E> - 1) / kReduction<E>);

  parallel_for(0, bands.total() * groups, 1, [&](int64_t begin, int64_t end) {
    T* memory = scratch<T>(band_size + stage_size + 2 * pixels * static_cast<int64_t>(sizeof(int64_t) / sizeof(T)));
    E* band_memory = reinterpret_cast<E*>(memory);
    T* stage_memory = memory + band_size;
    int64_t* in_offsets = reinterpret_cast<int64_t*>(stage_memory + stage_size);
    int64_t* out_offsets = in_offsets + pixels;
    std::vector<Segment> segments, slice;
    for (int64_t item = begin; item < end; ++item) {
      const Band band = bands[item / groups];
      const int64_t group = item % groups;
      const Rectangle rectangle = read_by(correlation, low, high, band.first, band.size);
      const PixelView<E> view = view_rectangle(in, band.image, group * operand.sum, operand.sum, rectangle,
                                               correlation.border, true, band_memory);
      segments_of(correlation, low, view, operand.sum, segments);

      const Extent& out_step = correlation.out_step;
      const int64_t out_width = out.size[2], out_height = out.size[1];
      int64_t first_pixel = 0;
      for (int d = 0; d < kSpatialRank; ++d) {
        first_pixel = first_pixel * out.size[d] + correlation.out_base[d] + band.first[d] * out_step[d];
      }
      S* out_image = out.data + band.image * out.image_stride() + group * operand.out * out.channel_stride() +
                     first_pixel * out.pixel_stride();
      const auto out_pixel = [&](int64_t d, int64_t h, int64_t w) {
        return (d * out_step[0] * out_height + h * out_step[1]) * out_width + w * out_step[2];
      };
      for_each_position(band.size, [&](int64_t p, int64_t d, int64_t h, int64_t w) {
        in_offsets[p] = d * correlation.in_step[0] * view.stride[0] + h * correlation.in_step[1] * view.stride[1] +
                        w * correlation.in_step[2] * view.stride[2];
        out_offsets[p] = stage ? p * padded_out : out_pixel(d, h, w) * out.channels;
      });

      T* result = stage_memory;
      if constexpr (std::is_same_v<S, T>) result = stage ? stage_memory : out_image;
      for (int64_t s = 0; s < slices; ++s) {
        const int64_t first = weight.reduction * s / slices / together * together;
        const int64_t last = weight.reduction * (s + 1) / slices / together * together;
        slice_segments(segments, first, last, slice);
        for (int64_t panel = 0; panel < weight.panels; ++panel) {
          const E* b = weight.panel(group, panel) + first * columns;
          const T* bias_at_end = s + 1 == slices ? weight.bias_of(group, panel) : nullptr;
          const int64_t width = stage ? columns : std::min(columns, operand.out - panel * columns);
          for_each_tile(band.pixels(), [&](int64_t p, int64_t rows) {
            with_rows(rows, [&](auto count) {
              multiply_tile<count, together * kProductsInTile, E, T>(
                  view.data, in_offsets + p, slice.data(), static_cast<int64_t>(slice.size()), b,
                  result + panel * columns, out_offsets + p, width, s > 0, bias_at_end);
            });
          });
        }
      }

      if (!stage) continue;
      for (int64_t d = 0; d < band.size[0]; ++d) {
        for (int64_t h = 0; h < band.size[1]; ++h) {
          const T* from = stage_memory + (d * band.size[1] + h) * band.size[2] * padded_out;
          S* to = out_image + out_pixel(d, h, 0) * out.pixel_stride();
          if (out.channels_last) {
            for (int64_t w = 0; w < band.size[2]; ++w) {
              copy_numbers(from + w * padded_out, operand.out, to + w * out_step[2] * out.channels);
            }
          } else if (out_step[2] == 1) {
            transpose_block(from, padded_out, to, out.pixels(), band.size[2], operand.out);
          } else {
            for (int64_t k = 0; k < operand.out; ++k) {
              for (int64_t w = 0; w < band.size[2]; ++w) {
                write_one(to + k * out.pixels() + w * out_step[2], from[w * padded_out + k]);
              }
            }
          }
        }
      }
    }
  });
}

template <class S>
void correlate(const Correlation& correlation, const Operand<S>& operand, int64_t batch, int64_t groups,
               const Images<const S>& in, const S* bias, const Images<S>& out) {
  if constexpr (kMultipliesPairs<S>) {
    if (operand.sum % 2 == 0 && multiplies_pairs()) {
      return correlate_in<S>(correlation, operand, batch, groups, in, bias, out);
    }
  }
  correlate_in<Wide<S>>(correlation, operand, batch, groups, in, bias, out);
}

template <class S>
void forward(const ConvGeometry& geometry, Images<const S> input, Filters<const S> weight, const S* bias,
             Images<S> output) {
  const ConvGeometry g = flatten_pointwise(geometry, input, output);
  correlate(forward_correlation(g), forward_operand(g, weight), g.batch, g.groups, input, bias, output);
}

template <class S>
void input_grad(const ConvGeometry& geometry, Images<const S> grad, Filters<const S> weight, const S* bias,
                Images<S> grad_input) {
  const ConvGeometry g = flatten_pointwise(geometry, grad, grad_input);
  for (const Correlation& correlation : input_grad_correlations(g)) {
    correlate(correlation, input_grad_operand(g, weight), g.batch, g.groups, grad, bias, grad_input);
  }
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

// Bands: blocks of pixels small enough for the cache, with the input they read in channels-last order.
//
// Convolution works through its output band by band. What a band reads is copied once into scratch memory, in
// channels-last order, half precision widened and with the border (zeros, or what the image continues as) written out,
// so that the arithmetic knows neither memory formats nor types of 16 bits nor borders. Only a block is ever copied,
// never the batch. Where the input already looks like that (channels_last, nothing outside of the image), it is read
// in place.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "common/gemm.h"
#include "common/runtime.h"
#include "common/transpose.h"
#include "conv/geometry.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {

constexpr int64_t kBandPixels = 384;

// One tap of the kernel: where it reads, relative to a position's first input pixel, and which weight it uses.
struct Tap {
  Extent offset;
  int64_t weight;
};

// out[base + o * out_step] = sum over taps of  in[o * in_step + tap.offset] . w[tap.weight],  o < count.
//
// The forward pass is one such correlation. The input gradient is one for each residue of the stride: the input
// pixels that meet the same taps.
struct Correlation {
  Extent count;
  Extent in_step;
  Extent out_base;
  Extent out_step;
  std::vector<Tap> taps;
  Border border = Border::kZeros;  // of `in`

  Extent first_offset() const {
    return corner([](int64_t a, int64_t b) { return a < b; });
  }
  Extent last_offset() const {
    return corner([](int64_t a, int64_t b) { return a > b; });
  }

 private:
  template <class Before>
  Extent corner(Before before) const {
    Extent extreme = taps.empty() ? Extent{} : taps[0].offset;
    for (const Tap& tap : taps) {
      for (int d = 0; d < kSpatialRank; ++d) {
        if (before(tap.offset[d], extreme[d])) extreme[d] = tap.offset[d];
      }
    }
    return extreme;
  }
};

// The taps of the whole kernel, row by row, as the forward pass meets them.
inline Correlation forward_correlation(const ConvGeometry& g) {
  Correlation c{g.output, g.stride, {0, 0, 0}, {1, 1, 1}, {}, g.border};
  int64_t weight = 0;
  for (int64_t i = 0; i < g.kernel[0]; ++i) {
    for (int64_t j = 0; j < g.kernel[1]; ++j) {
      for (int64_t k = 0; k < g.kernel[2]; ++k) {
        c.taps.push_back(
            {{i * g.dilation[0] - g.padding[0], j * g.dilation[1] - g.padding[1], k * g.dilation[2] - g.padding[2]},
             weight++});
      }
    }
  }
  return c;
}

// Input pixel i met output pixel o through tap t where i = o S - P + t D. For the pixels of one residue
// (i + P) mod S the taps are the same, and o = (i + P - t D) / S moves by one from pixel to pixel: a correlation of
// dy with those taps. One for each residue that occurs, the first pixel of which is one of the first S; together
// they give every input pixel.
inline std::vector<Correlation> input_grad_correlations(const ConvGeometry& g) {
  Extent number;
  for (int d = 0; d < kSpatialRank; ++d) number[d] = std::min(g.stride[d], g.input[d]);
  std::vector<Correlation> phases;
  for (int64_t index = 0; index < volume(number); ++index) {
    Correlation c{{}, {1, 1, 1}, {}, g.stride, {}};
    c.out_base = {index / (number[1] * number[2]), index / number[2] % number[1], index % number[2]};
    for (int d = 0; d < kSpatialRank; ++d) c.count[d] = (g.input[d] - 1 - c.out_base[d]) / g.stride[d] + 1;
    for (int64_t t = g.taps() - 1; t >= 0; --t) {  // the last tap meets the first output pixel
      const Extent tap{t / (g.kernel[1] * g.kernel[2]), t / g.kernel[2] % g.kernel[1], t % g.kernel[2]};
      Extent offset;
      bool meets = true;
      for (int d = 0; d < kSpatialRank; ++d) {
        const int64_t distance = c.out_base[d] + g.padding[d] - tap[d] * g.dilation[d];
        meets = meets && distance % g.stride[d] == 0;
        offset[d] = distance / g.stride[d];
      }
      if (meets) c.taps.push_back({offset, t});
    }
    phases.push_back(std::move(c));
  }
  return phases;
}

// body(phases) for those correlations, one by one; of contiguous images those of a row at once, whose outputs
// interleave, so that rows are written as a whole.
template <class Body>
void for_phases_of_input_grad(const ConvGeometry& g, bool channels_last, const Body& body) {
  const std::vector<Correlation> phases = input_grad_correlations(g);
  const int64_t together = channels_last ? 1 : std::min(g.stride[2], g.input[2]);
  for (auto phase = phases.begin(); phase != phases.end(); phase += together) {
    body(std::vector<Correlation>(phase, phase + together));
  }
}

// How a correlation is cut into bands: positions [first, first + size) of one image, or all positions of several.
struct Band {
  int64_t image;
  int64_t images;
  Extent first;
  Extent size;
  int64_t pixels() const { return images * volume(size); }
};

class Bands {
 public:
  // Small images share a band, up to `most_images` of them.
  Bands(int64_t batch, const Extent& count, int64_t most_pixels = kBandPixels, int64_t most_images = 1)
      : batch_(batch), count_(count) {
    int64_t room = std::max<int64_t>(1, most_pixels);
    for (int d = kSpatialRank - 1; d >= 0; --d) {
      // As even as can be: 9 rows in bands of 8 become 5 + 4, not 8 + 1.
      size_[d] = std::clamp<int64_t>(d == 0 && most_images == 1 ? 1 : room, 1, std::max<int64_t>(count[d], 1));
      number_[d] = (count[d] + size_[d] - 1) / size_[d];
      if (number_[d] > 0) size_[d] = (count[d] + number_[d] - 1) / number_[d];
      number_[d] = (count[d] + size_[d] - 1) / size_[d];
      room = size_[d] < count[d] ? 1 : std::max<int64_t>(1, room / size_[d]);
    }
    per_image_ = volume(number_);
    const int64_t together = std::clamp<int64_t>(std::min(room, most_images), 1, std::max<int64_t>(1, batch));
    runs_ = (batch + together - 1) / together;
    images_ = runs_ > 0 ? (batch + runs_ - 1) / runs_ : 1;
    total_ = runs_ * per_image_;
  }

  int64_t total() const { return total_; }
  const Extent& largest() const { return size_; }
  int64_t most_images() const { return images_; }
  int64_t most_pixels() const { return images_ * volume(size_); }

  Band operator[](int64_t index) const {
    const int64_t run = index / per_image_, first = batch_ * run / runs_;
    Band band{first, batch_ * (run + 1) / runs_ - first, {}, {}};
    int64_t rest = index % per_image_;
    for (int d = kSpatialRank - 1; d >= 0; --d) {
      band.first[d] = rest % number_[d] * size_[d];
      band.size[d] = std::min(size_[d], count_[d] - band.first[d]);
      rest /= number_[d];
    }
    return band;
  }

 private:
  int64_t batch_;
  Extent count_, size_, number_;
  int64_t per_image_, runs_, images_, total_;
};

// Whether any position reads what lies outside of an image of that size.
inline bool meets_border(const Correlation& c, const Extent& size) {
  const Extent low = c.first_offset(), high = c.last_offset();
  for (int d = 0; d < kSpatialRank; ++d) {
    if (low[d] < 0 || (c.count[d] - 1) * c.in_step[d] + high[d] >= size[d]) return true;
  }
  return false;
}

// Whether a tap at `offset` reads the image, and not its border, for the positions of a box: for all of them, or for
// none.
inline bool reads_image(const Correlation& c, const Extent& size, const Band& box, const Extent& offset) {
  for (int d = 0; d < kSpatialRank; ++d) {
    const int64_t at = box.first[d] * c.in_step[d] + offset[d];
    if (at < 0 || at >= size[d]) return false;
  }
  return true;
}

// A band as boxes of positions whose taps read the image alike: a band in the middle of it is one box, and one at its
// edge has the edge's positions in boxes of their own.
inline void cut_at_border(const Correlation& c, const Extent& size, const Band& band, std::vector<Band>& boxes) {
  boxes.assign(1, band);
  for (int d = 0; d < kSpatialRank; ++d) {
    const auto alike = [&](int64_t a, int64_t b) {
      for (const Tap& tap : c.taps) {
        const int64_t at_a = a * c.in_step[d] + tap.offset[d], at_b = b * c.in_step[d] + tap.offset[d];
        if ((at_a >= 0 && at_a < size[d]) != (at_b >= 0 && at_b < size[d])) return false;
      }
      return true;
    };
    const size_t whole = boxes.size();
    const int64_t end = band.first[d] + band.size[d];
    for (int64_t from = band.first[d], to; from < end; from = to) {
      for (to = from + 1; to < end && alike(from, to); ++to) {
      }
      for (size_t i = 0; i < whole; ++i) {
        Band box = boxes[i];
        box.first[d] = from;
        box.size[d] = to - from;
        boxes.push_back(box);
      }
    }
    boxes.erase(boxes.begin(), boxes.begin() + static_cast<std::ptrdiff_t>(whole));
  }
}

// Pixels in channels-last order: pixel (d, h, w) of a band's image n starts at
// data + n * image_stride + d * stride[0] + h * stride[1] + w * stride[2].
template <class T>
struct PixelView {
  const T* data;
  Extent stride;
  int64_t image_stride;
};

// The input pixels of a rectangle, and how many there can be at most.
struct Rectangle {
  Extent first;
  Extent size;
};

inline Rectangle read_by(const Correlation& c, const Extent& low, const Extent& high, const Extent& first,
                         const Extent& size) {
  Rectangle r;
  for (int d = 0; d < kSpatialRank; ++d) {
    r.first[d] = first[d] * c.in_step[d] + low[d];
    r.size[d] = (size[d] - 1) * c.in_step[d] + high[d] - low[d] + 1;
  }
  return r;
}

// Copies channels [channel, channel + channels) of a rectangle of one image and its border to `out`.
template <class S, class E>
void copy_rectangle(const Images<const S>& images, int64_t image, int64_t channel, int64_t channels, const Rectangle& r,
                    Border border, E* out) {
  const S* source = images.data + image * images.image_stride() + channel * images.channel_stride();
  const Extent& size = images.size;
  const int64_t inside_first = std::clamp<int64_t>(-r.first[2], 0, r.size[2]);
  const int64_t inside_last = std::clamp<int64_t>(size[2] - r.first[2], inside_first, r.size[2]);
  const auto zero = [&](E* from, int64_t pixels) {
    std::memset(from, 0, static_cast<size_t>(pixels * channels) * sizeof(E));
  };
  // Columns [first, last) of a row, all of them left or right of the image.
  const auto continue_row = [&](const S* row, int64_t first, int64_t last) {
    if (border == Border::kZeros) return zero(out + first * channels, last - first);
    for (int64_t w = first; w < last; ++w) {
      const int64_t pixel = border_pixel(r.first[2] + w, size[2], border);
      if (pixel < 0) {
        zero(out + w * channels, 1);
        continue;
      }
      const S* from = row + pixel * images.pixel_stride();
      for (int64_t c = 0; c < channels; ++c) {
        write_one(out + w * channels + c, read_one(from + c * images.channel_stride()));
      }
    }
  };
  // Whole rows lie side by side.
  const bool whole = r.first[1] >= 0 && r.first[1] + r.size[1] <= size[1] && r.size[2] == size[2] && r.first[2] == 0;
  if (!images.channels_last && whole && r.size[0] == 1 && r.first[0] >= 0 && r.first[0] < size[0]) {
    const S* first = source + (r.first[0] * size[1] + r.first[1]) * size[2];
    if (channels == 1) return copy_numbers(first, r.size[1] * r.size[2], out);
    return transpose_block<true>(first, images.pixels(), out, channels, channels, r.size[1] * r.size[2]);
  }
  for (int64_t d = r.first[0]; d < r.first[0] + r.size[0]; ++d) {
    for (int64_t h = r.first[1]; h < r.first[1] + r.size[1]; ++h, out += r.size[2] * channels) {
      const int64_t plane = border_pixel(d, size[0], border), line = border_pixel(h, size[1], border);
      if (plane < 0 || line < 0) {
        zero(out, r.size[2]);
        continue;
      }
      const S* first_of_row = source + (plane * size[1] + line) * size[2] * images.pixel_stride();
      continue_row(first_of_row, 0, inside_first);
      continue_row(first_of_row, inside_last, r.size[2]);
      const int64_t count = inside_last - inside_first;
      if (count == 0) continue;
      const S* row = first_of_row + (r.first[2] + inside_first) * images.pixel_stride();
      E* to = out + inside_first * channels;
      if (!images.channels_last && channels == 1) {
        copy_numbers(row, count, to);
      } else if (!images.channels_last) {
        transpose_block<true>(row, images.pixels(), to, channels, channels, count);
      } else if (channels == images.channels) {
        copy_numbers(row, count * channels, to);
      } else {
        for (int64_t i = 0; i < count; ++i) copy_numbers(row + i * images.channels, channels, to + i * channels);
      }
    }
  }
}

// What a band reads of its images, channels last: in place where it can be, else copied to `memory`.
template <class S, class E>
PixelView<E> view_rectangle(const Images<const S>& images, const Band& band, int64_t channel, int64_t channels,
                            const Rectangle& r, Border border, bool may_read_in_place, E* memory) {
  bool inside = images.channels_last && may_read_in_place;
  for (int d = 0; d < kSpatialRank; ++d) {
    inside = inside && r.first[d] >= 0 && r.first[d] + r.size[d] <= images.size[d];
  }
  if constexpr (std::is_same_v<S, E>) {
    if (inside) {
      const Extent stride{images.size[1] * images.size[2] * images.channels, images.size[2] * images.channels,
                          images.channels};
      const S* first = images.data + band.image * images.image_stride() + channel + r.first[0] * stride[0] +
                       r.first[1] * stride[1] + r.first[2] * stride[2];
      return {first, stride, images.image_stride()};
    }
  }
  const int64_t image_size = volume(r.size) * channels;
  for (int64_t n = 0; n < band.images; ++n) {
    copy_rectangle(images, band.image + n, channel, channels, r, border, memory + n * image_size);
  }
  return {memory, {r.size[1] * r.size[2] * channels, r.size[2] * channels, channels}, image_size};
}

// What a band reads of its images, asked of memory in as many steps; nothing where it does not lie in one piece.
template <class S>
Upcoming upcoming_rows(const Images<const S>& images, const Band& band, const Rectangle& r, int64_t steps) {
  Extent first, last;
  for (int d = 0; d < kSpatialRank; ++d) {
    first[d] = std::clamp<int64_t>(r.first[d], 0, images.size[d]);
    last[d] = std::clamp<int64_t>(r.first[d] + r.size[d], first[d], images.size[d]);
  }
  const bool whole_rows = first[2] == 0 && last[2] == images.size[2];
  if (!images.channels_last || volume({last[0] - first[0], last[1] - first[1], last[2] - first[2]}) == 0) return {};
  if (!whole_rows && volume(band.size) != band.size[2]) return {};
  const auto pixel = [&](int64_t image, int64_t d, int64_t h, int64_t w) {
    return images.data + image * images.image_stride() +
           ((d * images.size[1] + h) * images.size[2] + w) * images.pixel_stride();
  };
  const S* from = pixel(band.image, first[0], first[1], first[2]);
  const S* to = pixel(band.image + band.images - 1, last[0] - 1, last[1] - 1, last[2]);
  return {from, to - from, steps};
}

// The reduction as segments of a view: taps side by side in a row are one segment where their pixels lie side by
// side in memory. Only the taps that `takes` are in it.
template <class T, class Takes>
void segments_of(const Correlation& c, const Extent& low, const PixelView<T>& view, int64_t channels,
                 std::vector<Segment>& segments, const Takes& takes) {
  segments.clear();
  bool follows = false;  // on the tap before
  for (size_t t = 0; t < c.taps.size(); ++t) {
    const Extent& at = c.taps[t].offset;
    if (!takes(at)) {
      follows = false;
      continue;
    }
    if (follows && view.stride[2] == channels) {
      const Extent& before = c.taps[t - 1].offset;
      if (at == Extent{before[0], before[1], before[2] + 1}) {
        segments.back().length += channels;
        continue;
      }
    }
    segments.push_back(
        {(at[0] - low[0]) * view.stride[0] + (at[1] - low[1]) * view.stride[1] + (at[2] - low[2]) * view.stride[2],
         channels, static_cast<int64_t>(t) * channels});
    follows = true;
  }
}
template <class T>
void segments_of(const Correlation& c, const Extent& low, const PixelView<T>& view, int64_t channels,
                 std::vector<Segment>& segments) {
  segments_of(c, low, view, channels, segments, [](const Extent&) { return true; });
}

// Where the taps of a correlation read in a view, relative to an output's first input pixel.
template <class T>
void tap_offsets(const Correlation& correlation, const Extent& low, const PixelView<T>& view, int64_t* offsets) {
  for (const Tap& tap : correlation.taps) {
    *offsets++ = (tap.offset[0] - low[0]) * view.stride[0] + (tap.offset[1] - low[1]) * view.stride[1] +
                 (tap.offset[2] - low[2]) * view.stride[2];
  }
}

// Calls body(p, n, d, h) for each row of a band, in order: its first position is the band's p-th.
template <class Body>
SCRATCHNN_INLINE void for_each_row(const Band& band, const Body& body) {
  int64_t p = 0;
  for (int64_t n = 0; n < band.images; ++n) {
    for (int64_t d = 0; d < band.size[0]; ++d) {
      for (int64_t h = 0; h < band.size[1]; ++h, p += band.size[2]) body(p, n, d, h);
    }
  }
}

// Calls body(p, n, d, h, w) for each position of a band, in order.
template <class Body>
SCRATCHNN_INLINE void for_each_position(const Band& band, const Body& body) {
  for_each_row(band, [&](int64_t p, int64_t n, int64_t d, int64_t h) {
    for (int64_t w = 0; w < band.size[2]; ++w) body(p + w, n, d, h, w);
  });
}

// A 1x1 convolution of stride 1 sees no neighbours: all pixels, in channels_last those of all images, are one row.
template <class T, class U>
ConvGeometry flatten_pointwise(ConvGeometry g, Images<T>& a, Images<U>& b) {
  const Extent ones{1, 1, 1}, zeros{0, 0, 0};
  if (g.kernel != ones || g.stride != ones || g.padding != zeros || g.output != g.input) return g;
  int64_t pixels = volume(g.input);
  if (a.channels_last && b.channels_last) {
    pixels *= g.batch;
    g.batch = 1;
  }
  g.input = g.output = a.size = b.size = {1, 1, pixels};
  return g;
}

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

// Blocks of channels: what depthwise convolution works on, whatever the memory format.
//
// A block is as many channels as fill a cache line. Of a block, a band's pixels are read where they lie if each is
// whole vectors, else copied: channels_last line by line, contiguous images transposed, half precision widened. A
// channel is then always a lane, and the last block of a tensor is filled up to whole vectors.
#pragma once

#include <algorithm>

#include "common/stream.h"
#include "conv/cpu/band.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {

template <class T>
constexpr int kBlock = 64 / static_cast<int>(sizeof(T));
template <class T>
constexpr int kBlockVectors = kBlock<T> / kLanes<T>;

// How images are cut into bands for blocks of channels. In three dimensions a band has some depth, so that most of what
// a kernel reads of the slices before and after is in the band itself.
class BlockBands {
 public:
  // `channels` of each pixel are wanted in the cache together; each position spans `spread` pixels.
  BlockBands(int64_t batch, const Extent& count, int64_t channels, int64_t most_numbers, int64_t spread)
      : deep_(count[0] > 1),
        count_(count[0]),
        depth_(deep_ ? even(count[0], kDepth) : 1),
        bands_(batch, {(count[0] + depth_ - 1) / depth_, count[1], count[2]},
               std::max<int64_t>(8, deep_ ? kDeepPixels / depth_ / spread : most_numbers / channels / spread)) {}

  int64_t total() const { return bands_.total(); }
  bool deep() const { return deep_; }
  Extent largest() const { return {depth_, bands_.largest()[1], bands_.largest()[2]}; }
  Band operator[](int64_t index) const {
    Band band = bands_[index];
    band.first[0] *= depth_;
    band.size[0] = std::min(depth_, count_ - band.first[0]);
    return band;
  }

 private:
  static constexpr int64_t kDepth = 8, kDeepPixels = 1536;
  static int64_t even(int64_t count, int64_t most) {
    const int64_t number = (count + most - 1) / most;
    return (count + number - 1) / number;
  }

  bool deep_;
  int64_t count_, depth_;
  Bands bands_;
};

// Some pixels of an image, one block of channels of each: pixel (d, h, w) is at
// data + (d - first[0]) * stride[0] + ..., where first <= (d, h, w) < first + size. Pixels outside are zeros, and are
// not there to be read.
template <class T>
struct BlockView {
  const T* data;
  Extent first, size, stride;
};

// The largest number of numbers that view_block copies of a rectangle.
template <class T>
int64_t block_size(const Rectangle& r) {
  return volume(r.size) * kBlock<T>;
}

// What is soon read, asked of memory a few lines at a time while something else is computed. Blocks of channels are
// pieces too short, or too far apart, for the processor to see a pattern.
class UpcomingPixels {
 public:
  UpcomingPixels() = default;

  // What a rectangle's channels [channel, channel + channels) lie in, in as many steps.
  template <class S>
  UpcomingPixels(const Images<const S>& images, int64_t image, int64_t channel, int64_t channels, const Rectangle& r,
                 int64_t steps) {
    Extent first, size;
    for (int d = 0; d < kSpatialRank; ++d) {
      first[d] = std::clamp<int64_t>(r.first[d], 0, images.size[d]);
      size[d] = std::clamp<int64_t>(r.first[d] + r.size[d], first[d], images.size[d]) - first[d];
    }
    const int64_t row = images.size[2], pixels = (size[1] - 1) * row + size[2];  // of a slice
    if (volume(size) == 0 || (size[2] != row && size[1] > 1)) return;
    const int64_t pixel = images.pixel_stride(), size_of = sizeof(S);
    slice_ =
        reinterpret_cast<const char*>(images.data + image * images.image_stride() + channel * images.channel_stride() +
                                      ((first[0] * images.size[1] + first[1]) * row + first[2]) * pixel);
    slice_stride_ = images.size[1] * row * pixel * size_of;
    slices_ = size[0];
    pieces_ = !images.channels_last ? channels : channels == images.channels ? 1 : pixels;
    bytes_ = (images.channels_last ? channels * pixels / pieces_ : pixels) * size_of;
    stride_ = (images.channels_last ? images.channels : images.channel_stride()) * size_of;
    lines_ = slices_ * pieces_ * (bytes_ / kLine + 1) / std::max<int64_t>(1, steps) + 1;
    begin_piece();
  }

  SCRATCHNN_MEMBER void step() {
    for (int64_t i = 0; i < lines_ && slices_ > 0; ++i, at_ += kLine) {
      prefetch(at_);
      if (at_ + kLine < end_) continue;
      if (++piece_ == pieces_) {
        piece_ = 0;
        slice_ += slice_stride_;
        --slices_;
      }
      begin_piece();
      at_ -= kLine;
    }
  }

 private:
  static constexpr int64_t kLine = 64;
  SCRATCHNN_MEMBER void begin_piece() {
    at_ = slice_ + piece_ * stride_;
    end_ = at_ + bytes_;
  }

  const char *slice_ = nullptr, *at_ = nullptr, *end_ = nullptr;
  int64_t slices_ = 0, pieces_ = 0, piece_ = 0, bytes_ = 0, slice_stride_ = 0, stride_ = 0, lines_ = 0;
};

// channels x pixels of a contiguous image to pixels x kBlock; lanes without a channel become zero.
template <class S>
void channels_to_lanes(const S* plane, int64_t plane_stride, int64_t channels, int64_t pixels, Wide<S>* out) {
  using T = Wide<S>;
  constexpr int n = kLanes<T>;
  for (int64_t p = 0; p < pixels; p += n) {
    const int64_t count = std::min<int64_t>(n, pixels - p);
    for (int64_t c = 0; c < channels; c += n) {
      const S* from = plane + c * plane_stride + p;
      T* to = out + p * kBlock<T> + c;
      Vec<T> rows[n];
      if (count == n && c + n <= channels) {
#pragma GCC unroll 16
        for (int i = 0; i < n; ++i) rows[i] = read(from + i * plane_stride);
        transpose<T>(rows);
#pragma GCC unroll 16
        for (int i = 0; i < n; ++i) store(to + i * kBlock<T>, rows[i]);
      } else {
        for (int i = 0; i < n; ++i) {
          rows[i] = c + i < channels ? read_partial(from + i * plane_stride, count) : Vec<T>{};
        }
        transpose<T>(rows);
        for (int i = 0; i < count; ++i) store(to + i * kBlock<T>, rows[i]);
      }
    }
  }
}

// The way back; where `streamed`, whole vectors are written past the cache (stream.h).
template <class S>
void lanes_to_channels(const Wide<S>* in, int64_t channels, int64_t pixels, S* plane, int64_t plane_stride,
                       bool streamed = false) {
  using T = Wide<S>;
  constexpr int n = kLanes<T>;
  for (int64_t p = 0; p < pixels; p += n) {
    const int64_t count = std::min<int64_t>(n, pixels - p);
    for (int64_t c = 0; c < channels; c += n) {
      const T* from = in + p * kBlock<T> + c;
      S* to = plane + c * plane_stride + p;
      Vec<T> rows[n];
      if (count == n && c + n <= channels) {
#pragma GCC unroll 16
        for (int i = 0; i < n; ++i) rows[i] = load(from + i * kBlock<T>);
        transpose<T>(rows);
#pragma GCC unroll 16
        for (int i = 0; i < n; ++i) {
          streamed ? stream(to + i * plane_stride, rows[i]) : write(to + i * plane_stride, rows[i]);
        }
      } else {
        for (int i = 0; i < n; ++i) rows[i] = i < count ? load(from + i * kBlock<T>) : Vec<T>{};
        transpose<T>(rows);
        const int64_t rest = std::min<int64_t>(n, channels - c);
        for (int i = 0; i < rest; ++i) write_partial(to + i * plane_stride, rows[i], count);
      }
    }
  }
}

// `pixels` neighbours in memory, of an image's channels [channel, channel + channels), from the one at `pixel` on.
template <class S>
SCRATCHNN_INLINE void copy_pixels(const Images<const S>& images, const S* pixel, int64_t channels, int64_t pixels,
                                  Wide<S>* out) {
  using T = Wide<S>;
  if (!images.channels_last) return channels_to_lanes(pixel, images.pixels(), channels, pixels, out);
  for (int64_t p = 0; p < pixels; ++p, pixel += images.channels, out += kBlock<T>) {
    if (channels == kBlock<T>) {
#pragma GCC unroll 4
      for (int c = 0; c < kBlock<T>; c += kLanes<T>) store(out + c, read(pixel + c));
      continue;
    }
    for (int64_t c = 0; c < channels; c += kLanes<T>) {
      store(out + c, read_partial(pixel + c, std::min<int64_t>(kLanes<T>, channels - c)));
    }
  }
}

// Of one image, the pixels of a rectangle that are in it and, where the border is not zeros, those around it.
template <class S>
BlockView<Wide<S>> view_block(const Images<const S>& images, int64_t image, int64_t channel, int64_t channels,
                              const Rectangle& r, Border border, Wide<S>* memory) {
  using T = Wide<S>;
  const S* source = images.data + image * images.image_stride() + channel * images.channel_stride();
  const Extent& size = images.size;
  const int64_t pixel = images.pixel_stride();
  BlockView<T> view{memory, r.first, r.size, {}};
  bool inside = true;
  for (int d = 0; d < kSpatialRank; ++d) {
    const int64_t first = std::clamp<int64_t>(r.first[d], 0, size[d]);
    const int64_t last = std::clamp<int64_t>(r.first[d] + r.size[d], first, size[d]);
    inside = inside && first == r.first[d] && last == r.first[d] + r.size[d];
    if (border == Border::kZeros) {
      view.first[d] = first;
      view.size[d] = last - first;
    }
  }
  inside = inside || border == Border::kZeros;
  const auto at = [&](int64_t d, int64_t h, int64_t w) { return source + ((d * size[1] + h) * size[2] + w) * pixel; };
  if constexpr (std::is_same_v<S, T>) {
    // Pixels that lie a multiple of a large power of two apart would share a few sets of the cache.
    const bool spread = pixel * static_cast<int64_t>(sizeof(S)) % 512 != 0;
    if (inside && images.channels_last && channels % kLanes<T> == 0 && spread) {
      view.data = at(view.first[0], view.first[1], view.first[2]);
      view.stride = {size[1] * size[2] * pixel, size[2] * pixel, pixel};
      return view;
    }
  }
  view.stride = {view.size[1] * view.size[2] * kBlock<T>, view.size[2] * kBlock<T>, kBlock<T>};
  const Extent &from = view.first, &count = view.size;
  for (int64_t d = from[0]; d < from[0] + count[0]; ++d) {
    if (inside && count[2] == size[2]) {  // whole rows follow each other in memory
      copy_pixels(images, at(d, from[1], 0), channels, count[1] * count[2], memory);
      memory += view.stride[0];
      continue;
    }
    for (int64_t h = from[1]; h < from[1] + count[1]; ++h, memory += view.stride[1]) {
      if (inside) {
        copy_pixels(images, at(d, h, from[2]), channels, count[2], memory);
        continue;
      }
      const int64_t plane = border_pixel(d, size[0], border), line = border_pixel(h, size[1], border);
      for (int64_t w = 0; w < count[2];) {
        const int64_t column = border_pixel(from[2] + w, size[2], border);
        // The image's own columns go in one piece.
        const int64_t run = column == from[2] + w ? std::min(size[2] - column, count[2] - w) : 1;
        if (plane < 0 || line < 0 || column < 0) {
          std::fill_n(memory + w * kBlock<T>, run * kBlock<T>, T(0));
        } else {
          copy_pixels(images, at(plane, line, column), channels, run, memory + w * kBlock<T>);
        }
        w += run;
      }
    }
  }
  return view;
}

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

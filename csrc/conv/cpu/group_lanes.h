// Groups of few channels in vectors: which lane holds which channel, and the bands in that order.
//
// A group has a slot of lanes, and a vector as many slots as it has room for: what a group's output channels are
// computed from, the neighbours in their own slot, is a shuffle inside of the vector away.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>

#include "common/half.h"
#include "conv/cpu/band.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {

// The channels of one side of a convolution, its inputs or its outputs. A block is `together` groups. Three channels a
// group in slots of four lanes, two groups to a vector:
//
//     | a0 a1 a2  . | b0 b1 b2  . |
//
// Five in slots of four take two vectors a block; the lanes beyond a group's last channel are zero:
//
//     | a0 a1 a2 a3 | b0 b1 b2 b3 |   | a4  .  .  . | b4  .  .  . |
template <class T>
struct GroupLanes {
  int64_t groups;
  int64_t channels;  // of a group
  int64_t slot;      // lanes of a group: 1, 2, 4 ... kLanes

  int64_t together() const { return kLanes<T> / slot; }
  int64_t blocks() const { return (groups + together() - 1) / together(); }
  int64_t vectors() const { return (channels + slot - 1) / slot; }  // of a block
  int64_t width() const { return vectors() * kLanes<T>; }
  int64_t groups_of(int64_t block) const { return std::min(together(), groups - block * together()); }
  int64_t first_channel(int64_t block) const { return block * together() * channels; }
  int64_t channels_of(int64_t block) const { return groups_of(block) * channels; }
  int64_t lane(int64_t group, int64_t channel) const {
    return channel / slot * kLanes<T> + group * slot + channel % slot;
  }
  // Whether a block's channels lie in their lanes as they lie in memory.
  bool in_order() const { return channels == slot || slot == kLanes<T>; }
};

// The lanes of a group whose outputs are to fill vectors.
template <class T>
int64_t slot_of(int64_t channels) {
  int64_t slot = 1;
  while (slot < channels && slot < kLanes<T>) slot *= 2;
  return slot;
}

// Lane j of each slot, in all lanes of the slot.
template <class T, int slot, int j, int... i>
SCRATCHNN_INLINE Vec<T> spread_lanes(Vec<T> v, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(v, v, (i / slot * slot + j)...);
}

// Channel j of each group, in all lanes of its slot. `p` is where a pixel's vector begins. Where one group fills a
// vector, and where each lane is one, j must be zero and p lead to the channel.
template <int slot, int j, class T>
SCRATCHNN_INLINE Vec<T> spread(const T* p) {
  if constexpr (slot == kLanes<T>) {
    return broadcast(*p);
  } else if constexpr (slot == 1) {
    return load(p);
  } else {
    return spread_lanes<T, slot, j>(load(p), std::make_integer_sequence<int, kLanes<T>>());
  }
}

// The same pointer, and what it leads to is loaded anew: gcc would keep the vectors of all pixels for their next
// channel, and spill the sums.
template <class T>
SCRATCHNN_INLINE const T* read_anew(const T* p) {
  asm volatile("" : "+r"(p));
  return p;
}

// Calls body(std::integral_constant<int, j>, p, c) for each channel c of a group: it is spread<slot, j>(p).
template <int slot, class T, class Body>
SCRATCHNN_INLINE void for_each_channel(const T* p, int64_t channels, const Body& body) {
  if constexpr (slot == kLanes<T> || slot == 1) {
#pragma GCC unroll 1
    for (int64_t c = 0; c < channels; ++c)
      body(std::integral_constant<int, 0>(), p + (slot == 1 ? c * kLanes<T> : c), c);
  } else {
#pragma GCC unroll 1
    for (int64_t c = 0; c < channels; c += slot, p += kLanes<T>) {
      const auto one = [&](auto j) __attribute__((always_inline)) {
        if (c + j >= channels) return;
        body(j, read_anew(p), c + j);
      };
      [&]<int... j>(std::integer_sequence<int, j...>) __attribute__((always_inline)) {
        (one(std::integral_constant<int, j>()), ...);
      }(std::make_integer_sequence<int, slot>());
    }
  }
}

// Pixels of a band, blocks [first, first + count) of their channels: pixel (n, d, h, w) of block b starts at
// data + (b - first) * block_stride + n * image_stride + d * stride[0] + h * stride[1] + w * stride[2].
template <class T>
struct GroupView {
  T* data;
  Extent stride;
  int64_t image_stride, block_stride;

  GroupView(T* memory, const Extent& size, int64_t images, int64_t width)
      : data(memory),
        stride{size[1] * size[2] * width, size[2] * width, width},
        image_stride(volume(size) * width),
        block_stride(block_size(images * volume(size), width)) {}

  // With some more, so that the blocks of a pixel do not all fall on the same lines of the cache.
  static int64_t block_size(int64_t pixels, int64_t width) { return round_up(pixels * width, 16) + 16; }
};

// `pixels` neighbours in a row of an image, from `from` on, to a row of blocks.
template <class S, class T>
SCRATCHNN_INLINE void pack_pixels(const GroupLanes<T>& lanes, const Images<const S>& images, const S* from,
                                  int64_t pixels, int64_t first, int64_t count, int64_t block_stride, T* to) {
  constexpr int n = kLanes<T>;
  const int64_t width = lanes.width(), channel_stride = images.channel_stride(), pixel_stride = images.pixel_stride();
  if (!lanes.in_order()) {
    for (int64_t b = 0; b < count; ++b, to += block_stride) {
      std::fill_n(to, pixels * width, T(0));
      for (int64_t g = 0; g < lanes.groups_of(first + b); ++g) {
        for (int64_t c = 0; c < lanes.channels; ++c, from += channel_stride) {
          T* lane = to + lanes.lane(g, c);
          for (int64_t p = 0; p < pixels; ++p) lane[p * width] = read_one(from + p * pixel_stride);
        }
      }
    }
  } else if (images.channels_last) {
    const int64_t of_whole = lanes.together() * lanes.channels;
    const int64_t whole = lanes.groups_of(first + count - 1) == lanes.together() ? count : count - 1;
    for (int64_t p = 0; p < pixels; ++p) {
      const S* channel = from + p * pixel_stride;
      T* vector = to + p * width;
      const auto copy = [&](int64_t channels) {
        int64_t c = 0;
        for (; c + n <= channels; c += n) store(vector + c, read(channel + c));
        if (c < channels) store(vector + c, read_partial(channel + c, channels - c));
      };
      if (of_whole == n) {
        for (int64_t b = 0; b < whole; ++b, channel += n, vector += block_stride) store(vector, read(channel));
      } else {
        for (int64_t b = 0; b < whole; ++b, channel += of_whole, vector += block_stride) copy(of_whole);
      }
      if (whole < count) copy(lanes.channels_of(first + whole));
    }
  } else {
    for (int64_t b = 0; b < count; ++b, to += block_stride) {
      const int64_t channels = lanes.channels_of(first + b);
      for (int64_t c = 0; c < channels; c += n) {
        const int64_t rows = std::min<int64_t>(n, channels - c);
        for (int64_t p = 0; p < pixels; p += n) {
          const int64_t columns = std::min<int64_t>(n, pixels - p);
          const S* row = from + c * channel_stride + p;
          T* column = to + p * width + c;
          Vec<T> block[n];
          if (rows == n && columns == n) {
            for (int i = 0; i < n; ++i) block[i] = read(row + i * channel_stride);
            transpose<T>(block);
            for (int i = 0; i < n; ++i) store(column + i * width, block[i]);
          } else {
            for (int i = 0; i < n; ++i) block[i] = Vec<T>{};
            for (int i = 0; i < rows; ++i) block[i] = read_partial(row + i * channel_stride, columns);
            transpose<T>(block);
            for (int i = 0; i < columns; ++i) store(column + i * width, block[i]);
          }
        }
      }
      from += channels * channel_stride;
    }
  }
}

// Blocks [first, first + count) of a rectangle of each of a band's images and its border.
template <class S, class T>
void pack_band(const GroupLanes<T>& lanes, const Images<const S>& images, const Band& band, const Rectangle& r,
               Border border, int64_t first, int64_t count, const GroupView<T>& view) {
  if (!images.channels_last && count > 1) {  // few planes at a time: memory delivers as many streams quickly
    GroupView<T> one = view;
    for (int64_t b = 0; b < count; ++b, one.data += view.block_stride) {
      pack_band(lanes, images, band, r, border, first + b, 1, one);
    }
    return;
  }
  const Extent& size = images.size;
  const int64_t left = std::clamp<int64_t>(-r.first[2], 0, r.size[2]);
  const int64_t right = std::clamp<int64_t>(size[2] - r.first[2], left, r.size[2]);
  const S* source = images.data + lanes.first_channel(first) * images.channel_stride();
  for (int64_t n = 0; n < band.images; ++n) {
    for (int64_t d = 0; d < r.size[0]; ++d) {
      for (int64_t h = 0; h < r.size[1]; ++h) {
        T* to = view.data + n * view.image_stride + d * view.stride[0] + h * view.stride[1];
        const auto zero = [&](int64_t from, int64_t last) {
          if (from >= last) return;
          for (int64_t b = 0; b < count; ++b) {
            std::fill_n(to + b * view.block_stride + from * view.stride[2], (last - from) * view.stride[2], T(0));
          }
        };
        const int64_t plane = border_pixel(r.first[0] + d, size[0], border);
        const int64_t line = border_pixel(r.first[1] + h, size[1], border);
        if (plane < 0 || line < 0) {
          zero(0, r.size[2]);
          continue;
        }
        const S* row = source + (band.image + n) * images.image_stride() +
                       (plane * size[1] + line) * size[2] * images.pixel_stride();
        const auto copy = [&](int64_t w, int64_t pixel, int64_t pixels) {
          pack_pixels(lanes, images, row + pixel * images.pixel_stride(), pixels, first, count, view.block_stride,
                      to + w * view.stride[2]);
        };
        const auto outside = [&](int64_t from, int64_t last) {
          if (border == Border::kZeros) return zero(from, last);
          for (int64_t w = from; w < last; ++w) {
            const int64_t pixel = border_pixel(r.first[2] + w, size[2], border);
            pixel < 0 ? zero(w, w + 1) : copy(w, pixel, 1);
          }
        };
        outside(0, left);
        copy(left, r.first[2] + left, right - left);
        outside(right, r.size[2]);
      }
    }
  }
}

// The taps of a correlation, some neighbours in a row of the kernel together: where an output's pixel under one tap is
// the next output's under the tap before, it is read once for both.
constexpr int kTapsTogether = 3;

struct TapRun {
  int64_t first;  // of the correlation's taps
  int64_t count;
};

inline std::vector<TapRun> tap_runs(const Correlation& correlation) {
  std::vector<TapRun> runs;
  for (int64_t t = 0; t < static_cast<int64_t>(correlation.taps.size()); ++t) {
    const Extent& at = correlation.taps[t].offset;
    if (t > 0 && runs.back().count < kTapsTogether) {
      const Extent& before = correlation.taps[t - 1].offset;
      if (at == Extent{before[0], before[1], before[2] + correlation.in_step[2]}) {
        ++runs.back().count;
        continue;
      }
    }
    runs.push_back({t, 1});
  }
  return runs;
}

// Calls body(std::integral_constant<int, slot>) for a slot known only at run time.
template <class T, int most = kLanes<T>, class Body>
SCRATCHNN_INLINE void with_slot(int64_t slot, const Body& body) {
  if constexpr (most > 1) {
    if (slot < most) return with_slot<T, most / 2>(slot, body);
  }
  body(std::integral_constant<int, most>());
}

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

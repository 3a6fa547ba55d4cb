// The tiles of a Winograd convolution in memory: from images to points, and from points back to images.
//
// A block of tiles, taken in the order slice, image, row, column, is transformed together: plane p holds point p of
// every tile and channel, so that the 36 products of the algorithm are 36 ordinary matrix products.
//
// Depth is summed over among the points: output slice d is the sum over depth taps j of the points of input slice d + j
// times those of the filters' slice j. So an input slice is transformed once and used for all depth taps.
#pragma once

#include <algorithm>

#include "conv/cpu/band.h"
#include "conv/cpu/winograd_transforms.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {
namespace winograd {

// What all threads read again and again, points of filters or of tiles, is to stay in this part of a third-level cache.
constexpr int64_t kSharedBytes = 16 << 20;

constexpr int64_t kRunSlices = 4;  // output slices of a block, for each input slice that it shares with its neighbour

// The 4x4 tiles that cover the outputs of a batch: total() of them for each slice of depth.
struct Tiles {
  int64_t batch;
  Extent size;  // of the outputs, in pixels
  int64_t rows() const { return (size[1] + kOut - 1) / kOut; }
  int64_t columns() const { return (size[2] + kOut - 1) / kOut; }
  int64_t total() const { return batch * rows() * columns(); }
};

// How the kernel meets the input in depth: tap j of output slice d reads input slice first + d + j, or the border's.
// Slices of zeros are left out of the sums.
struct Depth {
  int64_t taps, first, size;  // size: of the input
  Border border;

  // The taps of output slice d that read something.
  Range taps_of(int64_t d) const {
    if (border != Border::kZeros) return {0, taps};
    const int64_t begin = std::clamp<int64_t>(-(first + d), 0, taps);
    return {begin, std::clamp<int64_t>(size - (first + d), begin, taps)};
  }
  // Those of the output slices whose tap j reads something.
  Range outputs_of(int64_t j, const Range& slices) const {
    if (border != Border::kZeros) return slices;
    const int64_t begin = std::clamp(-(first + j), slices.first, slices.last);
    return {begin, std::clamp(size - (first + j), begin, slices.last)};
  }
  // The input slices that output slices read.
  Range read_by(const Range& slices) const {
    const Range all{first + slices.first, first + slices.last + taps - 1};
    if (border != Border::kZeros) return all;
    const int64_t begin = std::clamp<int64_t>(all.first, 0, size);
    return {begin, std::clamp(all.last, begin, size)};
  }
  // How many those are at most.
  int64_t most_read(int64_t slices) const {
    const int64_t all = slices + taps - 1;
    return border == Border::kZeros ? std::min(all, size) : all;
  }
};

// In how many runs the output slices are taken, for blocks of about `most` tiles. Neighbouring runs both transform the
// input slices that both of them read: runs are long, but where there is one depth tap only.
inline int64_t depth_runs(const Tiles& tiles, int64_t taps, int64_t most) {
  const int64_t depth = tiles.size[0];
  const int64_t worth = std::clamp<int64_t>(std::min(most, kRunSlices * (taps - 1)), 1, depth);
  const int64_t together = std::clamp<int64_t>(most / worth, 1, std::max<int64_t>(1, tiles.total()));
  const int64_t run = std::clamp(most / together, worth, depth);
  return (depth + run - 1) / run;
}

inline Range depth_run(const Tiles& tiles, int64_t run, int64_t runs) {
  return {tiles.size[0] * run / runs, tiles.size[0] * (run + 1) / runs};
}

// Tiles side by side: `count` of one row of one image.
struct Run {
  int64_t image, row, column, count;
};

// Calls body(run, position) for the runs that make up the tiles [first, last); position counts from `first`.
template <class Body>
SCRATCHNN_INLINE void for_each_run(const Tiles& tiles, int64_t first, int64_t last, const Body& body) {
  const int64_t columns = tiles.columns(), rows = tiles.rows();
  for (int64_t t = first; t < last;) {
    const int64_t column = t % columns, row = t / columns % rows;
    const int64_t count = std::min(columns - column, last - t);
    body(Run{t / (columns * rows), row, column, count}, t - first);
    t += count;
  }
}

// What tiles read or write: of one slice of images, from a channel on.
template <class S>
struct Pixels {
  Images<S> images;
  int64_t slice, channel;
  int64_t top = 0, left = 0;  // where tile (0, 0) begins
};

// Tiles of contiguous images are taken by pieces, which are copied in channels-last order: a piece is a batch of its
// own, whole images or some rows of one or a part of a row.
struct Piece {
  int64_t image, images;
  int64_t row, rows;
  int64_t column, columns;

  Tiles tiles(const Tiles& all) const {
    const Extent& size = all.size;
    return {images,
            {1, std::min(rows * kOut, size[1] - row * kOut), std::min(columns * kOut, size[2] - column * kOut)}};
  }
};

// Calls body(piece, position) for the pieces, of at most so many tiles, that make up [first, last).
template <class Body>
void for_each_piece(const Tiles& tiles, int64_t first, int64_t last, int64_t most, const Body& body) {
  const int64_t columns = tiles.columns(), rows = tiles.rows();
  for (int64_t t = first; t < last;) {
    Piece piece{t / (columns * rows), 1, t / columns % rows, 1, t % columns, 0};
    piece.columns = std::min({columns - piece.column, last - t, most});
    if (piece.columns == columns) {
      const int64_t together = std::min(last - t, most) / columns;
      piece.rows = std::min(together, rows - piece.row);
      if (piece.rows == rows) piece.images = together / rows;
    }
    body(piece, t - first);
    t += piece.images * piece.rows * piece.columns;
  }
}

// The pixels that so many tiles of a piece have or read, `size` x `size` each, at most.
inline int64_t piece_pixels(const Tiles& tiles, int64_t size, int64_t most) {
  const int64_t columns = std::clamp<int64_t>(tiles.columns(), 1, most);
  const int64_t rows = std::max<int64_t>(1, std::min(most / columns, tiles.rows()));
  const int64_t images = std::max<int64_t>(1, most / (columns * rows)), more = size - kOut;
  return images * (rows * kOut + more) * (columns * kOut + more);
}

// The size x size pixels that each tile of a piece reads, copied to `memory`: with the border written out, but for
// zeros, which are left away.
template <int size, class S, class T>
Pixels<const T> copy_piece(const Piece& piece, const Pixels<const S>& from, Border border, int64_t channels,
                           T* memory) {
  const Images<const S>& images = from.images;
  Rectangle r{{from.slice, piece.row * kOut + from.top, piece.column * kOut + from.left},
              {1, piece.rows * kOut + size - kOut, piece.columns * kOut + size - kOut}};
  Extent outside{};  // rows and columns before the first that is copied, negative
  for (int d = 1; d < kSpatialRank && border == Border::kZeros; ++d) {
    const int64_t first = std::clamp<int64_t>(r.first[d], 0, images.size[d]);
    const int64_t last = std::clamp<int64_t>(r.first[d] + r.size[d], first, images.size[d]);
    outside[d] = r.first[d] - first;
    r.first[d] = first;
    r.size[d] = last - first;
  }
  for (int64_t n = 0; n < piece.images; ++n) {
    copy_rectangle(images, piece.image + n, from.channel, channels, r, border, memory + n * volume(r.size) * channels);
  }
  return {{memory, channels, r.size, true}, 0, 0, outside[1], outside[2]};
}

// The outputs of a piece, in channels-last order, to the images.
template <class T, class S>
void write_piece(const Piece& piece, const Images<T>& from, const Pixels<S>& to) {
  const Images<S>& images = to.images;
  const int64_t height = from.size[1], width = from.size[2], channels = from.channels;
  const bool joined = width == images.size[2];  // whole rows lie side by side
  const int64_t rows = joined ? 1 : height, pixels = joined ? height * width : width;
  for (int64_t n = 0; n < piece.images; ++n) {
    const int64_t pixel = (to.slice * images.size[1] + piece.row * kOut) * images.size[2] + piece.column * kOut;
    S* image = images.data + (piece.image + n) * images.image_stride() + to.channel * images.channel_stride() +
               pixel * images.pixel_stride();
    for (int64_t i = 0; i < rows; ++i) {
      const T* row = from.data + (n * height + i) * width * channels;
      S* out = image + i * images.size[2] * images.pixel_stride();
      if (images.channels_last) {
        for (int64_t p = 0; p < pixels; ++p) copy_numbers(row + p * channels, channels, out + p * images.channels);
      } else {
        transpose_block(row, channels, out, images.pixels(), pixels, channels);
      }
    }
  }
}

// Of pieces that come and go with the tiles of a block.
constexpr int64_t kPieceTiles = 16, kPieceChannels = 64;

// Where a transformed tile goes: point p of channel c of tile t is at
// data + p * plane + t * tile + c / block * block_stride + c % block. Where these are known to the compiler, it has a
// type of its own, and so have numbers of channels: most of the time that addresses take is saved.
template <class T>
struct Points {
  T* data;
  int64_t plane, tile, block, block_stride;
  static constexpr bool asks = true;
};

// One tile, all channels: `size` rows and columns of pixels, of which columns outside [first, last) are zero.
template <int size, bool border, class R, class T, class Count, class To, class Transform>
SCRATCHNN_INLINE void transform_tile(const R* const (&rows)[size], int64_t pixel_stride, int64_t first, int64_t last,
                                     Count channels, const To& out, T* to, const Transform& transform) {
  const int64_t ahead = channels <= 32 ? 2 : 1;  // tiles
  for (int64_t block = 0; block < channels; block += out.block, to += out.block_stride) {
    const int64_t count = std::min<int64_t>(out.block, channels - block);
    for (int64_t c = 0; c < count; c += kLanes<T>) {
      constexpr int64_t line = 64 / sizeof(T), read_line = 64 / sizeof(R);
      if (To::asks && c % read_line == 0) {  // the same channels of a tile to come, a line at a time
#pragma GCC unroll 6
        for (int i = 0; i < size; ++i) {
#pragma GCC unroll 4
          for (int j = size - kOut; j < size; ++j) {
            prefetch(rows[i] + (ahead * kOut + j) * pixel_stride + block + c);
          }
        }
      }
      Vec<T> half[size][kIn];  // transformed down the columns
#pragma GCC unroll 6
      for (int j = 0; j < size; ++j) {
        if (border && (j < first || j >= last)) {
#pragma GCC unroll 6
          for (int i = 0; i < kIn; ++i) half[j][i] = Vec<T>{};
          continue;
        }
        Vec<T> column[size];
#pragma GCC unroll 6
        for (int i = 0; i < size; ++i) column[i] = read(rows[i] + j * pixel_stride + block + c);
        transform(column, half[j]);
      }
#pragma GCC unroll 6
      for (int i = 0; i < kIn; ++i) {
        Vec<T> row[size], points[kIn];
#pragma GCC unroll 6
        for (int j = 0; j < size; ++j) row[j] = half[j][i];
        transform(row, points);
#pragma GCC unroll 6
        for (int j = 0; j < kIn; ++j) {
          T* point = to + (i * kIn + j) * out.plane + c;
          store(point, points[j]);
          if (c % line == 0) __builtin_prefetch(point + 2 * line, 1);  // 36 streams: too many to be foreseen
        }
      }
    }
  }
}

// How many elements transform_tiles needs as memory: zeros to read in place of rows outside of the image, or a tile
// with its border written out, and for contiguous images a piece.
template <int size, class S>
int64_t tile_memory(const Tiles& tiles, const Images<const S>& images, int64_t channels) {
  if (images.channels_last) return size * size * images.channels;
  return (size * size + piece_pixels(tiles, size, kPieceTiles)) * std::min(channels, kPieceChannels);
}

// Transforms the tiles [first, last) of channels-last images. Tile (r, c) reads size x size pixels from
// (r * kOut + top, c * kOut + left), of the image or its border; as many channels of them.
template <int size, class S, class Count, class To, class Transform>
void transform_tiles(const Tiles& tiles, int64_t first, int64_t last, const Pixels<const S>& in, Border border,
                     Count channels, const To& out, Wide<S>* memory, const Transform& transform) {
  using T = Wide<S>;
  const bool zeros = border == Border::kZeros;
  const Images<const S>& images = in.images;
  S* const zero_row = reinterpret_cast<S*>(memory);
  if (zeros) {
    for (int64_t i = 0; i < size; ++i) std::fill_n(zero_row + i * images.channels, channels, S());
  }
  const int64_t height = images.size[1], width = images.size[2];
  for_each_run(tiles, first, last, [&](const Run& run, int64_t position) {
    const int64_t y = run.row * kOut + in.top;
    T* to = out.data + position * out.tile;
    const S* rows[size];
    const S* image =
        images.data + run.image * images.image_stride() + in.slice * height * width * images.channels + in.channel;
    const bool rows_inside = y >= 0 && y + size <= height;
    for (int64_t t = 0; t < run.count; ++t, to += out.tile) {
      const int64_t x = (run.column + t) * kOut + in.left;
      const bool inside = rows_inside && x >= 0 && x + size <= width;
      if (!inside && !zeros) {
        const Rectangle r{{in.slice, y, x}, {1, size, size}};
        copy_rectangle(images, run.image, in.channel, channels, r, border, memory);
        const T* copied[size];
        for (int i = 0; i < size; ++i) copied[i] = memory + i * size * channels;
        transform_tile<size, false, T>(copied, channels, 0, size, channels, out, to, transform);
        continue;
      }
      for (int i = 0; i < size; ++i) {
        const bool row_inside = y + i >= 0 && y + i < height;
        rows[i] = row_inside ? image + ((y + i) * width + x) * images.channels : zero_row;
      }
      if (inside) {
        transform_tile<size, false, S>(rows, images.channels, 0, size, channels, out, to, transform);
        continue;
      }
      const int64_t first_column = std::clamp<int64_t>(-x, 0, size);
      const int64_t last_column = std::clamp<int64_t>(width - x, first_column, size);
      transform_tile<size, true, S>(rows, images.channels, first_column, last_column, channels, out, to, transform);
    }
  });
}

// The same of images in any order.
template <int size, class S, class T, class Transform>
void transform_any_tiles(const Tiles& tiles, int64_t first, int64_t last, const Pixels<const S>& in, Border border,
                         int64_t channels, const Points<T>& out, T* memory, const Transform& transform) {
  if (in.images.channels_last) {
    return transform_tiles<size>(tiles, first, last, in, border, channels, out, memory, transform);
  }
  T* const copy = memory + size * size * std::min(channels, kPieceChannels);
  for_each_piece(tiles, first, last, kPieceTiles, [&](const Piece& piece, int64_t position) {
    const Tiles own = piece.tiles(tiles);
    Pixels<const S> from = in;
    for (int64_t c = 0, count; c < channels; c += count, from.channel += count) {
      count = std::min({kPieceChannels, channels - c, out.block - c % out.block});
      Points<T> to = out;
      to.data += position * out.tile + c / out.block * out.block_stride + c % out.block;
      transform_tiles<size>(own, 0, own.total(), copy_piece<size>(piece, from, border, count, copy), border, count, to,
                            memory, transform);
    }
  });
}

// Points of one tile to its outputs, for `channels` channels from `m` on. Only height x width of the 4x4 are written.
// Where `asks`, the next tile's are asked of memory.
template <bool full, bool asks, class T, class Y, class Plane, class Count>
SCRATCHNN_INLINE void outputs_of_tile(const T* m, Plane plane, const T* bias, Count channels, Y* y, int64_t row_stride,
                                      int64_t pixel_stride, int64_t height, int64_t width) {
  for (int64_t c = 0; c < channels; c += kLanes<T>) {
    if (asks && c % (64 / static_cast<int64_t>(sizeof(Y))) == 0) {
#pragma GCC unroll 4
      for (int i = 0; i < kOut; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j < kOut; ++j) prefetch(y + i * row_stride + (kOut + j) * pixel_stride + c);
      }
    }
    Vec<T> half[kIn][kOut];
#pragma GCC unroll 6
    for (int j = 0; j < kIn; ++j) {
      Vec<T> column[kIn];
#pragma GCC unroll 6
      for (int i = 0; i < kIn; ++i) column[i] = load(m + (i * kIn + j) * plane + c);
      output_transform<T>(column, half[j]);
    }
    const Vec<T> b = bias != nullptr ? load(bias + c) : Vec<T>{};
#pragma GCC unroll 4
    for (int i = 0; i < kOut; ++i) {
      if (!full && i >= height) break;
      Vec<T> row[kIn], out[kOut];
#pragma GCC unroll 6
      for (int j = 0; j < kIn; ++j) row[j] = half[j][i];
      output_transform<T>(row, out);
#pragma GCC unroll 4
      for (int j = 0; j < kOut; ++j) {
        if (full || j < width) write(y + i * row_stride + j * pixel_stride + c, bias != nullptr ? out[j] + b : out[j]);
      }
    }
  }
}

// Points of the tiles [first, last) to as many channels of channels-last images. m is at point p of tile t and channel
// c: m + p * plane + t * stride + c.
template <bool asks, class T, class S, class Plane, class Count>
void write_outputs(const Tiles& tiles, int64_t first, int64_t last, const T* m, Plane plane, int64_t stride,
                   const T* bias, Count channels, const Pixels<S>& out) {
  const Images<S>& images = out.images;
  const int64_t out_height = tiles.size[1], out_width = tiles.size[2], row_stride = out_width * images.channels;
  for_each_run(tiles, first, last, [&](const Run& run, int64_t position) {
    const T* from = m + position * stride;
    const int64_t y = run.row * kOut, height = std::min<int64_t>(kOut, out_height - y);
    S* row = images.data + run.image * images.image_stride() + (out.slice * out_height + y) * row_stride + out.channel;
    for (int64_t t = 0; t < run.count; ++t, from += stride) {
      const int64_t x = (run.column + t) * kOut, width = std::min<int64_t>(kOut, out_width - x);
      S* to = row + x * images.channels;
      if (height == kOut && width == kOut) {
        outputs_of_tile<true, asks>(from, plane, bias, channels, to, row_stride, images.channels, height, width);
      } else {
        outputs_of_tile<false, asks>(from, plane, bias, channels, to, row_stride, images.channels, height, width);
      }
    }
  });
}

// How many elements write_any_outputs needs as memory.
template <class S>
int64_t output_memory(const Tiles& tiles, const Images<S>& images, int64_t channels) {
  return images.channels_last ? 0 : piece_pixels(tiles, kOut, kPieceTiles) * std::min(channels, kPieceChannels);
}

// The same to images in any order.
template <class T, class S>
void write_any_outputs(const Tiles& tiles, int64_t first, int64_t last, const T* m, int64_t plane, int64_t stride,
                       const T* bias, int64_t channels, const Pixels<S>& out, T* memory) {
  if (out.images.channels_last) {
    return write_outputs<true>(tiles, first, last, m, plane, stride, bias, channels, out);
  }
  for_each_piece(tiles, first, last, kPieceTiles, [&](const Piece& piece, int64_t position) {
    const Tiles own = piece.tiles(tiles);
    Pixels<S> to = out;
    for (int64_t c = 0, count; c < channels; c += count, to.channel += count) {
      count = std::min(kPieceChannels, channels - c);
      const Images<T> copy{memory, count, own.size, true};
      write_outputs<false>(own, 0, own.total(), m + position * stride + c, plane, stride,
                           bias != nullptr ? bias + c : nullptr, count, Pixels<T>{copy, 0, 0});
      write_piece(piece, copy, to);
    }
  });
}

}  // namespace winograd
}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

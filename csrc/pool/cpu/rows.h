// How the fast pooling kernels walk their images, whatever it is they compute.
//
// The unit of work is one row of the result, with the list of source rows it is computed from. In memory a
// kernel always sees pixels whose channels lie side by side, so that a vector holds several channels of one
// pixel, and windows of any size, stride and dilation need no shuffling:
//
// - channels_last images are so already;
// - of contiguous (NCHW) images, a tile of some planes at a time is transposed into scratch memory, worked on
//   there, and transposed back. Both transpositions run in cache.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <tuple>

#include "common/half.h"
#include "common/runtime.h"
#include "pool/kernels.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {

// A row of source pixels that a result row is computed from: the number of its first pixel, and depth's and
// height's parts of Link.
struct SourceRow {
  int64_t pixel;
  int64_t tap;
  double factor;
};

// Whether each image has a single window, all of it.
SCRATCHNN_INLINE bool is_global(const Relation& relation, const Extent& input, const Extent& output) {
  return volume(output) == 1 && relation.links == input;
}

// The part of the source that some results need.
struct Region {
  int64_t depth_begin, depth_end, height_begin, height_end, width_begin, width_end;

  int64_t rows() const { return (depth_end - depth_begin) * (height_end - height_begin); }
  int64_t width() const { return width_end - width_begin; }
};

// Some columns of a result row.
struct Columns {
  int64_t begin, end;
};

// Lists the source rows of result row (z, y): source column x of one is pixel + x of the region. Returns their count.
SCRATCHNN_INLINE int64_t source_rows(const Relation& relation, int64_t z, int64_t y, const Region& region,
                                     SourceRow* rows) {
  const Links& depth = relation.along[0];
  const Links& height = relation.along[1];
  int64_t count = 0;
  for (int64_t i = 0; i < depth.count(z); ++i) {
    const Link& d = depth.begin(z)[i];
    const int64_t plane = (d.source - region.depth_begin) * (region.height_end - region.height_begin);
    for (int64_t j = 0; j < height.count(y); ++j) {
      const Link& h = height.begin(y)[j];
      rows[count++] = {(plane + h.source - region.height_begin) * region.width() - region.width_begin, d.tap + h.tap,
                       d.factor * h.factor};
    }
  }
  return count;
}

// Of the source rows of a result row, in their order, about as many as the result row before it has read already:
// memory is to be asked for the others.
SCRATCHNN_INLINE int64_t known_rows(const Relation& relation, int64_t row_count) {
  return row_count - (relation.source[1] + relation.result[1] - 1) / relation.result[1];
}

SCRATCHNN_INLINE Region whole(const Relation& relation) {
  return {0, relation.source[0], 0, relation.source[1], 0, relation.source[2]};
}

// Numbers read or written that make a thread worth waking.
constexpr int64_t kGrain = 32768;

SCRATCHNN_INLINE int64_t numbers_per_row(const Relation& relation, int64_t channels) {
  return channels * (relation.result[2] + relation.most_rows * relation.source[2]);
}

// Channels_last: row(n, rows, count, pixel) for every result row of image n; `pixel` is the number of its
// first pixel within the result image.
template <class Row>
void for_each_row(const Relation& relation, const Row& row) {
  const int64_t depth = relation.result[0], height = relation.result[1];
  const int64_t grain = std::max<int64_t>(1, kGrain / numbers_per_row(relation, relation.channels));
  parallel_for(0, relation.images * depth * height, grain, [&](int64_t first, int64_t last) {
    SourceRow* rows = scratch<SourceRow>(relation.most_rows);
    for (int64_t i = first; i < last; ++i) {
      const int64_t y = i % height, z = i / height % depth, n = i / (height * depth);
      const int64_t count = source_rows(relation, z, y, whole(relation), rows);
      row(n, rows, count, (z * height + y) * relation.result[2]);
    }
  });
}

// Planes of a tile: a vector, or two, of channels.
template <class T>
constexpr int64_t kTilePlanes = 2 * kLanes<T>;

// Some rows of some planes of an NCHW result, or some columns of a row too long for a tile, and the source region they
// are computed from.
struct Tile {
  int64_t first_plane, planes;
  int64_t z, y_begin, y_end;
  Columns columns;
  Region region;

  int64_t source_pixels() const { return region.rows() * region.width(); }
  int64_t result_pixels() const { return (y_end - y_begin) * (columns.end - columns.begin); }
};

// Widens [begin, end) to the sources of the results [first, last).
SCRATCHNN_INLINE void add_sources(const Links& along, int64_t first, int64_t last, int64_t& begin, int64_t& end) {
  for (const Link* link = along.begin(first); link < along.begin(last); ++link) {
    begin = std::min(begin, link->source);
    end = std::max(end, link->source + 1);
  }
}

SCRATCHNN_INLINE Region region_of(const Relation& relation, const Tile& tile) {
  Region region{relation.source[0], 0, relation.source[1], 0, relation.source[2], 0};
  add_sources(relation.along[0], tile.z, tile.z + 1, region.depth_begin, region.depth_end);
  add_sources(relation.along[1], tile.y_begin, tile.y_end, region.height_begin, region.height_end);
  if (tile.columns.end - tile.columns.begin < relation.result[2]) {
    add_sources(relation.along[2], tile.columns.begin, tile.columns.end, region.width_begin, region.width_end);
  } else {
    region.width_begin = 0;
    region.width_end = relation.source[2];
  }
  const bool empty = region.depth_end == 0 || region.height_end == 0 || region.width_end == 0;
  return empty ? Region{} : region;  // rows without a source
}

// NCHW: body(tile) for tiles that cover the result. A tile's source and result together take about kTileBytes.
template <class T, class Body>
void for_each_tile(const Relation& relation, const Body& body) {
  constexpr int64_t kTileBytes = 160 * 1024, kFewestColumns = 64;
  const int64_t planes = relation.images * relation.channels;
  const int64_t groups = (planes + kTilePlanes<T> - 1) / kTilePlanes<T>;
  const int64_t depth = relation.result[0], height = relation.result[1], width = relation.result[2];
  int64_t most_depth = 1;
  for (int64_t z = 0; z < depth; ++z) most_depth = std::max(most_depth, relation.along[0].count(z));
  const int64_t rows_per_row = std::max<int64_t>(1, relation.source[1] / height) * most_depth;
  const int64_t row_bytes = (width + rows_per_row * relation.source[2]) * kTilePlanes<T> * sizeof(T);
  const int64_t band = std::clamp<int64_t>(kTileBytes / row_bytes, 1, height);
  const int64_t bands = (height + band - 1) / band;
  const int64_t pieces = std::clamp<int64_t>(row_bytes / kTileBytes, 1, std::max<int64_t>(1, width / kFewestColumns));
  const int64_t numbers = band * numbers_per_row(relation, std::min(planes, kTilePlanes<T>)) / pieces;
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, numbers));
  parallel_for(0, groups * depth * bands * pieces, grain, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t piece = i % pieces, row = i / pieces;
      Tile tile;
      tile.first_plane = row / (bands * depth) * kTilePlanes<T>;
      tile.planes = std::min(kTilePlanes<T>, planes - tile.first_plane);
      tile.z = row / bands % depth;
      tile.y_begin = row % bands * band;
      tile.y_end = std::min(height, tile.y_begin + band);
      tile.columns = {width * piece / pieces, width * (piece + 1) / pieces};
      tile.region = region_of(relation, tile);
      body(tile);
    }
  });
}

// Several arrays out of one piece of scratch memory, each aligned for vectors.
template <class... Ts, class... Counts>
SCRATCHNN_INLINE std::tuple<Ts*...> carve(Counts... counts) {
  constexpr int64_t kAlignment = 64;
  const int64_t bytes[] = {(static_cast<int64_t>(counts * sizeof(Ts)) + kAlignment - 1) / kAlignment * kAlignment...};
  int64_t total = 0;
  for (const int64_t size : bytes) total += size;
  char* next = scratch<char>(total);
  int i = 0;
  const auto take = [&] {
    char* piece = next;
    next += bytes[i++];
    return piece;
  };
  return std::tuple<Ts*...>{reinterpret_cast<Ts*>(take())...};  // braces: from left to right
}

// Tap numbers: in lanes as wide as T's, so that masks of T fit; stored as Offset, which is narrower. Bytes
// take the processor's own instructions, where the compiler would take them lane by lane.
template <class T, class Offset>
SCRATCHNN_INLINE Vec<IntOf<T>> load_offsets(const Offset* p) {
  typedef Offset Narrow __attribute__((vector_size(kLanes<T> * sizeof(Offset))));
  Narrow narrow;
  std::memcpy(&narrow, p, sizeof(narrow));
#if defined(CPU_CAPABILITY_AVX2) || defined(CPU_CAPABILITY_AVX512)
  if constexpr (sizeof(Offset) == 1) {
    __m128i bytes = {};
    std::memcpy(&bytes, &narrow, sizeof(narrow));
#if defined(CPU_CAPABILITY_AVX512)
    if constexpr (sizeof(T) == 4) return (Vec<IntOf<T>>)_mm512_maskz_cvtepu8_epi32(0xFFFF, bytes);
    if constexpr (sizeof(T) == 8) return (Vec<IntOf<T>>)_mm512_maskz_cvtepu8_epi64(0xFF, bytes);
#else
    if constexpr (sizeof(T) == 4) return (Vec<IntOf<T>>)_mm256_cvtepu8_epi32(bytes);
    if constexpr (sizeof(T) == 8) return (Vec<IntOf<T>>)_mm256_cvtepu8_epi64(bytes);
#endif
  }
#endif
  return __builtin_convertvector(narrow, Vec<IntOf<T>>);
}

template <class T, class Offset>
SCRATCHNN_INLINE void store_offsets(Offset* p, Vec<IntOf<T>> offsets) {
#if defined(CPU_CAPABILITY_AVX2) || defined(CPU_CAPABILITY_AVX512)
  if constexpr (sizeof(Offset) == 1) {
    __m128i bytes;
#if defined(CPU_CAPABILITY_AVX512)
    bytes = sizeof(T) == 4 ? _mm512_cvtepi32_epi8((__m512i)offsets) : _mm512_cvtepi64_epi8((__m512i)offsets);
#else
    const __m128i low = _mm256_castsi256_si128((__m256i)offsets);
    const __m128i high = _mm256_extracti128_si256((__m256i)offsets, 1);
    __m128i words;
    if constexpr (sizeof(T) == 4) {
      words = _mm_packs_epi32(low, high);
    } else {
      const __m128 halves = _mm_shuffle_ps(_mm_castsi128_ps(low), _mm_castsi128_ps(high), 0x88);
      words = _mm_packs_epi32(_mm_castps_si128(halves), __m128i{});
    }
    bytes = _mm_packus_epi16(words, words);
#endif
    std::memcpy(p, &bytes, kLanes<T>);
    return;
  }
#endif
  typedef Offset Narrow __attribute__((vector_size(kLanes<T> * sizeof(Offset))));
  const Narrow narrow = __builtin_convertvector(offsets, Narrow);
  std::memcpy(p, &narrow, sizeof(narrow));
}

// to[pixel][plane] = from[plane][pixel], for as many planes as a tile has; the tile's unused lanes repeat the
// last plane.
template <class S>
void planes_to_tile(const S* from, int64_t plane_stride, int64_t planes, int64_t pixels, Wide<S>* to) {
  using T = Wide<S>;
  constexpr int n = kLanes<T>;
  constexpr int64_t width = kTilePlanes<T>;
  for (int64_t group = 0; group < width; group += n) {
    const S* plane[n];
    for (int i = 0; i < n; ++i) plane[i] = from + std::min(group + i, planes - 1) * plane_stride;
    if (pixels < n) {
      for (int64_t p = 0; p < pixels; ++p) {
        for (int i = 0; i < n; ++i) to[p * width + group + i] = read_one(plane[i] + p);
      }
      continue;
    }
    for (int64_t p = 0; p < pixels; p += n) {
      p = std::min(p, pixels - n);  // the last block overlaps the one before
      Vec<T> block[n];
      for (int i = 0; i < n; ++i) block[i] = read(plane[i] + p);
      transpose<T>(block);
      for (int i = 0; i < n; ++i) store(to + (p + i) * width + group, block[i]);
    }
  }
}

// to[plane][pixel] = from[pixel][plane]. Lane is the type of a lane in the tile, Stored that in the image.
template <class Lane, class Stored>
void tile_to_planes(const Lane* from, Stored* to, int64_t plane_stride, int64_t planes, int64_t pixels) {
  constexpr int n = kLanes<Lane>;
  constexpr int64_t width = kTilePlanes<Lane>;
  for (int64_t group = 0; group < planes; group += n) {
    const int used = static_cast<int>(std::min<int64_t>(n, planes - group));
    Stored* plane = to + group * plane_stride;
    if (pixels < n) {
      for (int i = 0; i < used; ++i) {
        for (int64_t p = 0; p < pixels; ++p) {
          if constexpr (std::is_integral_v<Lane>) {
            plane[i * plane_stride + p] = static_cast<Stored>(from[p * width + group + i]);
          } else {
            write_one(plane + i * plane_stride + p, from[p * width + group + i]);
          }
        }
      }
      continue;
    }
    for (int64_t p = 0; p < pixels; p += n) {
      p = std::min(p, pixels - n);
      Vec<Lane> block[n];
      for (int i = 0; i < n; ++i) block[i] = load(from + (p + i) * width + group);
      transpose<Lane>(block);
      for (int i = 0; i < used; ++i) {
        if constexpr (std::is_integral_v<Lane>) {
          store_offsets<Lane>(plane + i * plane_stride + p, block[i]);
        } else {
          write(plane + i * plane_stride + p, block[i]);
        }
      }
    }
  }
}

// A tile's source region out of its planes; result pixels back into theirs.
template <class S>
void load_tile(const Relation& relation, const Tile& tile, const S* source, Wide<S>* to) {
  const int64_t plane_stride = volume(relation.source);
  const Region& r = tile.region;
  // Rows of full width follow each other in memory.
  const bool full = r.width() == relation.source[2];
  const int64_t rows = full ? r.height_end - r.height_begin : 1;
  const int64_t pixels = rows * r.width();
  for (int64_t d = r.depth_begin; d < r.depth_end; ++d) {
    for (int64_t h = r.height_begin; h < r.height_end; h += rows, to += pixels * kTilePlanes<Wide<S>>) {
      const int64_t pixel = (d * relation.source[1] + h) * relation.source[2] + r.width_begin;
      planes_to_tile(source + tile.first_plane * plane_stride + pixel, plane_stride, tile.planes, pixels, to);
    }
  }
}
template <class Lane, class Stored>
void store_tile(const Relation& relation, const Tile& tile, const Lane* from, Stored* result) {
  const int64_t plane_stride = volume(relation.result);
  const int64_t row = tile.z * relation.result[1] + tile.y_begin;
  const int64_t pixel = row * relation.result[2] + tile.columns.begin;
  tile_to_planes(from, result + tile.first_plane * plane_stride + pixel, plane_stride, tile.planes,
                 tile.result_pixels());
}

// A few vectors of channels that a kernel computes at once. Partial: a single vector, of fewer channels than
// it has lanes.
template <int kCount, bool kPartial>
struct Block {
  static constexpr int vectors = kCount;
  static constexpr bool partial = kPartial;
  int64_t channel;
  int64_t lanes;
};

// body(block) over the channels of a pixel: four vectors at a time, then fewer; the last block overlaps the
// one before where a vector would be incomplete.
template <class T, class Body>
SCRATCHNN_INLINE void for_each_block(int64_t channels, const Body& body) {
  constexpr int64_t n = kLanes<T>;
  if (channels < n) return body(Block<1, true>{0, channels});
  int64_t c = 0;
  for (; c + 4 * n <= channels; c += 4 * n) body(Block<4, false>{c, n});
  if (c + 2 * n <= channels) {
    body(Block<2, false>{c, n});
    c += 2 * n;
  }
  if (c + n <= channels) {
    body(Block<1, false>{c, n});
    c += n;
  }
  if (c < channels) body(Block<1, false>{channels - n, n});
}

// body(first, lanes) for the vectors of `count` numbers, the last one of fewer.
template <class T, class Body>
SCRATCHNN_INLINE void for_each_vector_or_part(int64_t count, const Body& body) {
  for (int64_t c = 0; c < count; c += kLanes<T>) body(c, std::min<int64_t>(kLanes<T>, count - c));
}

// Vector v of a block, from or to the pixel's channels at p.
template <class S, class Block>
SCRATCHNN_INLINE Vec<Wide<S>> load_vector(const S* p, int v, const Block& block) {
  if constexpr (Block::partial) return read_partial(p, block.lanes);
  return read(p + v * kLanes<Wide<S>>);
}
template <class S, class Block>
SCRATCHNN_INLINE void store_vector(S* p, Vec<Wide<S>> value, int v, const Block& block) {
  if constexpr (Block::partial) return write_partial(p, value, block.lanes);
  write(p + v * kLanes<Wide<S>>, value);
}
template <class T, class Offset, class Block>
SCRATCHNN_INLINE Vec<IntOf<T>> load_offset_vector(const Offset* p, int v, const Block& block) {
  if constexpr (!Block::partial) return load_offsets<T>(p + v * kLanes<T>);
  Offset all[kLanes<T>] = {};
  for (int64_t i = 0; i < block.lanes; ++i) all[i] = p[i];
  return load_offsets<T>(all);
}
template <class T, class Offset, class Block>
SCRATCHNN_INLINE void store_offset_vector(Offset* p, Vec<IntOf<T>> offsets, int v, const Block& block) {
  if constexpr (!Block::partial) return store_offsets<T>(p + v * kLanes<T>, offsets);
  Offset all[kLanes<T>];
  store_offsets<T>(all, offsets);
  for (int64_t i = 0; i < block.lanes; ++i) p[i] = all[i];
}

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

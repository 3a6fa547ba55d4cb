// Max pooling: a vector of maxima and a vector of the taps they came from run over the windows.
//
// Vectors hold several channels of one pixel, or, of contiguous planes, several pixels of a row (max_rows.h).
#include "pool/cpu/max_rows.h"
#include "pool/cpu/max_threes.h"
#include "pool/cpu/maxima.h"
#include "pool/cpu/rows.h"
#include "pool/cpu/side_by_side.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {
namespace {

// A block of channels of the pixels in a window, row by row.
template <class S, bool kOffsets, bool kNaN, class Block>
SCRATCHNN_INLINE void max_of_window(const S* source, int64_t channels, const SourceRow* rows, int64_t row_count,
                                    int64_t known, const Link* columns, int64_t column_count, const Block& block,
                                    Running<Wide<S>, kOffsets, kNaN> (&running)[Block::vectors], NaNs<Wide<S>>& nans) {
  using T = Wide<S>;
  using Int = IntOf<T>;
  // Nothing is below -inf: where all values are, the first tap inside the input stands, as in torch.
  const bool empty = row_count == 0 || column_count == 0;
  const auto first_tap = static_cast<Int>(empty ? 0 : rows[0].tap + columns[0].tap);
  for (auto& each : running) each = {broadcast(-std::numeric_limits<T>::infinity()), broadcast(first_tap)};
  for (int64_t r = 0; r < row_count; ++r) {
    for (int64_t k = 0; k < column_count; ++k) {
      const S* p = source + (rows[r].pixel + columns[k].source) * channels + block.channel;
      const Vec<Int> tap = broadcast(static_cast<Int>(rows[r].tap + columns[k].tap));
      Vec<T> values[Block::vectors];
#pragma GCC unroll 4
      for (int v = 0; v < Block::vectors; ++v) {
        if (r >= known) prefetch_ahead(p + v * kLanes<T>);
        values[v] = load_vector(p, v, block);
        running[v].take(values[v], tap);
      }
      if constexpr (!kNaN) {
#pragma GCC unroll 4
        for (int v = 0; v < Block::vectors; v += 2) {
          nans.look_at(values[v], values[std::min(v + 1, Block::vectors - 1)]);
        }
      }
    }
  }
}

// Some columns of a result row: source pixels, output pixels and offsets all have their `channels` side by side.
template <bool kOffsets, class S, class To, class Offset>
void max_row(const Relation& forward, const S* source, int64_t channels, const SourceRow* rows, int64_t row_count,
             Columns result, To* output, Offset* offsets) {
  using T = Wide<S>;
  const int64_t known = known_rows(forward, row_count);
  for (int64_t x = result.begin; x < result.end; ++x, output += channels) {
    const Link* columns = forward.along[2].begin(x);
    const int64_t column_count = forward.along[2].count(x);
    for_each_block<T>(channels, [&](auto block) {
      const auto put = [&](auto block, const auto& running) {
#pragma GCC unroll 4
        for (int v = 0; v < block.vectors; ++v) {
          store_vector(output + block.channel, running[v].value, v, block);
          if constexpr (kOffsets) {
            store_offset_vector<T>(offsets + (x - result.begin) * channels + block.channel, running[v].tap, v, block);
          }
        }
      };
      NaNs<T> nans;
      Running<T, kOffsets, false> running[block.vectors];
      max_of_window(source, channels, rows, row_count, known, columns, column_count, block, running, nans);
      put(block, running);
      if (!nans.any()) return;
      for (int v = 0; v < block.vectors; ++v) {
        const Block<1, block.partial> single{block.channel + v * kLanes<T>, block.lanes};
        Running<T, kOffsets, true> minding[1];
        max_of_window(source, channels, rows, row_count, known, columns, column_count, single, minding, nans);
        put(single, minding);
      }
    });
  }
}

template <class S, class Offset, bool kOffsets>
void max_pool_channels_last(const S* input, S* output, Offset* offsets, const Relation& forward) {
  const int64_t channels = forward.channels;
  for_each_row(forward, [&](int64_t n, const SourceRow* rows, int64_t row_count, int64_t pixel) {
    const S* image = input + n * volume(forward.source) * channels;
    const int64_t place = (n * volume(forward.result) + pixel) * channels;
    max_row<kOffsets>(forward, image, channels, rows, row_count, {0, forward.result[2]}, output + place,
                      kOffsets ? offsets + place : nullptr);
  });
}

// Contiguous planes that max_of_rows does not take.
template <class S, class Offset>
void max_pool_tiles(const S* input, S* output, Offset* offsets, const Relation& forward) {
  using T = Wide<S>;
  constexpr int64_t channels = kTilePlanes<T>;
  for_each_tile<T>(forward, [&](const Tile& tile) {
    const int64_t row_size = (tile.columns.end - tile.columns.begin) * channels;
    const int64_t result_size = tile.result_pixels() * channels;
    auto [values, best, taps, rows] =
        carve<T, T, IntOf<T>, SourceRow>(tile.source_pixels() * channels, result_size, result_size, forward.most_rows);
    load_tile(forward, tile, input, values);
    for (int64_t y = tile.y_begin; y < tile.y_end; ++y) {
      const int64_t row_count = source_rows(forward, tile.z, y, tile.region, rows);
      const int64_t place = (y - tile.y_begin) * row_size;
      max_row<true>(forward, values, channels, rows, row_count, tile.columns, best + place, taps + place);
    }
    store_tile(forward, tile, best, output);
    if (offsets != nullptr) store_tile(forward, tile, taps, offsets);
  });
}

// Maxima and the taps they came from, lane by lane.
template <class T>
struct Best {
  Vec<T> value;
  Vec<IntOf<T>> tap;

  // The better of the two, lane by lane: of equals the earlier tap, as if taps came one by one; of NaNs, which beat
  // everything, the later.
  SCRATCHNN_MEMBER void meet(const Best& other) {
    const Vec<IntOf<T>> nan = value != value, other_nan = other.value != other.value, later = other.tap > tap;
    const Vec<IntOf<T>> wins = (other.value > value) | ((other.value == value) & ~later);
    const Vec<IntOf<T>> better = (other_nan & (~nan | later)) | (~nan & wins);
    value = better ? other.value : value;
    tap = better ? other.tap : tap;
  }
};

// Whether each image has a single window, all of it, whose taps are numbered as its pixels.
bool is_whole(const Relation& forward) {
  if (!is_global(forward, forward.source, forward.result)) return false;
  int64_t first_tap = 0, last_tap = 0;
  for (const Links& along : forward.along) {
    first_tap += along.begin(0)->tap;
    last_tap += (along.begin(1) - 1)->tap;
  }
  return first_tap == 0 && last_tap == volume(forward.source) - 1;
}

// The best of each lane over a plane of at least a vector of numbers.
template <class S, class T = Wide<S>>
SCRATCHNN_INLINE Best<T> best_of_lanes(const S* p, int64_t count, Vec<IntOf<T>> lane) {
  constexpr int64_t n = kLanes<T>;
  Best<T> best = {read(p), lane};
  const auto take = [&](int64_t i) {
    const Vec<T> value = read(p + i);
    const Vec<IntOf<T>> better = (value > best.value) | (value != value);
    best.value = better ? value : best.value;
    best.tap = better ? lane + static_cast<IntOf<T>>(i) : best.tap;
  };
  int64_t i = n;
  for (; i + n <= count; i += n) take(i);
  // The last vector overlaps the one before: a number met again is not better than itself, nor is a NaN's tap later.
  if (i < count) best.meet({read(p + count - n), lane + static_cast<IntOf<T>>(count - n)});
  return best;
}

// Global max pooling of contiguous planes: each is read once, in order; the lanes of kLanes planes are then compared
// all at once.
template <class S, class Offset>
void max_of_planes(const S* input, S* output, Offset* offsets, const Relation& forward) {
  using T = Wide<S>;
  constexpr int n = kLanes<T>;
  const int64_t pixels = volume(forward.source);
  Vec<IntOf<T>> lane;
  for (int v = 0; v < n; ++v) lane[v] = v;
  const int64_t grain = std::max<int64_t>(n, kGrain / pixels);
  parallel_for(0, forward.images * forward.channels, grain, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i += n) {
      Vec<T> values[n];
      Vec<IntOf<T>> taps[n];
      for (int v = 0; v < n; ++v) {
        const Best<T> best = best_of_lanes(input + std::min(i + v, last - 1) * pixels, pixels, lane);
        values[v] = best.value;
        taps[v] = best.tap;
      }
      transpose<T>(values);
      transpose<IntOf<T>>(taps);
      Best<T> best = {values[0], taps[0]};
      for (int v = 1; v < n; ++v) best.meet({values[v], taps[v]});
      const int64_t count = std::min<int64_t>(n, last - i);
      write_partial(output + i, best.value, count);
      if (offsets == nullptr) continue;
      for (int64_t v = 0; v < count; ++v) offsets[i + v] = static_cast<Offset>(best.tap[v]);
    }
  });
}

// The maxima so far of some channels, and kPixels pixels more.
template <class S, int kPixels>
void take_pixels(const S* pixel, int64_t stride, int64_t channels, int64_t tap, Wide<S>* best,
                 IntOf<Wide<S>>* best_tap) {
  using T = Wide<S>;
  for_each_vector_or_part<T>(channels, [&](int64_t c, int64_t lanes) {
    prefetch(pixel + kPixels * (stride + c), kPixels * kLanes<T>);  // of the pixels after these
    Running<T, true, true> running{load(best + c), load(best_tap + c)};
#pragma GCC unroll 8
    for (int i = 0; i < kPixels; ++i) {
      const S* p = pixel + i * stride + c;
      running.take(lanes == kLanes<T> ? read(p) : read_partial(p, lanes), broadcast(static_cast<IntOf<T>>(tap + i)));
    }
    store(best + c, running.value);
    store(best_tap + c, running.tap);
  });
}

// Global max pooling of channels_last images: memory is read in order, all channels of some pixels at a time, and the
// maxima stay in the cache.
template <class S, class Offset>
void max_of_pixels(const S* input, S* output, Offset* offsets, const Relation& forward) {
  using T = Wide<S>;
  using Int = IntOf<T>;
  constexpr int64_t kAtOnce = 2048, kPixels = 8;  // channels, pixels
  const int64_t channels = forward.channels, pixels = volume(forward.source);
  const int64_t parts = (channels + kAtOnce - 1) / kAtOnce;
  const int64_t grain = std::max<int64_t>(1, kGrain / (pixels * std::min(channels, kAtOnce)));
  parallel_for(0, forward.images * parts, grain, [&](int64_t first, int64_t last) {
    auto [best, best_tap] = carve<T, Int>(kAtOnce, kAtOnce);
    for (int64_t i = first; i < last; ++i) {
      const int64_t start = i % parts * kAtOnce, count = std::min(kAtOnce, channels - start);
      const S* pixel = input + i / parts * pixels * channels + start;
      std::fill_n(best, kAtOnce, -std::numeric_limits<T>::infinity());
      std::fill_n(best_tap, kAtOnce, Int(0));
      int64_t tap = 0;
      for (; tap + kPixels <= pixels; tap += kPixels) {
        take_pixels<S, kPixels>(pixel + tap * channels, channels, count, tap, best, best_tap);
      }
      for (; tap < pixels; ++tap) take_pixels<S, 1>(pixel + tap * channels, channels, count, tap, best, best_tap);
      const int64_t to = i / parts * channels + start;
      copy_numbers(best, count, output + to);
      if (offsets != nullptr) std::transform(best_tap, best_tap + count, offsets + to, [](Int t) { return Offset(t); });
    }
  });
}

template <class T, class Offset, bool kOffsets, int kWide>
void max_side_by_side(const T* input, T* output, Offset* offsets, const Relation& forward) {
  using Int = IntOf<T>;
  const int64_t first_column = forward.along[2].links->tap;
  for_each_plane_row<T, kWide>(
      forward, forward.result[2],
      [&](int64_t plane, int64_t place, const SourceRow* rows, int64_t row_count, int64_t windows) {
        const T* source = input + plane * volume(forward.source);
        const Int first_tap = static_cast<Int>(row_count == 0 ? 0 : rows[0].tap + first_column);
        for_each_vector<T>(windows, [&](int64_t x, int64_t count) {
          Running<T, kOffsets, true> running{broadcast(-std::numeric_limits<T>::infinity()), broadcast(first_tap)};
          for (int64_t r = 0; r < row_count; ++r) {
            Vec<T> columns[kWide];
            load_columns_of<T, kWide>(source + rows[r].pixel + kWide * x, count, columns);
#pragma GCC unroll 4
            for (int k = 0; k < kWide; ++k) {
              const Link& link = forward.along[2].links[k];
              running.take(columns[k], broadcast(static_cast<Int>(rows[r].tap + link.tap)));
            }
          }
          store_some(output + place + x, running.value, count);
          if constexpr (!kOffsets) return;
          if (count == kLanes<T>) {
            store_offsets<T>(offsets + place + x, running.tap);
          } else {
            store_offset_vector<T>(offsets + place + x, running.tap, 0, Block<1, true>{0, count});
          }
        });
      });
}

template <class T, class Offset, int kWide>
auto max_side_by_side_for(bool with_offsets) {
  return with_offsets ? &max_side_by_side<T, Offset, true, kWide> : &max_side_by_side<T, Offset, false, kWide>;
}

template <class S, class Offset>
void max_pool(const S* input, S* output, Offset* offsets, const Relation& forward) {
  if (is_whole(forward)) {
    if (forward.channels_last) return max_of_pixels(input, output, offsets, forward);
    if (volume(forward.source) >= kLanes<Wide<S>>) return max_of_planes(input, output, offsets, forward);
  }
  if constexpr (std::is_same_v<S, Wide<S>>) {
    const bool with_offsets = offsets != nullptr;
    if (takes_side_by_side<2>(forward)) {
      return max_side_by_side_for<S, Offset, 2>(with_offsets)(input, output, offsets, forward);
    }
    if (takes_side_by_side<4>(forward)) {
      return max_side_by_side_for<S, Offset, 4>(with_offsets)(input, output, offsets, forward);
    }
    if constexpr (std::is_same_v<Offset, uint8_t>) {
      auto* run = with_offsets ? &max_threes<true, S> : &max_threes<false, S>;
      if (run(input, output, offsets, forward)) return;
    }
  }
  if (forward.channels_last && offsets == nullptr) {
    return max_pool_channels_last<S, Offset, false>(input, output, offsets, forward);
  }
  if (forward.channels_last) return max_pool_channels_last<S, Offset, true>(input, output, offsets, forward);
  if constexpr (std::is_same_v<Offset, uint8_t>) {
    auto* run = offsets == nullptr ? &max_of_rows<S, false> : &max_of_rows<S, true>;
    if (takes_rows<Wide<S>>(forward)) return run(input, output, offsets, forward);
  }
  max_pool_tiles(input, output, offsets, forward);
}

}  // namespace

#define SCRATCHNN_REGISTER_MAX_POOL(S)                                               \
  SCRATCHNN_REGISTER_KERNEL((max_pool_kernel<S, uint8_t>), (&max_pool<S, uint8_t>)); \
  SCRATCHNN_REGISTER_KERNEL((max_pool_kernel<S, int32_t>), (&max_pool<S, int32_t>))

SCRATCHNN_REGISTER_MAX_POOL(float);
SCRATCHNN_REGISTER_MAX_POOL(double);
SCRATCHNN_REGISTER_MAX_POOL(BFloat16);
SCRATCHNN_REGISTER_MAX_POOL(Half);

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

// Max pooling, vectorised over channels.
//
// Forward, a vector of maxima and a vector of the taps they came from run over the window. Backward, each
// input pixel asks the windows that hold it whether it was their maximum: one compare and one masked add per
// window, no memory cleared beforehand, no two threads at one pixel.
#include <limits>

#include "pool/cpu/rows.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {
namespace {

// One result row: source pixels, output pixels and offsets all have their `channels` side by side.
template <bool kOffsets, class T, class Offset>
void max_row(const Relation& forward, const T* source, int64_t channels, const SourceRow* rows,
             int64_t row_count, T* output, Offset* offsets) {
  for (int64_t x = 0; x < forward.result[2]; ++x, output += channels) {
    const Link* columns = forward.along[2].begin(x);
    const int64_t column_count = forward.along[2].count(x);
    for_each_block<T>(channels, [&](auto block) {
      Vec<T> best[block.vectors];
      Vec<IntOf<T>> best_tap[block.vectors];
      // Nothing is below -inf: where all values are, the first tap inside the input stands, as in torch.
      const bool empty = row_count == 0 || column_count == 0;
      const auto first_tap = static_cast<IntOf<T>>(empty ? 0 : rows[0].tap + columns[0].tap);
      for (int v = 0; v < block.vectors; ++v) {
        best[v] = broadcast(-std::numeric_limits<T>::infinity());
        best_tap[v] = broadcast(first_tap);
      }
      for (int64_t r = 0; r < row_count; ++r) {
        for (int64_t k = 0; k < column_count; ++k) {
          const T* p = source + (rows[r].pixel + columns[k].source) * channels + block.channel;
          const Vec<IntOf<T>> tap = broadcast(static_cast<IntOf<T>>(rows[r].tap + columns[k].tap));
          for (int v = 0; v < block.vectors; ++v) {
            const Vec<T> value = load_vector(p, v, block);
            const Vec<IntOf<T>> better = (value > best[v]) | (value != value);  // NaN beats everything
            best[v] = better ? value : best[v];
            if constexpr (kOffsets) best_tap[v] = better ? tap : best_tap[v];
          }
        }
      }
      for (int v = 0; v < block.vectors; ++v) {
        store_vector(output + block.channel, best[v], v, block);
        if constexpr (kOffsets) {
          store_offsets<T>(offsets + x * channels + block.channel + v * kLanes<T>, best_tap[v], block.lanes);
        }
      }
    });
  }
}

template <class T, class Offset, bool kOffsets>
void max_pool_channels_last(const T* input, T* output, Offset* offsets, const Relation& forward) {
  const int64_t channels = forward.channels;
  for_each_row(forward, [&](int64_t n, const SourceRow* rows, int64_t row_count, int64_t pixel) {
    const T* image = input + n * volume(forward.source) * channels;
    const int64_t place = (n * volume(forward.result) + pixel) * channels;
    max_row<kOffsets>(forward, image, channels, rows, row_count, output + place,
                      kOffsets ? offsets + place : nullptr);
  });
}

template <class T, class Offset, bool kOffsets>
void max_pool_planes(const T* input, T* output, Offset* offsets, const Relation& forward) {
  constexpr int64_t channels = kTilePlanes<T>;
  for_each_tile<T>(forward, [&](const Tile& tile) {
    const int64_t row_size = forward.result[2] * channels;
    const int64_t result_size = (tile.y_end - tile.y_begin) * row_size;
    auto [values, best, taps, rows] = carve<T, T, IntOf<T>, SourceRow>(
        tile.source_pixels * channels, result_size, result_size, forward.most_rows);
    load_tile(forward, tile, input, values);
    for (int64_t y = tile.y_begin; y < tile.y_end; ++y) {
      const int64_t row_count = source_rows(forward, tile.z, y, tile.region, rows);
      const int64_t place = (y - tile.y_begin) * row_size;
      max_row<kOffsets>(forward, values, channels, rows, row_count, best + place, taps + place);
    }
    store_tile(forward, tile, best, output);
    if constexpr (kOffsets) store_tile(forward, tile, taps, offsets);
  });
}

template <class T, class Offset>
void max_pool(const T* input, T* output, Offset* offsets, const Relation& forward) {
  if (offsets == nullptr) {
    auto* run = forward.channels_last ? &max_pool_channels_last<T, Offset, false>
                                      : &max_pool_planes<T, Offset, false>;
    run(input, output, offsets, forward);
  } else {
    auto* run =
        forward.channels_last ? &max_pool_channels_last<T, Offset, true> : &max_pool_planes<T, Offset, true>;
    run(input, output, offsets, forward);
  }
}

// One row of the input's gradient: its pixels gather from the windows whose maximum they were.
template <class T, class Offset>
void max_backward_row(const Relation& backward, const T* grad, const Offset* offsets, int64_t channels,
                      const SourceRow* rows, int64_t row_count, T* grad_input) {
  for (int64_t x = 0; x < backward.result[2]; ++x, grad_input += channels) {
    const Link* columns = backward.along[2].begin(x);
    const int64_t column_count = backward.along[2].count(x);
    for_each_block<T>(channels, [&](auto block) {
      Vec<T> sum[block.vectors] = {};
      for (int64_t r = 0; r < row_count; ++r) {
        for (int64_t k = 0; k < column_count; ++k) {
          const int64_t p = (rows[r].pixel + columns[k].source) * channels + block.channel;
          const auto tap = static_cast<IntOf<T>>(rows[r].tap + columns[k].tap);
          for (int v = 0; v < block.vectors; ++v) {
            const Vec<IntOf<T>> chosen = load_offsets<T>(offsets + p + v * kLanes<T>, block.lanes);
            sum[v] += chosen == tap ? load_vector(grad + p, v, block) : Vec<T>{};
          }
        }
      }
      for (int v = 0; v < block.vectors; ++v) store_vector(grad_input + block.channel, sum[v], v, block);
    });
  }
}

template <class T, class Offset>
void max_pool_backward(const T* grad, const Offset* offsets, T* grad_input, const Relation& backward) {
  if (backward.channels_last) {
    const int64_t channels = backward.channels;
    for_each_row(backward, [&](int64_t n, const SourceRow* rows, int64_t row_count, int64_t pixel) {
      const int64_t image = n * volume(backward.source) * channels;
      max_backward_row(backward, grad + image, offsets + image, channels, rows, row_count,
                       grad_input + (n * volume(backward.result) + pixel) * channels);
    });
    return;
  }
  constexpr int64_t channels = kTilePlanes<T>;
  for_each_tile<T>(backward, [&](const Tile& tile) {
    const int64_t row_size = backward.result[2] * channels;
    const int64_t source_size = tile.source_pixels * channels;
    auto [dy, taps, dx, rows] = carve<T, IntOf<T>, T, SourceRow>(
        source_size, source_size, (tile.y_end - tile.y_begin) * row_size, backward.most_rows);
    load_tile(backward, tile, grad, dy);
    load_tile(backward, tile, offsets, taps);
    for (int64_t y = tile.y_begin; y < tile.y_end; ++y) {
      const int64_t row_count = source_rows(backward, tile.z, y, tile.region, rows);
      max_backward_row(backward, dy, taps, channels, rows, row_count, dx + (y - tile.y_begin) * row_size);
    }
    store_tile(backward, tile, dx, grad_input);
  });
}

}  // namespace

#define SCRATCHNN_REGISTER_MAX_POOL(T, Offset)                                     \
  SCRATCHNN_REGISTER_KERNEL((max_pool_kernel<T, Offset>), (&max_pool<T, Offset>)); \
  SCRATCHNN_REGISTER_KERNEL((max_pool_backward_kernel<T, Offset>), (&max_pool_backward<T, Offset>))

SCRATCHNN_REGISTER_MAX_POOL(float, uint8_t);
SCRATCHNN_REGISTER_MAX_POOL(float, int32_t);
SCRATCHNN_REGISTER_MAX_POOL(double, uint8_t);
SCRATCHNN_REGISTER_MAX_POOL(double, int32_t);

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

// Average pooling of any windows, adaptive ones included, vectorised over channels.
//
// A window is summed row by row, each row by itself: the error of a large window grows with its sides, not
// with its area.
#include "pool/cpu/rows.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {
namespace {

// One output row: sums over windows, each divided by its divisor.
template <class T>
void average_row(const Relation& forward, const T* source, int64_t channels, const SourceRow* rows,
                 int64_t row_count, T* output) {
  for (int64_t x = 0; x < forward.result[2]; ++x, output += channels) {
    const Link* columns = forward.along[2].begin(x);
    const int64_t column_count = forward.along[2].count(x);
    const bool empty = row_count == 0 || column_count == 0;
    const T divisor = static_cast<T>(empty ? 1.0 : rows[0].factor * columns[0].factor);
    for_each_block<T>(channels, [&](auto block) {
      Vec<T> sum[block.vectors] = {};
      for (int64_t r = 0; r < row_count; ++r) {
        Vec<T> row_sum[block.vectors] = {};
        for (int64_t k = 0; k < column_count; ++k) {
          const T* p = source + (rows[r].pixel + columns[k].source) * channels + block.channel;
          for (int v = 0; v < block.vectors; ++v) row_sum[v] += load_vector(p, v, block);
        }
        for (int v = 0; v < block.vectors; ++v) sum[v] += row_sum[v];
      }
      for (int v = 0; v < block.vectors; ++v)
        store_vector(output + block.channel, sum[v] / divisor, v, block);
    });
  }
}

// One row of the input's gradient: its pixels gather their share from the windows that hold them.
template <class T>
void average_backward_row(const Relation& backward, const T* grad, int64_t channels, const SourceRow* rows,
                          int64_t row_count, T* grad_input) {
  for (int64_t x = 0; x < backward.result[2]; ++x, grad_input += channels) {
    const Link* columns = backward.along[2].begin(x);
    const int64_t column_count = backward.along[2].count(x);
    for_each_block<T>(channels, [&](auto block) {
      Vec<T> sum[block.vectors] = {};
      for (int64_t r = 0; r < row_count; ++r) {
        for (int64_t k = 0; k < column_count; ++k) {
          const T* p = grad + (rows[r].pixel + columns[k].source) * channels + block.channel;
          const T share = static_cast<T>(rows[r].factor * columns[k].factor);
          for (int v = 0; v < block.vectors; ++v) sum[v] += share * load_vector(p, v, block);
        }
      }
      for (int v = 0; v < block.vectors; ++v) store_vector(grad_input + block.channel, sum[v], v, block);
    });
  }
}

// Both passes walk alike; kRow computes a row.
template <class T, void (*kRow)(const Relation&, const T*, int64_t, const SourceRow*, int64_t, T*)>
void walk(const T* source, T* result, const Relation& relation) {
  if (relation.channels_last) {
    const int64_t channels = relation.channels;
    for_each_row(relation, [&](int64_t n, const SourceRow* rows, int64_t row_count, int64_t pixel) {
      kRow(relation, source + n * volume(relation.source) * channels, channels, rows, row_count,
           result + (n * volume(relation.result) + pixel) * channels);
    });
    return;
  }
  constexpr int64_t channels = kTilePlanes<T>;
  for_each_tile<T>(relation, [&](const Tile& tile) {
    const int64_t row_size = relation.result[2] * channels;
    auto [from, to, rows] = carve<T, T, SourceRow>(
        tile.source_pixels * channels, (tile.y_end - tile.y_begin) * row_size, relation.most_rows);
    load_tile(relation, tile, source, from);
    for (int64_t y = tile.y_begin; y < tile.y_end; ++y) {
      const int64_t row_count = source_rows(relation, tile.z, y, tile.region, rows);
      kRow(relation, from, channels, rows, row_count, to + (y - tile.y_begin) * row_size);
    }
    store_tile(relation, tile, to, result);
  });
}

template <class T>
void average(const T* input, T* output, const Relation& forward) {
  walk<T, &average_row<T>>(input, output, forward);
}

template <class T>
void average_backward(const T* grad, T* grad_input, const Relation& backward) {
  walk<T, &average_backward_row<T>>(grad, grad_input, backward);
}

}  // namespace

SCRATCHNN_REGISTER_KERNEL(average_kernel<float>, &average<float>);
SCRATCHNN_REGISTER_KERNEL(average_kernel<double>, &average<double>);
SCRATCHNN_REGISTER_KERNEL(average_backward_kernel<float>, &average_backward<float>);
SCRATCHNN_REGISTER_KERNEL(average_backward_kernel<double>, &average_backward<double>);

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

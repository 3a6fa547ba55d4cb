// The fully-connected layer's two gradients: sums of outer products, in register tiles.
//
//   dL/dx[n, c] = sum over k of dL/dy[n, k] w[k, c]      rows n, columns c, reduced over outputs k
//   dL/dw[k, c] = sum over n of dL/dy[n, k] x[n, c]      rows k, columns c, reduced over the batch n
//
// Both are left^T right with the right matrix's columns along the features. A task takes one panel of columns,
// packed so that the reduction walks memory in order, and all rows. The sums run in order over the whole
// reduction: a row of dL/dx does not depend on the others, and nothing depends on the number of threads.
#include <algorithm>

#include "common/gemm.h"
#include "common/runtime.h"
#include "linear/kernels.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {
namespace {

constexpr int64_t kReduction = 512;  // rows of the right matrix packed at a time

// out[i, c] = sum over p of left(i, p) right[p, c], left(i, p) = left[i * row_stride + p * reduction_stride]
template <class T>
void product(int64_t rows, int64_t reduction, int64_t features, const T* left, int64_t row_stride,
             int64_t reduction_stride, const T* right, T* out) {
  constexpr int64_t columns = kTileColumns<T>;
  const int64_t panels = (features + columns - 1) / columns;
  // Rows are split as well, so that few features still keep all threads busy.
  const int64_t row_blocks = std::clamp<int64_t>(rows / (4 * kTileRows), 1, 8);
  const int64_t work = std::max<int64_t>(1, rows / row_blocks * reduction * columns);
  parallel_for(0, panels * row_blocks, 1 + 65536 / work, [&](int64_t begin, int64_t end) {
    const int64_t depth = std::min(kReduction, reduction);
    T* memory = scratch<T>(depth * (columns + kTileRows) + kTileRows * columns + 2 * depth);
    T* packed_right = memory;
    T* packed_left = packed_right + depth * columns;
    T* sums = packed_left + depth * kTileRows;
    int64_t* offsets = reinterpret_cast<int64_t*>(sums + kTileRows * columns);
    for (int64_t p = 0; p < depth; ++p) offsets[p] = p * columns;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first_column = task / row_blocks * columns, width = std::min(columns, features - first_column);
      const int64_t block = task % row_blocks;
      const int64_t first_row = rows * block / row_blocks, last_row = rows * (block + 1) / row_blocks;
      if (reduction == 0) {
        for (int64_t i = first_row; i < last_row; ++i) {
          std::fill_n(out + i * features + first_column, width, T(0));
        }
      }
      for (int64_t first = 0; first < reduction; first += depth) {
        const int64_t count = std::min(depth, reduction - first);
        if (width < columns) std::fill_n(packed_right, count * columns, T(0));
        for (int64_t p = 0; p < count; ++p) {
          std::copy_n(right + (first + p) * features + first_column, width, packed_right + p * columns);
        }
        for_each_tile(last_row - first_row, [&](int64_t offset, int64_t tile_rows) {
          const int64_t row = first_row + offset;
          const T* from = left + row * row_stride + first * reduction_stride;
          for (int64_t p = 0; p < count; ++p) {
            for (int64_t r = 0; r < tile_rows; ++r) {
              packed_left[p * tile_rows + r] = from[r * row_stride + p * reduction_stride];
            }
          }
          for (int64_t r = 0; r < tile_rows; ++r) {
            T* sum = sums + r * columns;
            std::fill_n(sum, columns, T(0));
            if (first > 0) std::copy_n(out + (row + r) * features + first_column, width, sum);
          }
          with_rows(tile_rows, [&](auto n) {
            accumulate_outer_products<n, T>(packed_left, n, packed_right, offsets, count, sums, columns);
          });
          for (int64_t r = 0; r < tile_rows; ++r) {
            std::copy_n(sums + r * columns, width, out + (row + r) * features + first_column);
          }
        });
      }
    }
  });
}

template <class T>
void input_grad(const LinearShape& s, const T* grad, const T* weight, T* grad_input) {
  product(s.rows, s.out_features, s.in_features, grad, s.out_features, 1, weight, grad_input);
}

template <class T>
void weight_grad(const LinearShape& s, const T* grad, const T* input, T* grad_weight) {
  product(s.out_features, s.rows, s.in_features, grad, 1, s.out_features, input, grad_weight);
}

}  // namespace

SCRATCHNN_REGISTER_KERNEL(linear_input_grad_kernel<float>, &input_grad<float>);
SCRATCHNN_REGISTER_KERNEL(linear_input_grad_kernel<double>, &input_grad<double>);
SCRATCHNN_REGISTER_KERNEL(linear_weight_grad_kernel<float>, &weight_grad<float>);
SCRATCHNN_REGISTER_KERNEL(linear_weight_grad_kernel<double>, &weight_grad<double>);

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

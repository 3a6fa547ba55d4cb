// The fully-connected layer's two gradients: sums of outer products, in register tiles.
//
//   dL/dx[n, c] = sum over k of dL/dy[n, k] w[k, c]      rows n, columns c, reduced over outputs k
//   dL/dw[k, c] = sum over n of dL/dy[n, k] x[n, c]      rows k, columns c, reduced over the batch n
//
// Both are left^T right with the right matrix's columns along the features. The left matrix is packed once, by tiles of
// rows; a task takes one panel of columns, packed so that the reduction walks memory in order, and a block of tiles.
// The sums run in order over the whole reduction: a row of dL/dx does not depend on the others, and nothing depends on
// the number of threads.
#include <algorithm>

#include "common/gemm.h"
#include "common/runtime.h"
#include "linear/kernels.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {
namespace {

constexpr int64_t kReduction = 256;  // rows of the right matrix packed at a time
constexpr int64_t kTasks = 16;       // at least, where there are as many tiles
constexpr int64_t kGrain = 65536;    // products a thread must have to be worth waking

// out[i, c] = sum over p of left(i, p) right[p, c], left(i, p) = left[i * row_stride + p * reduction_stride]
template <class T>
void product(int64_t rows, int64_t reduction, int64_t features, const T* left, int64_t row_stride,
             int64_t reduction_stride, const T* right, T* out) {
  constexpr int64_t columns = kTileColumns<T>;
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  const auto first_row = [&](int64_t tile) { return rows * tile / tiles; };

  // Tile by tile, the numbers of all its rows for one p side by side.
  T* packed_left = scratch<T>(rows * reduction, Scratch::kCall);
  parallel_for(0, tiles, 1 + kGrain / std::max<int64_t>(1, kTileRows * reduction), [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t first = first_row(tile), count = first_row(tile + 1) - first;
      T* to = packed_left + first * reduction;
      for (int64_t p = 0; p < reduction; ++p) {
        const T* from = left + first * row_stride + p * reduction_stride;
        for (int64_t r = 0; r < count; ++r) *to++ = from[r * row_stride];
      }
    }
  });

  const int64_t panels = (features + columns - 1) / columns;
  const int64_t blocks =
      std::clamp<int64_t>((kTasks + panels - 1) / std::max<int64_t>(1, panels), 1, std::max<int64_t>(1, tiles));
  const int64_t work = std::max<int64_t>(1, rows / blocks * reduction * columns);
  parallel_for(0, panels * blocks, 1 + kGrain / work, [&](int64_t begin, int64_t end) {
    const int64_t depth = std::max<int64_t>(1, std::min(kReduction, reduction));
    T* packed_right = scratch<T>(depth * columns + kTileRows * columns + 2 * depth);
    T* sums = packed_right + depth * columns;
    int64_t* offsets = reinterpret_cast<int64_t*>(sums + kTileRows * columns);
    for (int64_t p = 0; p < depth; ++p) offsets[p] = p * columns;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t column = task / blocks * columns, width = std::min(columns, features - column);
      const int64_t block = task % blocks;
      for (int64_t first = 0; first == 0 || first < reduction; first += depth) {
        const int64_t count = std::min(depth, reduction - first);
        if (width < columns) std::fill_n(packed_right, count * columns, T(0));
        for (int64_t p = 0; p < count; ++p) {
          std::copy_n(right + (first + p) * features + column, width, packed_right + p * columns);
        }
        for (int64_t tile = tiles * block / blocks; tile < tiles * (block + 1) / blocks; ++tile) {
          const int64_t row = first_row(tile), tile_rows = first_row(tile + 1) - row;
          T* to = out + row * features + column;
          for (int64_t r = 0; r < tile_rows; ++r) {
            T* sum = sums + r * columns;
            std::fill_n(sum, columns, T(0));
            if (first > 0) std::copy_n(to + r * features, width, sum);
          }
          with_rows(tile_rows, [&](auto n) {
            accumulate_outer_products<n, T>(packed_left + row * reduction + first * n, n, packed_right, offsets, count,
                                            sums, columns);
          });
          for (int64_t r = 0; r < tile_rows; ++r) std::copy_n(sums + r * columns, width, to + r * features);
        }
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

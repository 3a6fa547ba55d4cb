// The fully-connected layer's two gradients: sums of outer products, in register tiles.
//
//   dx[n, c] = sum over k of dy[n, k] w[k, c]      rows n, columns c, reduced over outputs k
//   dw[k, c] = sum over n of dy[n, k] x[n, c]      rows k, columns c, reduced over the batch n
//
// Both are left^T right with the right matrix's columns along the features. The left matrix is packed by tiles of rows,
// a block of rows at a time; a task takes one panel of columns, packed so that the reduction walks memory in order, and
// some of the tiles. Packing widens half precision, unless the processor multiplies bfloat16 itself, two by two; the
// sums are rounded when they are complete. They run in order over the whole reduction: a row of dx does not depend on
// the others, and nothing depends on the number of threads.
#include <algorithm>

#include "common/geometry.h"
#include "common/half.h"
#include "common/runtime.h"
#include "common/stream.h"
#include "linear/cpu/panels.h"
#include "linear/kernels.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {
namespace {

constexpr int64_t kReduction = 256;          // rows of the right matrix packed at a time
constexpr int64_t kRowsAhead = 16;           // of it are asked of memory
constexpr int64_t kPackedNumbers = 4 << 20;  // of the left matrix, at a time
constexpr int64_t kMostRows = 16384;         // of the left matrix, at a time
constexpr int64_t kTasks = 16;               // about, where there are as many tiles
constexpr int64_t kFewRows = 2;              // of the batch, for which tiles would be all but empty
constexpr int64_t kManyRows = 512;           // from which on a small weight is packed
constexpr int64_t kLongBatch = 2048;         // rows from which on the weight gradient is summed in chunks of the batch
constexpr int64_t kBatchRows = 256;          // of the batch read at a time then
constexpr int64_t kSumsBytes = 64ll << 20;   // for the sums of all chunks together, at most
constexpr int64_t kGrain = 65536;            // products a thread must have to be worth waking

// out[i, c] = sum over p of left(i, p) right[p, c], left(i, p) = left[i * row_stride + p * reduction_stride], for a
// block of rows i. E is the type of the numbers that are multiplied: Wide<S>, or S itself.
template <class E, class S>
void product_of_rows(int64_t rows, int64_t reduction, int64_t features, const S* left, int64_t row_stride,
                     int64_t reduction_stride, const S* right, S* out) {
  using T = Wide<S>;
  constexpr int64_t columns = kTileColumns<T>, together = kTogether<E, T>;
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows, packed_reduction = round_up(reduction, together);
  const auto first_row = [&](int64_t tile) { return rows * tile / tiles; };

  // Tile by tile, the numbers of all its rows for one p side by side; where a step takes two p, those of each row.
  E* packed_left = scratch<E>(rows * packed_reduction, Scratch::kCall);
  parallel_for(0, tiles, 1 + kGrain / std::max<int64_t>(1, kTileRows * reduction), [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t first = first_row(tile), count = first_row(tile + 1) - first;
      E* to = packed_left + first * packed_reduction;
      for (int64_t p = 0; p < packed_reduction; p += together) {
        const S* from = left + first * row_stride + p * reduction_stride;
        for (int64_t r = 0; r < count; ++r, from += row_stride) {
          for (int64_t i = 0; i < together; ++i) {
            if constexpr (together == 1) {
              *to++ = read_one(from);
            } else {
              *to++ = p + i < reduction ? from[i * reduction_stride] : E();
            }
          }
        }
      }
    }
  });

  const bool streamed = is_worth_streaming(out, rows * features, features);
  const int64_t panels = (features + columns - 1) / columns;
  const int64_t blocks =
      std::clamp<int64_t>((kTasks + panels - 1) / std::max<int64_t>(1, panels), 1, std::max<int64_t>(1, tiles));
  const int64_t block_rows = (tiles + blocks - 1) / blocks * kTileRows;  // at most
  const int64_t work = std::max<int64_t>(1, rows / blocks * reduction * columns);
  parallel_for(0, panels * blocks, 1 + kGrain / work, [&](int64_t begin, int64_t end) {
    const int64_t depth = std::max<int64_t>(1, std::min(kReduction, reduction));
    T* sums = scratch<T>(block_rows * columns + depth * columns + 2 * depth);
    E* packed_right = reinterpret_cast<E*>(sums + block_rows * columns);
    int64_t* offsets = reinterpret_cast<int64_t*>(sums + block_rows * columns + depth * columns);
    for (int64_t p = 0; p < depth; ++p) offsets[p] = p * columns;
    Upcoming nothing;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t column = task / blocks * columns, width = std::min(columns, features - column);
      const int64_t first_tile = tiles * (task % blocks) / blocks, last_tile = tiles * (task % blocks + 1) / blocks;
      const int64_t top = first_row(first_tile), bottom = first_row(last_tile);
      std::fill_n(sums, (bottom - top) * columns, T(0));
      for (int64_t first = 0; first < reduction; first += depth) {
        const int64_t count = std::min(depth, reduction - first);
        if (width < columns) std::fill_n(packed_right, count * columns, E());
        for (int64_t p = 0; p < count; ++p) {
          const S* from = right + (first + p) * features + column;
          prefetch(from + kRowsAhead * features, width);
          copy_numbers(from, width, packed_right + p * columns);
        }
        for (int64_t tile = first_tile; tile < last_tile; ++tile) {
          const int64_t row = first_row(tile);
          with_rows(first_row(tile + 1) - row, [&](auto n) {
            accumulate_outer_products<n, E, T>(packed_left + row * packed_reduction + first * n, n, packed_right,
                                               offsets, count, width, sums + (row - top) * columns, columns, nothing);
          });
        }
      }
      for (int64_t row = top; row < bottom; ++row) {
        const T* from = sums + (row - top) * columns;
        S* to = out + row * features + column;
        if (streamed && width == columns) {
          for (int64_t c = 0; c < columns; c += kLanes<T>) stream(to + c, load(from + c));
        } else {
          copy_numbers(from, width, to);
        }
      }
    }
    if (streamed) finish_streaming();
  });
}

template <class S>
void product(int64_t rows, int64_t reduction, int64_t features, const S* left, int64_t row_stride,
             int64_t reduction_stride, const S* right, S* out) {
  const int64_t most = std::clamp<int64_t>(kPackedNumbers / std::max<int64_t>(1, reduction), kTileRows, kMostRows);
  auto* run = &product_of_rows<Wide<S>, S>;
  if constexpr (kMultipliesPairs<S>) {
    if (multiplies_pairs()) run = &product_of_rows<S, S>;
  }
  for (int64_t first = 0; first < rows; first += most) {
    run(std::min(most, rows - first), reduction, features, left + first * row_stride, row_stride, reduction_stride,
        right, out + first * features);
  }
}

// The weight gradient of a long batch: sums over chunks of it, a fixed number whatever the number of threads, that are
// added up in order. Within a chunk a block of rows at a time is read, once, while memory is asked for the next. See
// product_of_rows for E.
template <class E, class S>
void weight_grad_in_chunks(const LinearShape& s, const S* grad, const S* input, S* grad_weight) {
  using T = Wide<S>;
  constexpr int64_t columns = kTileColumns<T>, together = kTogether<E, T>;
  const int64_t in = s.in_features, out = s.out_features;
  const int64_t panels = (in + columns - 1) / columns, width = panels * columns;
  const bool in_place = std::is_same_v<S, E> && width == in;
  const int64_t affordable = kSumsBytes / (out * width * static_cast<int64_t>(sizeof(T)));
  const int64_t chunks = std::clamp<int64_t>(std::min(affordable, s.rows / kBatchRows), 1, kTasks);
  const int64_t most_outputs = std::max<int64_t>(kTileRows, (out * chunks + kTasks - 1) / kTasks);
  const int64_t blocks = std::max<int64_t>(1, out / most_outputs);

  T* sums = scratch<T>(chunks * out * width, Scratch::kCall);
  parallel_for(0, chunks * blocks, 1, [&](int64_t begin, int64_t end) {
    E* packed_grad = scratch<E>(kBatchRows * (out + 2 * columns + (in_place ? 0 : width)) +
                                kBatchRows * static_cast<int64_t>(sizeof(int64_t) / sizeof(E)));
    E* copied_input = packed_grad + kBatchRows * (out + 2 * columns);
    int64_t* offsets = reinterpret_cast<int64_t*>(copied_input + (in_place ? 0 : kBatchRows * width));
    for (int64_t p = 0; p < kBatchRows; ++p) offsets[p] = p * width;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t chunk = task / blocks, block = task % blocks;
      const int64_t first_out = out * block / blocks, outputs = out * (block + 1) / blocks - first_out;
      const int64_t first_row = s.rows * chunk / chunks, last_row = s.rows * (chunk + 1) / chunks;
      T* own = sums + (chunk * out + first_out) * width;
      std::fill_n(own, outputs * width, T(0));
      for (int64_t row = first_row; row < last_row; row += kBatchRows) {
        const int64_t count = std::min(kBatchRows, last_row - row), packed_count = round_up(count, together);
        for_each_tile(outputs, [&](int64_t first, int64_t rows) {
          with_rows(rows, [&](auto n) {
            E* to = packed_grad + first * packed_count;
            for (int64_t p = 0; p < packed_count; p += together, to += together * n) {
              const S* from = grad + (row + p) * out + first_out + first;
              if constexpr (together == 1) {
                copy_rows<n>(from, p + 1 < count && out >= kCopiedRows<T>, to);
              } else {
                for (int r = 0; r < n; ++r) {
                  to[2 * r] = from[r];
                  to[2 * r + 1] = p + 1 < count ? from[out + r] : E();
                }
              }
            }
          });
        });
        const E* right = copied_input;
        if constexpr (std::is_same_v<S, E>) right = in_place ? input + row * in : copied_input;
        if (!in_place) {
          for (int64_t p = 0; p < count; ++p) copy_numbers(input + (row + p) * in, in, copied_input + p * width);
        }
        const int64_t ahead = std::min(kBatchRows, last_row - row - count);
        Upcoming upcoming[2];  // of both matrices, of dy where one task reads all of it: tiles take turns
        const int64_t kinds = blocks == 1 ? 2 : 1;
        const int64_t steps = panels * ((outputs + kTileRows - 1) / kTileRows) * packed_count / together / kinds;
        upcoming[0] = Upcoming(input + (row + count) * in, ahead * in, steps);
        if (kinds == 2) upcoming[1] = Upcoming(grad + (row + count) * out, ahead * out, steps);
        int64_t turn = 0;
        for (int64_t panel = 0; panel < panels; ++panel) {
          for_each_tile(outputs, [&](int64_t first, int64_t rows) {
            Upcoming& now = upcoming[turn++ % kinds];
            with_rows(rows, [&](auto n) {
              accumulate_outer_products<n, E, T>(packed_grad + first * packed_count, n, right + panel * columns,
                                                 offsets, count, in - panel * columns,
                                                 own + first * width + panel * columns, width, now);
            });
          });
        }
      }
    }
  });
  parallel_for(0, out, 1 + kGrain / (width * chunks), [&](int64_t first, int64_t last) {
    for (int64_t k = first; k < last; ++k) {
      T* row = sums + k * width;
      for (int64_t chunk = 1; chunk < chunks; ++chunk) {
        for (int64_t c = 0; c < width; c += kLanes<T>)
          store(row + c, load(row + c) + load(row + chunk * out * width + c));
      }
      copy_numbers(row, in, grad_weight + k * in);
    }
  });
}

// A few rows of the batch: memory is read and written in its order, in which there is little else to do.
//
// dx, some columns of all rows at a time: the sums stay in the cache while the weight streams by. See product_of_rows
// for E.
template <class E, class S>
void input_grad_of_few(const LinearShape& s, const S* grad, const S* weight, S* grad_input) {
  using T = Wide<S>;
  constexpr int64_t n = kLanes<T>, columns = 1024, together = kTogether<E, T>, run = together * kOuterProducts;
  static constexpr S kZeros[columns] = {};
  const int64_t in = s.in_features, out = s.out_features, blocks = (in + columns - 1) / columns;
  parallel_for(0, blocks, 1 + kGrain / (columns * out), [&](int64_t begin, int64_t end) {
    T* run_sums = scratch<T>(2 * kFewRows * (columns + n));
    T* sums = run_sums + kFewRows * (columns + n);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t column = block * columns, width = std::min(columns, in - column);
      std::fill_n(sums, s.rows * (columns + n), T(0));
      for (int64_t first = 0; first < out; first += run) {  // sums of sums are more exact
        std::fill_n(run_sums, s.rows * (columns + n), T(0));
        for (int64_t k = first; k < std::min(out, first + run); k += together) {
          const S* w = weight + k * in + column;
          const S* next = k + 1 < out ? w + in : kZeros;
          for (int64_t row = 0; row < s.rows; ++row) {
            const S* dy = grad + row * out + k;
            T* to = run_sums + row * (columns + n);
            int64_t c = 0;
            if constexpr (together == 1) {
              const Vec<T> x = broadcast(read_one(dy));
              for (; c + n <= width; c += n) store(to + c, fma(x, read(w + c), load(to + c)));
              if (c < width) store(to + c, fma(x, read_partial(w + c, width - c), load(to + c)));
            } else {
              const S pair[2] = {dy[0], k + 1 < out ? dy[1] : S()};
              const Vec<T> x = spread<E, T>(pair);
              for (; c < width; c += n) {
                Vec<T> sum = load(to + c);
                multiply_add<E, T>(x, load_pairs(w + c, next + c, width - c), sum);
                store(to + c, sum);
              }
            }
          }
        }
        for (int64_t i = 0; i < s.rows * (columns + n); i += n) store(sums + i, load(sums + i) + load(run_sums + i));
      }
      for (int64_t row = 0; row < s.rows; ++row) {
        copy_numbers(sums + row * (columns + n), width, grad_input + row * in + column);
      }
    }
  });
}

// dw, row by row.
template <class S>
void weight_grad_of_few(const LinearShape& s, const S* grad, const S* input, S* grad_weight) {
  using T = Wide<S>;
  constexpr int64_t n = kLanes<T>;
  const int64_t in = s.in_features, out = s.out_features;
  const bool streamed = is_worth_streaming(grad_weight, out * in, in);
  parallel_for(0, out, 1 + kGrain / std::max<int64_t>(1, in * s.rows), [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      S* to = grad_weight + k * in;
      for (int64_t c = 0; c < in; c += n) {
        const int64_t lanes = std::min(n, in - c);
        Vec<T> sum = {};
        for (int64_t row = 0; row < s.rows; ++row) {
          const S* x = input + row * in + c;
          sum = fma(broadcast(read_one(grad + row * out + k)), lanes == n ? read(x) : read_partial(x, lanes), sum);
        }
        if (streamed) {
          stream(to + c, sum);
        } else if (lanes == n) {
          write(to + c, sum);
        } else {
          write_partial(to + c, sum, lanes);
        }
      }
    }
    if (streamed) finish_streaming();
  });
}

// dx of many rows by a small weight, which is packed once.
template <class T>
void input_grad_in_panels(const LinearShape& s, const T* grad, const T* weight, T* grad_input) {
  constexpr int64_t columns = kTileColumns<T>;
  const int64_t in = s.in_features, out = s.out_features, panels = (in + columns - 1) / columns;
  T* packed = scratch<T>(panels * out * columns, Scratch::kCall);
  if (in % columns > 0) std::fill_n(packed + (panels - 1) * out * columns, out * columns, T(0));
  for (int64_t k = 0; k < out; ++k) {
    for (int64_t panel = 0; panel < panels; ++panel) {
      std::copy_n(weight + k * in + panel * columns, std::min(columns, in - panel * columns),
                  packed + (panel * out + k) * columns);
    }
  }
  multiply_by_panels<kOuterProducts, T>(s.rows, out, in, grad, packed, nullptr, grad_input);
}

// All ways add up the same numbers in the same order: a row of dx does not depend on the others.
template <class S>
void input_grad(const LinearShape& s, const S* grad, const S* weight, S* grad_input) {
  if (s.rows <= kFewRows && s.out_features > 0) {
    auto* run = &input_grad_of_few<Wide<S>, S>;
    if constexpr (kMultipliesPairs<S>) {
      if (multiplies_pairs()) run = &input_grad_of_few<S, S>;
    }
    return run(s, grad, weight, grad_input);
  }
  if constexpr (std::is_same_v<S, Wide<S>>) {
    const bool fits = s.out_features * s.in_features * static_cast<int64_t>(sizeof(S)) <= kPackedBytes;
    if (fits && s.rows >= kManyRows && s.out_features > 0 && s.in_features > 0) {
      return input_grad_in_panels(s, grad, weight, grad_input);
    }
  }
  product(s.rows, s.out_features, s.in_features, grad, s.out_features, 1, weight, grad_input);
}

template <class S>
void weight_grad(const LinearShape& s, const S* grad, const S* input, S* grad_weight) {
  if (s.rows <= kFewRows) return weight_grad_of_few(s, grad, input, grad_weight);
  if (s.rows >= kLongBatch && s.in_features > 0 && s.out_features > 0) {
    auto* run = &weight_grad_in_chunks<Wide<S>, S>;
    if constexpr (kMultipliesPairs<S>) {
      if (multiplies_pairs()) run = &weight_grad_in_chunks<S, S>;
    }
    return run(s, grad, input, grad_weight);
  }
  product(s.out_features, s.rows, s.in_features, grad, 1, s.out_features, input, grad_weight);
}

}  // namespace

#define SCRATCHNN_REGISTER(S)                                             \
  SCRATCHNN_REGISTER_KERNEL(linear_input_grad_kernel<S>, &input_grad<S>); \
  SCRATCHNN_REGISTER_KERNEL(linear_weight_grad_kernel<S>, &weight_grad<S>);
SCRATCHNN_REGISTER(float)
SCRATCHNN_REGISTER(double)
SCRATCHNN_REGISTER(BFloat16)
SCRATCHNN_REGISTER(Half)
#undef SCRATCHNN_REGISTER

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

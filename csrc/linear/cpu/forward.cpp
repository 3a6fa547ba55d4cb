// The fully-connected layer's forward pass: dot products of rows of the input with rows of the weight.
//
// Both lie in memory as they are read, so nothing is packed, and a batch of one costs no more than reading the
// weight. Each output is one vector of partial sums over every kLanes-th feature, added up at the end: the same
// order whatever the batch, so a sample's output never depends on its neighbours. Half precision is widened as it is
// read, the weight in registers, the input once for a block of rows; where the processor multiplies bfloat16 itself, it
// takes it two by two.
//
// Where features are few, adding up those vectors would take long. There the weight is small as well: it is packed into
// panels of outputs (panels.h), and register tiles keep a sum in each lane.
#include <algorithm>

#include "common/runtime.h"
#include "common/transpose.h"
#include "linear/cpu/panels.h"
#include "linear/kernels.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {
namespace {

// A tile of 3 x 4 sums, three input vectors and one weight vector fill AVX2's sixteen registers, 6 x 4 most of
// AVX-512's.
#if defined(CPU_CAPABILITY_AVX512)
constexpr int kRows = 6;
#else
constexpr int kRows = 3;
#endif
constexpr int kOutputs = 4;
constexpr int64_t kBlockBytes = 128 << 10;  // of input rows, kept in the second-level cache
constexpr int64_t kBlockOutputs = 64;       // outputs of one task

constexpr int64_t kFewFeatures = 192;

// The next lanes of a row, or pairs of them where the processor multiplies those.
template <class E, class T, class S>
SCRATCHNN_INLINE Vec<T> next_of(const S* row) {
  if constexpr (std::is_same_v<E, T>) {
    return read(row);
  } else {
    return load_as<E, T>(row);
  }
}

// The same of fewer, followed by zeros.
template <class E, class T, class S>
SCRATCHNN_INLINE Vec<T> last_of(const S* row, int64_t count) {
  if constexpr (std::is_same_v<E, T>) {
    return read_partial(row, count);
  } else {
    E padded[kLanes<T> * kTogether<E, T>] = {};
    std::copy_n(row, count, padded);
    return load_as<E, T>(padded);
  }
}

// E is the type of the numbers that are multiplied: that of the sums, T, or S itself.
template <int rows, int outputs, class E, class X, class S>
void dot_products(const X* x, const S* w, int64_t features, const S* bias, S* y, int64_t y_stride) {
  using T = Wide<S>;
  constexpr int64_t together = kLanes<T> * kTogether<E, T>;
  Vec<T> sums[rows][outputs] = {};
  const auto step = [&](auto load_at) __attribute__((always_inline)) {
    Vec<T> xs[rows];
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) xs[r] = load_at(x + r * features);
#pragma GCC unroll 4
    for (int k = 0; k < outputs; ++k) {
      const Vec<T> weight = load_at(w + k * features);
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) multiply_add<E, T>(xs[r], weight, sums[r][k]);
    }
  };
  int64_t c = 0;
  for (; c + together <= features; c += together) {
    step([&](const auto* row) __attribute__((always_inline)) { return next_of<E, T>(row + c); });
  }
  if (c < features) {
    step([&](const auto* row) __attribute__((always_inline)) { return last_of<E, T>(row + c, features - c); });
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
    T total[outputs];
    if constexpr (outputs == 4) {
      horizontal_sums<T>(sums[r], total);
    } else {
      for (int k = 0; k < outputs; ++k) total[k] = horizontal_sum<T>(sums[r][k]);
    }
    for (int k = 0; k < outputs; ++k) {
      write_one(y + r * y_stride + k, total[k] + (bias != nullptr ? read_one(bias + k) : T(0)));
    }
  }
}

// `outputs` neighbouring outputs of some rows.
template <int outputs, class E, class X, class S>
void outputs_of_rows(const X* x, int64_t rows, const S* w, int64_t features, const S* bias, S* y, int64_t y_stride) {
  for_each_tile(
      rows,
      [&](int64_t n, int64_t count) {
        with_rows<kRows>(count, [&](auto tile_rows) {
          dot_products<tile_rows, outputs, E>(x + n * features, w, features, bias, y + n * y_stride, y_stride);
        });
      },
      kRows);
}

// Few features: panel by panel of outputs, for tiles of rows.
template <class T>
void linear_in_panels(const LinearShape& s, const T* input, const T* weight, const T* bias, T* output) {
  constexpr int64_t columns = kTileColumns<T>;
  const int64_t in = s.in_features, out = s.out_features, panels = (out + columns - 1) / columns;
  T* packed = scratch<T>(panels * (in + 1) * columns, Scratch::kCall);
  T* biases = packed + panels * in * columns;
  std::fill_n(packed, panels * (in + 1) * columns, T(0));
  for (int64_t panel = 0; panel < panels; ++panel) {
    const int64_t first = panel * columns, count = std::min(columns, out - first);
    transpose_block(weight + first * in, in, packed + panel * in * columns, columns, count, in);
    if (bias != nullptr) std::copy_n(bias + first, count, biases + first);
  }
  multiply_by_panels<kProductsInTile>(s.rows, in, out, input, packed, bias != nullptr ? biases : nullptr, output);
}

// Block by block of rows and outputs; see dot_products for E.
template <class E, class S>
void linear_in_blocks(const LinearShape& s, const S* input, const S* weight, const S* bias, S* output) {
  constexpr bool widens = !std::is_same_v<S, E>;
  const int64_t row_bytes = std::max<int64_t>(1, s.in_features * static_cast<int64_t>(sizeof(E)));
  const int64_t block_rows = std::max<int64_t>(kRows, kBlockBytes / row_bytes / kRows * kRows);
  const int64_t row_blocks = (s.rows + block_rows - 1) / block_rows;
  const int64_t output_blocks = (s.out_features + kBlockOutputs - 1) / kBlockOutputs;
  const bool weight_once = s.out_features > s.rows;  // the larger matrix is read from memory once
  const int64_t most_rows = std::min(block_rows, s.rows);
  const int64_t work = most_rows * std::min(kBlockOutputs, s.out_features) * s.in_features;
  parallel_for(0, row_blocks * output_blocks, 1 + 65536 / std::max<int64_t>(1, work), [&](int64_t begin, int64_t end) {
    [[maybe_unused]] E* widened = widens ? scratch<E>(most_rows * s.in_features) : nullptr;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row_block = weight_once ? task % row_blocks : task / output_blocks;
      const int64_t output_block = weight_once ? task / row_blocks : task % output_blocks;
      const int64_t first_row = row_block * block_rows, rows = std::min(block_rows, s.rows - first_row);
      const int64_t first_out = output_block * kBlockOutputs;
      const int64_t last_out = std::min(s.out_features, first_out + kBlockOutputs);
      const E* x;
      if constexpr (widens) {
        copy_numbers(input + first_row * s.in_features, rows * s.in_features, widened);
        x = widened;
      } else {
        x = input + first_row * s.in_features;
      }
      const auto compute = [&](int64_t k, auto count) {
        outputs_of_rows<count, E>(x, rows, weight + k * s.in_features, s.in_features,
                                  bias != nullptr ? bias + k : nullptr, output + first_row * s.out_features + k,
                                  s.out_features);
      };
      int64_t k = first_out;
      for (; k + kOutputs <= last_out; k += kOutputs) compute(k, std::integral_constant<int, kOutputs>());
      for (; k < last_out; ++k) compute(k, std::integral_constant<int, 1>());
    }
  });
}

template <class S>
void linear(const LinearShape& s, const S* input, const S* weight, const S* bias, S* output) {
  using T = Wide<S>;
  if constexpr (std::is_same_v<S, T>) {
    const bool few = s.in_features <= kFewFeatures && s.out_features >= kTileColumns<T>;
    if (few && s.in_features * s.out_features * static_cast<int64_t>(sizeof(T)) <= kPackedBytes) {
      return linear_in_panels(s, input, weight, bias, output);
    }
  }
  if constexpr (kMultipliesPairs<S>) {
    if (multiplies_pairs()) return linear_in_blocks<S>(s, input, weight, bias, output);
  }
  linear_in_blocks<T>(s, input, weight, bias, output);
}

}  // namespace

SCRATCHNN_REGISTER_KERNEL(linear_kernel<float>, &linear<float>);
SCRATCHNN_REGISTER_KERNEL(linear_kernel<double>, &linear<double>);
SCRATCHNN_REGISTER_KERNEL(linear_kernel<BFloat16>, &linear<BFloat16>);
SCRATCHNN_REGISTER_KERNEL(linear_kernel<Half>, &linear<Half>);

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

// What a bilinear layer adds to products of matrices: dot products of rows, and rows times numbers.
#include <algorithm>

#include "common/runtime.h"
#include "common/simd.h"
#include "linear/kernels.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {
namespace {

constexpr int64_t kGrain = 16384;  // numbers a thread must have to be worth waking

template <class T>
void row_dots(int64_t rows, int64_t columns, const T* a, const T* b, T start, T* output, int64_t stride) {
  constexpr int64_t lanes = kLanes<T>;
  parallel_for(0, rows, 1 + kGrain / std::max<int64_t>(1, columns), [&](int64_t first, int64_t last) {
    for (int64_t n = first; n < last; ++n) {
      const T *x = a + n * columns, *y = b + n * columns;
      Vec<T> sum = {}, other = {};
      int64_t c = 0;
      for (; c + 2 * lanes <= columns; c += 2 * lanes) {
        sum = fma(load(x + c), load(y + c), sum);
        other = fma(load(x + c + lanes), load(y + c + lanes), other);
      }
      for (; c < columns; c += lanes) {
        const int64_t count = std::min(lanes, columns - c);
        sum = fma(load_partial(x + c, count), load_partial(y + c, count), sum);
      }
      output[n * stride] = start + horizontal_sum<T>(sum + other);
    }
  });
}

template <class T>
void scale_rows(int64_t rows, int64_t columns, const T* a, const T* factors, int64_t stride, T* output) {
  constexpr int64_t lanes = kLanes<T>;
  parallel_for(0, rows, 1 + kGrain / std::max<int64_t>(1, columns), [&](int64_t first, int64_t last) {
    for (int64_t n = first; n < last; ++n) {
      const T factor = factors[n * stride];
      const T* from = a + n * columns;
      T* to = output + n * columns;
      int64_t c = 0;
      for (; c + lanes <= columns; c += lanes) store(to + c, load(from + c) * factor);
      for (; c < columns; ++c) to[c] = from[c] * factor;
    }
  });
}

}  // namespace

SCRATCHNN_REGISTER_KERNEL(row_dots_kernel<float>, &row_dots<float>);
SCRATCHNN_REGISTER_KERNEL(row_dots_kernel<double>, &row_dots<double>);
SCRATCHNN_REGISTER_KERNEL(scale_rows_kernel<float>, &scale_rows<float>);
SCRATCHNN_REGISTER_KERNEL(scale_rows_kernel<double>, &scale_rows<double>);

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

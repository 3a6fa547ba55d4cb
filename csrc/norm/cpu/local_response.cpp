// Local response normalization: each number over a power of the sum of squares in a window of channels.
//
// Some pixels with all their channels are brought into a table, channels x pixels, that stays in the cache; lanes
// are pixels, whatever the memory format. The sums over a sliding window cost two additions a number, however long
// the window, and nothing is ever subtracted, so nothing cancels: channels fall into blocks as long as the window,
// and a window is the end of one block and the beginning of the next (van Herk 1992; Gil & Werman 1993).
#if defined(CPU_CAPABILITY_AVX2) || defined(CPU_CAPABILITY_AVX512)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cmath>

#include "common/half.h"
#include "common/runtime.h"
#include "norm/cpu/formulas.h"
#include "norm/kernels.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {
namespace {

constexpr int64_t kTableBytes = 64 * 1024;  // of each of the tables
constexpr int64_t kWidest = 256;            // pixels
constexpr int64_t kGrain = 8192;            // numbers a thread must have to be worth waking

// `width` pixels of a sample, in tables whose rows hold `columns`.
template <class T>
struct Table {
  const Window& window;
  int64_t columns;  // a multiple of the lanes
  int64_t of_a_sample, count;

  explicit Table(const Window& w) : window(w) {
    const int64_t fitting = kTableBytes / (w.channels * static_cast<int64_t>(sizeof(T)));
    const int64_t width = std::clamp<int64_t>(std::min(fitting, w.pixels), 1, kWidest);
    columns = (width + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
    of_a_sample = (w.pixels + columns - 1) / columns;
    count = of_a_sample * w.samples;
  }

  int64_t size() const { return window.channels * columns; }
  int64_t window_length() const { return window.before + window.after + 1; }
  // Numbers of scratch memory for window_sums.
  int64_t sums_size() const { return (window_length() + 1) * columns; }
  int64_t first(int64_t i) const { return i % of_a_sample * columns; }
  int64_t width(int64_t i) const { return std::min(columns, window.pixels - first(i)); }
  int64_t start(int64_t i) const {
    const int64_t sample = i / of_a_sample * window.channels * window.pixels;
    return sample + first(i) * (window.channels_last ? window.channels : 1);
  }

  void bring(const T* tensor, int64_t i, T* table) const {
    const T* from = tensor + start(i);
    const int64_t n = width(i);
    if (n < columns) std::fill_n(table, size(), T(0));
    if (window.channels_last) {
      transpose_block(from, window.channels, table, columns, n, window.channels);
    } else {
      for (int64_t c = 0; c < window.channels; ++c) {
        std::memcpy(table + c * columns, from + c * window.pixels, static_cast<size_t>(n) * sizeof(T));
      }
    }
  }

  void take(const T* table, int64_t i, T* tensor) const {
    T* to = tensor + start(i);
    const int64_t n = width(i);
    if (window.channels_last) {
      transpose_block(table, columns, to, window.channels, window.channels, n);
    } else {
      for (int64_t c = 0; c < window.channels; ++c) {
        std::memcpy(to + c * window.pixels, table + c * columns, static_cast<size_t>(n) * sizeof(T));
      }
    }
  }
};

// use(c, column, sum of term(i, column) over the channels i from c - before to c + after) for all numbers of a table.
template <class T, class Term, class Use>
SCRATCHNN_INLINE void window_sums(int64_t channels, int64_t columns, int64_t before, int64_t after, T* memory,
                                  const Term& term, const Use& use) {
  const int64_t length = before + after + 1;
  T* ends = memory;                          // row j: the sum of a block from its number j on
  T* beginning = memory + length * columns;  // the sum of the next block up to some number
  const auto add_row = [&](T* sums, const T* to, int64_t i) SCRATCHNN_INLINE_LAMBDA {
    for (int64_t column = 0; column < columns; column += kLanes<T>) {
      Vec<T> sum = to == nullptr ? Vec<T>{} : load(to + column);
      if (i >= 0 && i < channels) sum += term(i, column);
      store(sums + column, sum);
    }
  };
  for (int64_t block = -before; block < channels - before; block += length) {
    for (int64_t j = length - 1; j >= 0; --j) {
      add_row(ends + j * columns, j + 1 < length ? ends + (j + 1) * columns : nullptr, block + j);
    }
    const int64_t last = std::min(length, channels - before - block);
    for (int64_t j = 0; j < last; ++j) {  // the window that begins with number j of the block
      if (j > 0) add_row(beginning, j > 1 ? beginning : nullptr, block + length + j - 1);
      for (int64_t column = 0; column < columns; column += kLanes<T>) {
        Vec<T> sum = load(ends + j * columns + column);
        if (j > 0) sum += load(beginning + column);
        use(block + j + before, column, sum);
      }
    }
  }
}

// Lane by lane; compilers make one instruction of it only where they may forget about errno.
template <class T>
SCRATCHNN_INLINE Vec<T> square_root(Vec<T> v) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm512_sqrt_ps((__m512)v);
  if constexpr (sizeof(T) == 8) return (Vec<T>)_mm512_sqrt_pd((__m512d)v);
#elif defined(CPU_CAPABILITY_AVX2)
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm256_sqrt_ps((__m256)v);
  if constexpr (sizeof(T) == 8) return (Vec<T>)_mm256_sqrt_pd((__m256d)v);
#else
  for (int i = 0; i < kLanes<T>; ++i) v[i] = std::sqrt(v[i]);
  return v;
#endif
}

// s^-beta, number by number. The exponents of AlexNet (3/4) and its relatives are roots.
template <class T>
void inverse_powers(const T* s, double beta, T* powers, int64_t count) {
  const Vec<T> one = broadcast(T(1));
  if (beta == 0.75) {
    for (int64_t i = 0; i < count; i += kLanes<T>) {
      const Vec<T> root = square_root<T>(load(s + i));
      store(powers + i, one / (root * square_root<T>(root)));
    }
  } else if (beta == 0.5) {
    for (int64_t i = 0; i < count; i += kLanes<T>) store(powers + i, one / square_root<T>(load(s + i)));
  } else if (beta == 1) {
    for (int64_t i = 0; i < count; i += kLanes<T>) store(powers + i, one / load(s + i));
  } else {
    for (int64_t i = 0; i < count; ++i) powers[i] = std::pow(s[i], static_cast<T>(-beta));
  }
}

// s = k + scale * (the sum of squares over the window).
template <class T>
void scales(const Table<T>& table, const T* x, T* s, T* memory) {
  const Window& window = table.window;
  const Vec<T> k = broadcast(static_cast<T>(window.k)), scale = broadcast(static_cast<T>(window.scale));
  window_sums<T>(
      window.channels, table.columns, window.before, window.after, memory,
      [&](int64_t i, int64_t column) SCRATCHNN_INLINE_LAMBDA {
        const Vec<T> v = load(x + i * table.columns + column);
        return v * v;
      },
      [&](int64_t c, int64_t column, Vec<T> sum)
          SCRATCHNN_INLINE_LAMBDA { store(s + c * table.columns + column, fma(sum, scale, k)); });
}

template <class T>
void local_response_norm(const Window& window, const T* input, T* output) {
  const Table<T> table(window);
  const int64_t size = table.size();
  parallel_for(0, table.count, std::max<int64_t>(1, kGrain / size), [&](int64_t first, int64_t last) {
    T* x = scratch<T>(3 * size + table.sums_size());
    T *s = x + size, *powers = s + size, *memory = powers + size;
    for (int64_t i = first; i < last; ++i) {
      table.bring(input, i, x);
      scales(table, x, s, memory);
      inverse_powers(s, window.beta, powers, size);
      for (int64_t j = 0; j < size; j += kLanes<T>) store(x + j, load(x + j) * load(powers + j));
      table.take(x, i, output);
    }
  });
}

template <class T>
void local_response_norm_backward(const Window& window, const T* grad, const T* input, T* grad_input) {
  const Table<T> table(window);
  const int64_t size = table.size(), columns = table.columns;
  const Vec<T> slope = broadcast(static_cast<T>(-2 * window.scale * window.beta));
  parallel_for(0, table.count, std::max<int64_t>(1, kGrain / size), [&](int64_t first, int64_t last) {
    T* x = scratch<T>(4 * size + table.sums_size());
    T *g = x + size, *s = g + size, *powers = s + size, *memory = powers + size;
    for (int64_t i = first; i < last; ++i) {
      table.bring(input, i, x);
      table.bring(grad, i, g);
      scales(table, x, s, memory);
      inverse_powers(s, window.beta, powers, size);
      for (int64_t j = 0; j < size; j += kLanes<T>) {
        const Vec<T> direct = load(g + j) * load(powers + j);  // g s^-beta
        store(g + j, direct);
        store(s + j, direct * load(x + j) / load(s + j));  // g x s^(-beta - 1)
      }
      window_sums<T>(
          window.channels, columns, window.after, window.before, memory,
          [&](int64_t c, int64_t column) SCRATCHNN_INLINE_LAMBDA { return load(s + c * columns + column); },
          [&](int64_t c, int64_t column, Vec<T> sum) SCRATCHNN_INLINE_LAMBDA {
            const int64_t j = c * columns + column;
            store(powers + j, fma(load(x + j) * slope, sum, load(g + j)));
          });
      table.take(powers, i, grad_input);
    }
  });
}

}  // namespace

SCRATCHNN_REGISTER_KERNEL(local_response_norm_kernel<float>, &local_response_norm<float>);
SCRATCHNN_REGISTER_KERNEL(local_response_norm_kernel<double>, &local_response_norm<double>);
SCRATCHNN_REGISTER_KERNEL(local_response_norm_backward_kernel<float>, &local_response_norm_backward<float>);
SCRATCHNN_REGISTER_KERNEL(local_response_norm_backward_kernel<double>, &local_response_norm_backward<double>);

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

// Softmax, softmin and log-softmax, and their derivatives.
//
// Where the rows lie along memory (inner = 1) each is walked on its own; where they lie side by side, a cache line's
// worth of them at once, a row a lane. A row is computed in the same order wherever it stands. Sums are added up in
// short runs first, so that long rows lose no accuracy.
#include <algorithm>
#include <cmath>
#include <limits>

#include "activation/kernels.h"
#include "common/half.h"
#include "common/runtime.h"
#include "common/vector_math.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {
namespace {

constexpr int64_t kGrain = 4096;  // numbers a thread must have to be worth waking
constexpr int64_t kRun = 32;      // terms of a run

// A sum of vectors in runs.
template <class T>
struct Sum {
  Vec<T> total = {}, run = {};
  int64_t terms = 0;
  SCRATCHNN_MEMBER void add(Vec<T> v) {
    run += v;
    if (++terms == kRun) {
      total += run;
      run = Vec<T>{};
      terms = 0;
    }
  }
  SCRATCHNN_MEMBER Vec<T> value() const { return total + run; }
};

template <class T>
SCRATCHNN_INLINE Vec<T> log_of_lanes(Vec<T> v) {
  for (int i = 0; i < kLanes<T>; ++i) v[i] = std::log(v[i]);
  return v;
}

// The first `count` lanes, the others of them `fill`.
template <class S>
SCRATCHNN_INLINE Vec<Wide<S>> read_first(const S* p, int64_t count, Wide<S> fill) {
  Vec<Wide<S>> v = read_partial(p, count);
  for (int64_t i = count; i < kLanes<Wide<S>>; ++i) v[i] = fill;
  return v;
}

// body(i, count) for the vectors of a row, the last one shorter.
template <class T, class Body>
SCRATCHNN_INLINE void for_each_vector(int64_t size, const Body& body) {
  constexpr int64_t lanes = kLanes<T>;
  int64_t i = 0;
  for (; i + lanes <= size; i += lanes) body(i, std::integral_constant<int64_t, lanes>());
  if (i < size) body(i, size - i);
}

template <class S, class Count>
SCRATCHNN_INLINE Vec<Wide<S>> take(const S* p, Count count, Wide<S> fill) {
  if constexpr (std::is_same_v<Count, int64_t>) {
    return read_first(p, count, fill);
  } else {
    return read(p);
  }
}

template <class S, class Count>
SCRATCHNN_INLINE void put(S* p, Vec<Wide<S>> v, Count count) {
  if constexpr (std::is_same_v<Count, int64_t>) {
    write_partial(p, v, count);
  } else {
    write(p, v);
  }
}

// Where e^(x - m) is kept between two passes: in the output, unless that is too narrow.
template <class S>
Wide<S>* between_passes(S* output, int64_t count) {
  if constexpr (std::is_same_v<S, Wide<S>>) {
    return output;
  } else {
    return scratch<Wide<S>>(count);
  }
}

template <Softmax f, class S>
void softmax_row(const S* x, S* y, int64_t size) {
  using T = Wide<S>;
  constexpr T sign = f == Softmax::softmin ? T(-1) : T(1), least = -std::numeric_limits<T>::infinity();
  Vec<T> most = broadcast(least);
  for_each_vector<T>(size, [&](int64_t i, auto count) {
    const Vec<T> v = sign * take(x + i, count, sign * least);
    most = v > most ? v : most;
  });
  T m = most[0];
  for (int i = 1; i < kLanes<T>; ++i) m = std::max(m, T(most[i]));
  Sum<T> sum;
  T* e = f == Softmax::log_softmax ? nullptr : between_passes(y, size);
  for_each_vector<T>(size, [&](int64_t i, auto count) {
    const Vec<T> v = exp(sign * take(x + i, count, sign * least) - m);
    sum.add(v);
    if (f != Softmax::log_softmax) put(e + i, v, count);
  });
  const T total = horizontal_sum<T>(sum.value());
  const T log_total = std::log(total);
  for_each_vector<T>(size, [&](int64_t i, auto count) {
    put(y + i, f == Softmax::log_softmax ? (take(x + i, count, T(0)) - m) - log_total : take(e + i, count, T(0)) / total,
        count);
  });
}

// dx = y (dy - sum dy y), or of the logarithm dy - e^y sum dy
template <Softmax f, class S>
void softmax_backward_row(const S* dy, const S* y, S* dx, int64_t size) {
  using T = Wide<S>;
  constexpr T sign = f == Softmax::softmin ? T(-1) : T(1);
  Sum<T> sum;
  for_each_vector<T>(size, [&](int64_t i, auto count) {
    const Vec<T> g = take(dy + i, count, T(0));
    sum.add(f == Softmax::log_softmax ? g : g * take(y + i, count, T(0)));
  });
  const T total = horizontal_sum<T>(sum.value());
  for_each_vector<T>(size, [&](int64_t i, auto count) {
    const Vec<T> g = take(dy + i, count, T(0)), v = take(y + i, count, T(0));
    put(dx + i, f == Softmax::log_softmax ? g - exp(v) * total : sign * v * (g - total), count);
  });
}

// Rows side by side, `inner` apart: `count` of them.
template <Softmax f, class S, class Count>
SCRATCHNN_INLINE void softmax_columns(const S* x, S* y, int64_t size, int64_t inner, Count count) {
  using T = Wide<S>;
  constexpr T sign = f == Softmax::softmin ? T(-1) : T(1), least = -std::numeric_limits<T>::infinity();
  Vec<T> most = broadcast(least);
  for (int64_t i = 0; i < size; ++i) {
    const Vec<T> v = sign * take(x + i * inner, count, T(0));
    most = v > most ? v : most;
  }
  Sum<T> sum;
  T* e = f == Softmax::log_softmax ? nullptr : between_passes(y, size * kLanes<T>);
  const int64_t stride = std::is_same_v<S, T> ? inner : kLanes<T>;
  for (int64_t i = 0; i < size; ++i) {
    const Vec<T> v = exp(sign * take(x + i * inner, count, T(0)) - most);
    sum.add(v);
    if (f != Softmax::log_softmax) put(e + i * stride, v, count);
  }
  const Vec<T> total = sum.value(), log_total = f == Softmax::log_softmax ? log_of_lanes<T>(total) : total;
  for (int64_t i = 0; i < size; ++i) {
    put(y + i * inner,
        f == Softmax::log_softmax ? (take(x + i * inner, count, T(0)) - most) - log_total
                                  : take(e + i * stride, count, T(0)) / total,
        count);
  }
}

template <Softmax f, class S, class Count>
SCRATCHNN_INLINE void softmax_backward_columns(const S* dy, const S* y, S* dx, int64_t size, int64_t inner,
                                               Count count) {
  using T = Wide<S>;
  constexpr T sign = f == Softmax::softmin ? T(-1) : T(1);
  Sum<T> sum;
  for (int64_t i = 0; i < size; ++i) {
    const Vec<T> g = take(dy + i * inner, count, T(0));
    sum.add(f == Softmax::log_softmax ? g : g * take(y + i * inner, count, T(0)));
  }
  const Vec<T> total = sum.value();
  for (int64_t i = 0; i < size; ++i) {
    const Vec<T> g = take(dy + i * inner, count, T(0)), v = take(y + i * inner, count, T(0));
    put(dx + i * inner, f == Softmax::log_softmax ? g - exp(v) * total : sign * v * (g - total), count);
  }
}

// row(offset) for every row along memory, or column(offset, count) for every vector of rows side by side.
template <class T, class Row, class Column>
void for_each_row(const Rows& r, const Row& row, const Column& column) {
  if (r.size == 0) return;
  if (r.inner == 1) {
    parallel_for(0, r.outer, 1 + kGrain / r.size, [&](int64_t first, int64_t last) {
      for (int64_t o = first; o < last; ++o) row(o * r.size);
    });
    return;
  }
  constexpr int64_t line = 64 / static_cast<int64_t>(sizeof(T));  // rows of a cache line go to the same thread
  const int64_t lines = (r.inner + line - 1) / line;
  parallel_for(0, r.outer * lines, 1 + kGrain / (r.size * line), [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const int64_t start = task / lines * r.size * r.inner, begin = task % lines * line;
      for_each_vector<T>(std::min(line, r.inner - begin),
                         [&](int64_t k, auto count) { column(start + begin + k, count); });
    }
  });
}

template <Softmax f, class S>
void softmax_of(const Rows& r, const S* x, S* y) {
  for_each_row<Wide<S>>(
      r, [&](int64_t at) { softmax_row<f>(x + at, y + at, r.size); },
      [&](int64_t at, auto count) { softmax_columns<f>(x + at, y + at, r.size, r.inner, count); });
}

template <Softmax f, class S>
void softmax_backward_of(const Rows& r, const S* dy, const S* y, S* dx) {
  for_each_row<Wide<S>>(
      r, [&](int64_t at) { softmax_backward_row<f>(dy + at, y + at, dx + at, r.size); },
      [&](int64_t at, auto count) {
        softmax_backward_columns<f>(dy + at, y + at, dx + at, r.size, r.inner, count);
      });
}

template <class S>
void softmax(Softmax f, const Rows& r, const S* input, S* output) {
  if (f == Softmax::softmax) softmax_of<Softmax::softmax>(r, input, output);
  if (f == Softmax::softmin) softmax_of<Softmax::softmin>(r, input, output);
  if (f == Softmax::log_softmax) softmax_of<Softmax::log_softmax>(r, input, output);
}

template <class S>
void softmax_backward(Softmax f, const Rows& r, const S* grad, const S* output, S* grad_input) {
  if (f == Softmax::softmax) softmax_backward_of<Softmax::softmax>(r, grad, output, grad_input);
  if (f == Softmax::softmin) softmax_backward_of<Softmax::softmin>(r, grad, output, grad_input);
  if (f == Softmax::log_softmax) softmax_backward_of<Softmax::log_softmax>(r, grad, output, grad_input);
}

}  // namespace

#define SCRATCHNN_REGISTER(S)                                  \
  SCRATCHNN_REGISTER_KERNEL(softmax_kernel<S>, &softmax<S>);   \
  SCRATCHNN_REGISTER_KERNEL(softmax_backward_kernel<S>, &softmax_backward<S>);
SCRATCHNN_REGISTER(float)
SCRATCHNN_REGISTER(double)
SCRATCHNN_REGISTER(BFloat16)
SCRATCHNN_REGISTER(Half)
#undef SCRATCHNN_REGISTER

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

// The gated linear unit: y = a sigmoid(b), with a and b the halves of each row.
#include <algorithm>

#include "activation/kernels.h"
#include "common/half.h"
#include "common/runtime.h"
#include "common/vector_math.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {
namespace {

constexpr int64_t kGrain = 8192;  // numbers a thread must have to be worth waking

// body(i, at, count) for `count` outputs from i on, whose a starts at `at` and b at `at + half`.
template <class Body>
void for_each_run(const Rows& r, const Body& body) {
  const int64_t half = r.size * r.inner;
  parallel_for(0, r.outer * half, kGrain, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last;) {
      const int64_t block = i / half, end = std::min(last, (block + 1) * half);
      body(i, i + block * half, end - i);
      i = end;
    }
  });
}

template <class S>
void glu(const Rows& r, const S* input, S* output) {
  using T = Wide<S>;
  constexpr int64_t lanes = kLanes<T>;
  const int64_t half = r.size * r.inner;
  for_each_run(r, [&](int64_t start, int64_t at, int64_t count) {
    const S *a = input + at, *b = a + half;
    S* y = output + start;
    int64_t i = 0;
    for (; i + lanes <= count; i += lanes) write(y + i, read(a + i) * sigmoid(read(b + i)));
    if (i < count) {
      const int64_t rest = count - i;
      write_partial(y + i, read_partial(a + i, rest) * sigmoid(read_partial(b + i, rest)), rest);
    }
  });
}

// da = dy sigmoid(b), db = dy a sigmoid(b) (1 - sigmoid(b))
template <class S>
void glu_backward(const Rows& r, const S* grad, const S* input, S* grad_input) {
  using T = Wide<S>;
  constexpr int64_t lanes = kLanes<T>;
  const int64_t half = r.size * r.inner;
  for_each_run(r, [&](int64_t start, int64_t at, int64_t count) {
    const S *dy = grad + start, *a = input + at, *b = a + half;
    S *da = grad_input + at, *db = da + half;
    int64_t i = 0;
    for (; i + lanes <= count; i += lanes) {
      const Vec<T> s = sigmoid(read(b + i)), gated = read(dy + i) * s;
      write(da + i, gated);
      write(db + i, gated * read(a + i) * (T(1) - s));
    }
    if (i < count) {
      const int64_t rest = count - i;
      const Vec<T> s = sigmoid(read_partial(b + i, rest)), gated = read_partial(dy + i, rest) * s;
      write_partial(da + i, gated, rest);
      write_partial(db + i, gated * read_partial(a + i, rest) * (T(1) - s), rest);
    }
  });
}

}  // namespace

#define SCRATCHNN_REGISTER(S)                         \
  SCRATCHNN_REGISTER_KERNEL(glu_kernel<S>, &glu<S>); \
  SCRATCHNN_REGISTER_KERNEL(glu_backward_kernel<S>, &glu_backward<S>);
SCRATCHNN_REGISTER(float)
SCRATCHNN_REGISTER(double)
SCRATCHNN_REGISTER(BFloat16)
SCRATCHNN_REGISTER(Half)
#undef SCRATCHNN_REGISTER

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

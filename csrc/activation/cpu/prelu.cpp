// PReLU, a leaky ReLU whose slope is learned, one for each channel or one for all.
//
// The slope's gradient is a sum over everything: short runs in the type of computation, added up in double. What the
// runs are, and their order, follows from the shape alone.
#include <algorithm>

#include "activation/kernels.h"
#include "common/half.h"
#include "common/runtime.h"
#include "common/simd.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {
namespace {

constexpr int64_t kGrain = 16384;  // numbers a thread must have to be worth waking
constexpr int64_t kPiece = 4096;   // numbers of a channel that have a partial sum of their own
constexpr int64_t kRun = 64;       // vectors, or rows of channels, summed in the type of computation
constexpr int64_t kChunks = 16;    // of rows of channels, at most

// y for `count` numbers; slope(i) is a vector of theirs.
template <class S, class Slope>
SCRATCHNN_INLINE void forward_run(const S* x, S* y, int64_t count, const Slope& slope) {
  using T = Wide<S>;
  constexpr int64_t lanes = kLanes<T>;
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const Vec<T> v = read(x + i);
    write(y + i, v > T(0) ? v : v * slope(i));
  }
  if (i < count) {
    const Vec<T> v = read_partial(x + i, count - i);
    write_partial(y + i, v > T(0) ? v : v * slope(i), count - i);
  }
}

// dx for `count` numbers; add(i, dy x where x <= 0) for each vector, zero in lanes beyond the last number.
template <class S, class Slope, class Add>
SCRATCHNN_INLINE void backward_run(const S* dy, const S* x, S* dx, int64_t count, const Slope& slope, const Add& add) {
  using T = Wide<S>;
  constexpr int64_t lanes = kLanes<T>;
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const Vec<T> g = read(dy + i), v = read(x + i);
    write(dx + i, v > T(0) ? g : g * slope(i));
    add(i, v > T(0) ? Vec<T>{} : g * v);
  }
  if (i < count) {
    const Vec<T> g = read_partial(dy + i, count - i), v = read_partial(x + i, count - i);
    write_partial(dx + i, v > T(0) ? g : g * slope(i), count - i);
    add(i, v > T(0) ? Vec<T>{} : g * v);
  }
}

// The slopes widened into `slopes`, which has room to read a whole vector at the last one.
template <class S>
void widen_slopes(const S* weight, int64_t channels, Wide<S>* slopes) {
  constexpr int64_t lanes = kLanes<Wide<S>>;
  for (int64_t c = 0; c < channels; c += lanes) {
    store(slopes + c, read_partial(weight + c, std::min<int64_t>(lanes, channels - c)));
  }
}

template <class S>
void prelu(const Rows& r, const S* input, const S* weight, S* output) {
  using T = Wide<S>;
  if (r.outer * r.size * r.inner == 0) return;
  T* slopes = scratch<T>(2 * kLanes<T> + r.size, Scratch::kCall);
  widen_slopes(weight, r.size, slopes);
  if (r.inner == 1) {  // channels side by side
    parallel_for(0, r.outer, 1 + kGrain / r.size, [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row) {
        forward_run(input + row * r.size, output + row * r.size, r.size, [&](int64_t c) { return load(slopes + c); });
      }
    });
    return;
  }
  parallel_for(0, r.outer * r.size * r.inner, kGrain, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last;) {
      const int64_t row = i / r.inner, end = std::min(last, (row + 1) * r.inner);
      const Vec<T> slope = broadcast(slopes[row % r.size]);
      forward_run(input + i, output + i, end - i, [&](int64_t) { return slope; });
      i = end;
    }
  });
}

// Into how many pieces the numbers that one channel has in a row are cut.
int64_t pieces_of(const Rows& r) {
  return (r.inner + kPiece - 1) / kPiece;
}

// Channels side by side: each chunk of rows has sums of its own.
template <class S>
void backward_of_rows(const Rows& r, const S* grad, const S* input, const Wide<S>* slopes, S* grad_input,
                      double* partial, double* grad_weight) {
  using T = Wide<S>;
  const int64_t chunks = std::clamp<int64_t>(r.outer / kRun, 1, kChunks), room = r.size + kLanes<T>;
  parallel_for(0, chunks, 1 + kGrain / std::max<int64_t>(1, r.outer / chunks * r.size), [&](int64_t begin, int64_t end) {
    T* run = scratch<T>(room);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      double* own = partial + chunk * r.size;
      std::fill(own, own + r.size, 0.0);
      const int64_t last = r.outer * (chunk + 1) / chunks;
      for (int64_t first = r.outer * chunk / chunks; first < last; first += kRun) {
        std::fill(run, run + room, T(0));
        for (int64_t row = first; row < std::min(last, first + kRun); ++row) {
          const int64_t at = row * r.size;
          backward_run(
              grad + at, input + at, grad_input + at, r.size, [&](int64_t c) { return load(slopes + c); },
              [&](int64_t c, Vec<T> term) { store(run + c, load(run + c) + term); });
        }
        for (int64_t c = 0; c < r.size; ++c) own[c] += static_cast<double>(run[c]);
      }
    }
  });
  for (int64_t c = 0; c < r.size; ++c) {
    for (int64_t chunk = 0; chunk < chunks; ++chunk) grad_weight[c] += partial[chunk * r.size + c];
  }
}

// Channels one after the other: each piece of a plane has a sum of its own.
template <class S>
void backward_of_planes(const Rows& r, const S* grad, const S* input, const Wide<S>* slopes, S* grad_input,
                        double* partial, double* grad_weight) {
  using T = Wide<S>;
  const int64_t per_plane = pieces_of(r), pieces = r.outer * r.size * per_plane;
  parallel_for(0, pieces, 1 + kGrain / std::min(r.inner, kPiece), [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t plane = piece / per_plane, first = piece % per_plane * kPiece;
      const int64_t at = plane * r.inner + first, count = std::min(kPiece, r.inner - first);
      const Vec<T> slope = broadcast(slopes[plane % r.size]);
      double sum = 0;
      for (int64_t i = 0; i < count; i += kRun * kLanes<T>) {
        Vec<T> run = {};
        backward_run(
            grad + at + i, input + at + i, grad_input + at + i, std::min<int64_t>(kRun * kLanes<T>, count - i),
            [&](int64_t) { return slope; }, [&](int64_t, Vec<T> term) { run += term; });
        sum += static_cast<double>(horizontal_sum<T>(run));
      }
      partial[piece] = sum;
    }
  });
  for (int64_t piece = 0; piece < pieces; ++piece) grad_weight[piece / per_plane % r.size] += partial[piece];
}

template <class S>
void prelu_backward(const Rows& r, const S* grad, const S* input, const S* weight, S* grad_input,
                    double* grad_weight) {
  std::fill(grad_weight, grad_weight + r.size, 0.0);
  if (r.outer * r.size * r.inner == 0) return;
  using T = Wide<S>;
  const bool side_by_side = r.inner == 1;
  const int64_t sums = r.size * (side_by_side ? kChunks : r.outer * pieces_of(r));
  double* partial = scratch<double>(sums + r.size + 2 * kLanes<T>, Scratch::kCall);
  T* slopes = reinterpret_cast<T*>(partial + sums);
  widen_slopes(weight, r.size, slopes);
  (side_by_side ? backward_of_rows<S> : backward_of_planes<S>)(r, grad, input, slopes, grad_input, partial,
                                                               grad_weight);
}

}  // namespace

#define SCRATCHNN_REGISTER(S)                              \
  SCRATCHNN_REGISTER_KERNEL(prelu_kernel<S>, &prelu<S>);   \
  SCRATCHNN_REGISTER_KERNEL(prelu_backward_kernel<S>, &prelu_backward<S>);
SCRATCHNN_REGISTER(float)
SCRATCHNN_REGISTER(double)
SCRATCHNN_REGISTER(BFloat16)
SCRATCHNN_REGISTER(Half)
#undef SCRATCHNN_REGISTER

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

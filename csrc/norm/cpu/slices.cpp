// Normalization where the numbers of a set come in long runs: batch norm of N x C x H x W in memory.
//
// A set is small enough for the cache more often than not, so each is finished before the next one is begun:
// its statistics, then, from the cache, its outputs. The sums are taken over fixed chunks of a set and
// combined in order, so they are the same numbers however many threads there are.
#include <algorithm>

#include "common/runtime.h"
#include "common/simd.h"
#include "norm/cpu/endings.h"
#include "norm/cpu/formulas.h"
#include "norm/kernels.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {
namespace {

constexpr int64_t kBlock = 1024;         // numbers summed in their own precision
constexpr int64_t kChunk = 8192;         // numbers in a chunk, at the least
constexpr int64_t kMostChunks = 16;      // chunks of a set
constexpr int64_t kGrain = 32768;        // numbers a thread must have to be worth waking
constexpr int64_t kSetsWorthFusing = 8;  // with fewer sets than this, threads share a set

// The numbers of a set: `outer` runs of length `inner`, cut into chunks of whole runs.
struct Runs {
  Interleaved geometry;
  int64_t chunk_runs, chunks;

  explicit Runs(const Interleaved& sets) : geometry(sets) {
    chunk_runs = std::max((sets.outer + kMostChunks - 1) / kMostChunks, (kChunk + sets.inner - 1) / sets.inner);
    chunks = (sets.outer + chunk_runs - 1) / chunk_runs;
  }

  int64_t start(int64_t outer, int64_t set) const { return (outer * geometry.sets + set) * geometry.inner; }

  // visit(position of the first number) for each run of a chunk of a set.
  template <class Visit>
  void for_each(int64_t set, int64_t chunk, const Visit& visit) const {
    const int64_t last = std::min((chunk + 1) * chunk_runs, geometry.outer);
    for (int64_t outer = chunk * chunk_runs; outer < last; ++outer) visit(start(outer, set));
  }
};

// reduce(set, chunk) for all chunks of a set, then finish(set), then apply(set, chunk) for all chunks.
template <class Reduce, class Finish, class Apply>
void set_by_set(const Runs& runs, const Reduce& reduce, const Finish& finish, const Apply& apply) {
  const int64_t sets = runs.geometry.sets, chunks = runs.chunks;
  if (sets >= kSetsWorthFusing) {
    parallel_for(0, sets, std::max<int64_t>(1, kGrain / runs.geometry.count()), [&](int64_t first, int64_t last) {
      for (int64_t set = first; set < last; ++set) {
        for (int64_t chunk = 0; chunk < chunks; ++chunk) reduce(set, chunk);
        finish(set);
        for (int64_t chunk = chunks - 1; chunk >= 0; --chunk) apply(set, chunk);  // what the cache still has first
      }
    });
    return;
  }
  const int64_t grain = std::max<int64_t>(1, kGrain / (runs.chunk_runs * runs.geometry.inner));
  const auto for_each_chunk = [&](const auto& body) {
    parallel_for(0, sets * chunks, grain, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) body(i % sets, i / sets);
    });
  };
  for_each_chunk(reduce);
  for (int64_t set = 0; set < sets; ++set) finish(set);
  for_each_chunk(apply);
}

// body(offset, lane) for the whole vectors of a run, four at a time while that lasts, and tail(offset) for
// the vector that ends with the run, where a rest is left.
template <class T, class Body, class Tail>
SCRATCHNN_INLINE void for_each_vector(int64_t length, const Body& body, const Tail& tail) {
  constexpr int64_t n = kLanes<T>;
  int64_t i = 0;
  for (; i + 4 * n <= length; i += 4 * n) {
    body(i, 0);
    body(i + n, 1);
    body(i + 2 * n, 2);
    body(i + 3 * n, 3);
  }
  for (; i + n <= length; i += n) body(i, 0);
  if (i < length) tail(length - n);
}

template <class T>
SCRATCHNN_INLINE T total(const Vec<T> (&lanes)[4]) {
  return horizontal_sum<T>((lanes[0] + lanes[1]) + (lanes[2] + lanes[3]));
}

// Two sums over a chunk of a set, one of `first` and one of `second`, taken block by block: for a block of
// runs, add(position, length, sums_a, sums_b), then fold(count, sum_a, sum_b).
template <class T, class Add, class Fold>
SCRATCHNN_INLINE void sum_chunk(const Runs& runs, int64_t set, int64_t chunk, const Add& add, const Fold& fold) {
  Vec<T> a[4] = {}, b[4] = {};
  int64_t pending = 0;
  const auto flush = [&] {
    fold(pending, total<T>(a), total<T>(b));
    for (int i = 0; i < 4; ++i) a[i] = b[i] = Vec<T>{};
    pending = 0;
  };
  runs.for_each(set, chunk, [&](int64_t start) {
    for (int64_t done = 0; done < runs.geometry.inner; done += kBlock) {
      const int64_t length = std::min(kBlock, runs.geometry.inner - done);
      add(start + done, length, a, b);
      pending += length;
      if (pending >= kBlock) flush();
    }
  });
  if (pending > 0) flush();
}

struct Moments {
  double count, mean, squares;  // squared deviations from the mean, summed
};

template <class T>
Moments chunk_moments(const Runs& runs, const T* input, int64_t set, int64_t chunk) {
  const T* start = input + runs.start(chunk * runs.chunk_runs, set);
  T shift = 0;
  for (int64_t i = 0; i < kShortestSlice; ++i) shift += start[i];
  shift /= static_cast<T>(kShortestSlice);
  Moments moments = {0, 0, 0};
  const Vec<IntOf<T>> fresh = last_lanes<T>(runs.geometry.inner % kLanes<T>);
  const auto add = [&](int64_t position, int64_t length, Vec<T>(&sum)[4], Vec<T>(&squares)[4]) {
    const T* x = input + position;
    const Vec<T> centre = broadcast(shift);
    for_each_vector<T>(
        length,
        [&](int64_t i, int lane) {
          const Vec<T> d = load(x + i) - centre;
          sum[lane] += d;
          squares[lane] = fma(d, d, squares[lane]);
        },
        [&](int64_t i) {
          const Vec<T> d = fresh ? load(x + i) - centre : Vec<T>{};
          sum[0] += d;
          squares[0] = fma(d, d, squares[0]);
        });
  };
  sum_chunk<T>(runs, set, chunk, add, [&](int64_t count, T sum, T squares) {
    const double more = static_cast<double>(count);
    merge_block(moments.mean, moments.squares, shift, sum, squares, BlockWeights(moments.count, more));
    moments.count += more;
    shift = static_cast<T>(moments.mean);
  });
  return moments;
}

// output[i] = value(i) for the vectors of a run; what lies before the last one may be read by value(i), so the vector
// that ends with the run leaves it as it is.
template <class T, class Value>
SCRATCHNN_INLINE void write_run(T* output, int64_t start, int64_t length, const Value& value) {
  const Vec<IntOf<T>> fresh = last_lanes<T>(length % kLanes<T>);
  for_each_vector<T>(
      length, [&](int64_t i, int) { store(output + start + i, value(start + i)); },
      [&](int64_t i) {
        const Vec<T> before = load(output + start + i);
        store(output + start + i, fresh ? value(start + i) : before);
      });
}

template <class T, class Finish>
SCRATCHNN_INLINE void apply_forward(const ForwardLine<T>& line, const T* x, T* y, int64_t start, int64_t length,
                                    const Finish& finish) {
  const Vec<T> centre = broadcast(line.centre), scale = broadcast(line.scale), offset = broadcast(line.offset);
  write_run(y, start, length, [&](int64_t i) { return finish(fma(load(x + i) - centre, scale, offset), i); });
}

template <class T>
void norm_train(const Interleaved& geometry, const T* input, T* output, const double* weight, const double* bias,
                double eps, double* mean, double* variance, const Ending<T>& ending) {
  const Runs runs(geometry);
  Moments* moments = scratch<Moments>(geometry.sets * runs.chunks);
  set_by_set(
      runs,
      [&](int64_t set, int64_t chunk) { moments[set * runs.chunks + chunk] = chunk_moments(runs, input, set, chunk); },
      [&](int64_t set) {
        Moments all = moments[set * runs.chunks];
        for (int64_t chunk = 1; chunk < runs.chunks; ++chunk) {
          const Moments& part = moments[set * runs.chunks + chunk];
          const double share = part.count / (all.count + part.count);
          merge(all.mean, all.squares, part.mean, part.squares, share, share * all.count);
          all.count += part.count;
        }
        mean[set] = all.mean;
        variance[set] = all.squares / all.count;
      },
      [&](int64_t set, int64_t chunk) {
        if (output == nullptr) return;
        const ForwardLine<T> line(weight[set], bias[set], mean[set], variance[set], eps);
        with_finish(ending, [&](const auto& finish) {
          runs.for_each(set, chunk,
                        [&](int64_t start) { apply_forward(line, input, output, start, geometry.inner, finish); });
        });
      });
}

template <class T>
void norm_eval(const Interleaved& geometry, const T* input, T* output, const double* weight, const double* bias,
               double eps, const double* mean, const double* variance, const Ending<T>& ending) {
  const int64_t grain = std::max<int64_t>(1, kGrain / geometry.inner);
  parallel_for(0, geometry.outer * geometry.sets, grain, [&](int64_t first, int64_t last) {
    with_finish(ending, [&](const auto& finish) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t set = i % geometry.sets;
        const ForwardLine<T> line(weight[set], bias[set], mean[set], variance[set], eps);
        apply_forward(line, input, output, i * geometry.inner, geometry.inner, finish);
      }
    });
  });
}

struct GradSums {
  double g, g_x;  // sums of g and of g (x - centre)
};

template <class T, class Gate>
GradSums chunk_grad_sums(const Runs& runs, const T* grad, const T* input, int64_t set, int64_t chunk,
                         const ForwardLine<T>& line, const Gate& gate) {
  GradSums sums = {0, 0};
  const Vec<T> centre = broadcast(line.centre), scale = broadcast(line.scale), shift = broadcast(line.offset);
  const Vec<IntOf<T>> fresh = last_lanes<T>(runs.geometry.inner % kLanes<T>);
  const auto add = [&](int64_t position, int64_t length, Vec<T>(&sum_g)[4], Vec<T>(&sum_g_x)[4]) {
    const T* x = input + position;
    for_each_vector<T>(
        length,
        [&](int64_t i, int lane) {
          const Vec<T> d = load(x + i) - centre;
          const Vec<T> slope = gate(grad, position + i, fma(d, scale, shift));
          sum_g[lane] += slope;
          sum_g_x[lane] = fma(slope, d, sum_g_x[lane]);
        },
        [&](int64_t i) {
          const Vec<T> d = load(x + i) - centre;
          const Vec<T> all = gate(grad, position + i, fma(d, scale, shift));
          const Vec<T> slope = fresh ? all : Vec<T>{};
          sum_g[0] += slope;
          sum_g_x[0] = fma(slope, d, sum_g_x[0]);
        });
  };
  sum_chunk<T>(runs, set, chunk, add, [&](int64_t, T sum_g, T sum_g_x) {
    sums.g += sum_g;
    sums.g_x += sum_g_x;
  });
  return sums;
}

template <class T>
SCRATCHNN_INLINE void apply_backward(const BackwardLine<T>& line, const T* g, const T* x, T* dx, int64_t start,
                                     int64_t length) {
  const Vec<T> centre = broadcast(line.centre), grad_scale = broadcast(line.grad_scale);
  const Vec<T> input_scale = broadcast(line.input_scale), offset = broadcast(line.offset);
  write_run(dx, start, length,
            [&](int64_t i) { return fma(load(g + i), grad_scale, fma(load(x + i) - centre, input_scale, offset)); });
}

// dx = g grad_scale, where mean and variance do not depend on x.
template <class T>
SCRATCHNN_INLINE void apply_scale(T grad_scale, const T* g, T* dx, int64_t start, int64_t length) {
  const Vec<T> scale = broadcast(grad_scale);
  write_run(dx, start, length, [&](int64_t i) { return load(g + i) * scale; });
}

template <class T>
void norm_backward(const Interleaved& geometry, const T* grad, const T* input, T* grad_input, const double* weight,
                   const double* mean, const double* variance, double eps, bool training, double* grad_weight,
                   double* grad_bias, const Ending<T>& ending, const Gate<T>& gate) {
  const Runs runs(geometry);
  const T* passed = gate.passed == nullptr ? grad : gate.passed;
  const double count = static_cast<double>(geometry.count());
  GradSums* sums = scratch<GradSums>(geometry.sets * runs.chunks);
  set_by_set(
      runs,
      [&](int64_t set, int64_t chunk) {
        const double bias = gate.bias == nullptr ? 0 : gate.bias[set];
        const ForwardLine<T> line(weight[set], bias, mean[set], variance[set], eps);
        with_gate(ending, gate, [&](const auto& open) {
          sums[set * runs.chunks + chunk] = chunk_grad_sums(runs, grad, input, set, chunk, line, open);
        });
      },
      [&](int64_t set) {
        GradSums all = {0, 0};
        for (int64_t chunk = 0; chunk < runs.chunks; ++chunk) {
          all.g += sums[set * runs.chunks + chunk].g;
          all.g_x += sums[set * runs.chunks + chunk].g_x;
        }
        grad_bias[set] = all.g;
        grad_weight[set] = sum_g_x_hat<T>(all.g, all.g_x, mean[set], variance[set], eps);
      },
      [&](int64_t set, int64_t chunk) {
        const double share = weight[set] / count;
        const BackwardLine<T> line(weight[set], mean[set], variance[set], eps, share * grad_bias[set],
                                   share * grad_weight[set]);
        runs.for_each(set, chunk, [&](int64_t i) {
          if (training) {
            apply_backward(line, passed, input, grad_input, i, geometry.inner);
          } else {
            apply_scale(line.grad_scale, passed, grad_input, i, geometry.inner);
          }
        });
      });
}

}  // namespace

SCRATCHNN_REGISTER_KERNEL(norm_train_slices<float>, &norm_train<float>);
SCRATCHNN_REGISTER_KERNEL(norm_train_slices<double>, &norm_train<double>);
SCRATCHNN_REGISTER_KERNEL(norm_eval_slices<float>, &norm_eval<float>);
SCRATCHNN_REGISTER_KERNEL(norm_eval_slices<double>, &norm_eval<double>);
SCRATCHNN_REGISTER_KERNEL(norm_backward_slices<float>, &norm_backward<float>);
SCRATCHNN_REGISTER_KERNEL(norm_backward_slices<double>, &norm_backward<double>);

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

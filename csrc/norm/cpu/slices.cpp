// Normalization where the numbers of a set come in long runs: batch norm of N x C x H x W in memory.
//
// A set is small enough for the cache more often than not, so each is finished before the next one is begun:
// its statistics, then, from the cache, its outputs. The sums are taken over fixed chunks of a set and
// combined in order, so they are the same numbers however many threads there are.
#include <algorithm>
#include <type_traits>
#include <vector>

#include "common/runtime.h"
#include "common/simd.h"
#include "norm/cpu/endings.h"
#include "norm/cpu/formulas.h"
#include "norm/kernels.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {
namespace {

constexpr int64_t kBlockVectors = 64;     // whose numbers are summed in their own precision: four times 16 additions
constexpr int64_t kChunk = 8192;          // numbers in a chunk, at the least
constexpr int64_t kMostChunks = 16;       // chunks of a set
constexpr int64_t kGrain = 32768;         // numbers a thread must have to be worth waking
constexpr int64_t kSetsWorthFusing = 8;   // with fewer sets than this, threads share a set
constexpr int64_t kLongRun = 1024;        // numbers
constexpr int64_t kShortRun = 256;        // of which much is read, once only, it is read in the order of memory
constexpr int64_t kMuch = 1 << 20;        // numbers
constexpr int64_t kSetBytes = 160 << 10;  // of sets that stay in the second-level cache while the next one comes

// The numbers of a set: `outer` runs of length `inner`, cut into chunks of whole runs.
struct Runs {
  Interleaved geometry;
  bool in_order;  // of memory: all sets of a chunk before the next chunk
  int64_t chunk_runs, chunks;

  explicit Runs(const Interleaved& sets, bool read_once = false)
      : geometry(sets), in_order(read_once && sets.inner <= kShortRun && sets.size() >= kMuch) {
    chunk_runs = (sets.outer + kMostChunks - 1) / kMostChunks;
    if (!in_order) chunk_runs = std::max(chunk_runs, (kChunk + sets.inner - 1) / sets.inner);
    chunks = (sets.outer + chunk_runs - 1) / chunk_runs;
  }

  // From a number to its like in the next run, where that is to be written and runs are too short for the processor to
  // see what comes.
  int64_t ahead() const { return geometry.inner <= kLongRun && !in_order ? geometry.sets * geometry.inner : 0; }

  // From number i of a run to what comes about kAhead numbers later of the same set, in this run or a later one.
  int64_t later(int64_t i) const {
    const int64_t inner = geometry.inner, run = geometry.sets * inner;
    if (in_order) return kAhead;
    if (inner <= kLongRun) return run;
    return i + kAhead < inner ? kAhead : kAhead - inner + run;
  }

  // From a number to its like in the next set, asked of memory while a set that is in the cache is gone through for the
  // second time: memory would have nothing to do but to take what is written. `bytes`: that a set has of each number.
  int64_t next(int64_t bytes) const { return geometry.count() * bytes <= kSetBytes && !in_order ? geometry.inner : 0; }

  int64_t start(int64_t outer, int64_t set) const { return (outer * geometry.sets + set) * geometry.inner; }

  // visit(position of the first number) for each run of a chunk of a set.
  template <class Visit>
  void for_each(int64_t set, int64_t chunk, const Visit& visit) const {
    const int64_t last = std::min((chunk + 1) * chunk_runs, geometry.outer);
    for (int64_t outer = chunk * chunk_runs; outer < last; ++outer) visit(start(outer, set));
  }
};

// reduce(set, chunk) for all chunks of a set, then finish(set), then apply(set, chunk) for all chunks: set by set, or
// for all sets together.
template <class Reduce, class Finish, class Apply>
void set_by_set(const Runs& runs, const Reduce& reduce, const Finish& finish, const Apply& apply) {
  const int64_t sets = runs.geometry.sets, chunks = runs.chunks;
  if (sets >= kSetsWorthFusing && !runs.in_order) {
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

// body(offset, lane, part) for the vectors of a run, four at a time while that lasts; whole vectors are a `full` part.
template <class T, class Full, class Body>
SCRATCHNN_INLINE void for_each_vector(int64_t length, Full full, const Body& body) {
  constexpr int64_t n = kLanes<T>;
  int64_t i = 0;
  for (; i + 4 * n <= length; i += 4 * n) {
    body(i, 0, full);
    body(i + n, 1, full);
    body(i + 2 * n, 2, full);
    body(i + 3 * n, 3, full);
  }
  for (; i + n <= length; i += n) body(i, 0, full);
  if (i < length) body(i, 1, FirstLanes{length - i});
}

// The sum of all lanes, in double: a mean near zero would show the rounding of the last few additions.
template <class T>
SCRATCHNN_INLINE double total(Vec<T> a, Vec<T> b, Vec<T> c, Vec<T> d) {
  T numbers[4 * kLanes<T>];
  const Vec<T> lanes[4] = {a, b, c, d};
  std::memcpy(numbers, lanes, sizeof(numbers));
  double sums[8] = {};
  for (int i = 0; i < 4 * kLanes<T>; i += 8) {
    for (int k = 0; k < 8; ++k) sums[k] += static_cast<double>(numbers[i + k]);
  }
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

// n sums over a chunk of a set, taken block by block: add(position, a later position, part, sums) for the vectors of a
// block, then fold(count, sums in double). Memory is to be asked for the later one.
template <class T, int n, class Add, class Fold>
SCRATCHNN_INLINE void sum_chunk(const Runs& runs, int64_t set, int64_t chunk, const Add& add, const Fold& fold) {
  constexpr int64_t block = kBlockVectors * kLanes<T>;
  Vec<T> sums[4][n] = {};
  int64_t pending = 0;
  const auto flush = [&]() SCRATCHNN_INLINE_LAMBDA {
    double totals[n];
#pragma GCC unroll 3
    for (int i = 0; i < n; ++i) totals[i] = total<T>(sums[0][i], sums[1][i], sums[2][i], sums[3][i]);
    fold(pending, totals);
#pragma GCC unroll 12
    for (int i = 0; i < 4 * n; ++i) sums[i / n][i % n] = Vec<T>{};
    pending = 0;
  };
  runs.for_each(set, chunk, [&](int64_t start) {
    for (int64_t done = 0; done < runs.geometry.inner; done += block) {
      const int64_t length = std::min(block, runs.geometry.inner - done);
      for_each_vector<T>(length, Whole(), [&](int64_t i, int lane, auto part) SCRATCHNN_INLINE_LAMBDA {
        const int64_t here = start + done + i;
        add(here, here + runs.later(done + i), part, sums[lane]);
      });
      pending += length;
      if (pending >= block) flush();
    }
  });
  if (pending > 0) flush();
}

struct Moments {
  double count, mean, squares;  // squared deviations from the mean, summed
};

// A vector of which only a part counts.
template <class T>
SCRATCHNN_INLINE Vec<T> counted(Vec<T> v, Whole) {
  return v;
}
template <class T>
SCRATCHNN_INLINE Vec<T> counted(Vec<T> v, FirstLanes part) {
  return first_lanes<T>(v, part.count);
}

template <class S>
Moments chunk_moments(const Runs& runs, const S* input, int64_t set, int64_t chunk) {
  using T = Wide<S>;
  const S* start = input + runs.start(chunk * runs.chunk_runs, set);
  T mean = 0, mean_square = 0;  // of the first few numbers
  for (int64_t i = 0; i < kShortestSlice; ++i) {
    const T x = read_one(start + i) / static_cast<T>(kShortestSlice);
    mean += x;
    mean_square += x * x * static_cast<T>(kShortestSlice);
  }
  T shift = shift_of(mean, mean_square);
  Moments moments = {0, 0, 0};
  const auto add = [&](int64_t i, int64_t later, auto part, Vec<T>(&sums)[2]) SCRATCHNN_INLINE_LAMBDA {
    prefetch(input + later);
    const Vec<T> d = counted<T>(part.read(input + i) - broadcast(shift), part);
    sums[0] += d;
    sums[1] = fma(d, d, sums[1]);
  };
  sum_chunk<T, 2>(runs, set, chunk, add, [&](int64_t count, const double (&sums)[2]) {
    const double more = static_cast<double>(count);
    merge_block(moments.mean, moments.squares, shift, sums[0], sums[1], BlockWeights(moments.count, more));
    moments.count += more;
    shift = static_cast<T>(shift_of(moments.mean, moments.mean * moments.mean + moments.squares / moments.count));
  });
  return moments;
}

template <class S, class Full, class Finish>
SCRATCHNN_INLINE void apply_forward(const ForwardLine<Wide<S>>& line, const S* x, S* y, int64_t start, int64_t length,
                                    int64_t ahead, int64_t next, Full full, const Finish& finish) {
  using T = Wide<S>;
  const Vec<T> centre = broadcast(line.centre), scale = broadcast(line.scale), offset = broadcast(line.offset);
  for_each_vector<T>(length, full, [&](int64_t i, int, auto part) SCRATCHNN_INLINE_LAMBDA {
    if constexpr (!std::is_same_v<Full, Streamed>) prefetch(y + start + i + ahead);
    prefetch(x + start + i + next);
    const Vec<T> n = fma(part.read(x + start + i) - centre, scale, offset);
    part.write(y + start + i, finish(part, n, start + i));
  });
}

template <class S>
void norm_train(const Interleaved& geometry, const S* input, S* output, const double* weight, const double* bias,
                double eps, double* mean, double* variance, const Ending<S>& ending) {
  const Runs runs(geometry);
  const bool streamed = is_worth_streaming(output, geometry.size(), geometry.inner);
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
        const ForwardLine<Wide<S>> line(weight[set], bias[set], mean[set], variance[set], eps);
        with_finish(ending, [&](const auto& finish) {
          with_vectors(streamed, [&](auto full) {
            runs.for_each(set, chunk, [&](int64_t start) {
              apply_forward(line, input, output, start, geometry.inner, runs.ahead(), runs.next(sizeof(S)), full,
                            finish);
            });
          });
        });
      });
}

template <class S>
void norm_eval(const Interleaved& geometry, const S* input, S* output, const double* weight, const double* bias,
               double eps, const double* mean, const double* variance, const Ending<S>& ending) {
  using Line = ForwardLine<Wide<S>>;
  const bool streamed = is_worth_streaming(output, geometry.size(), geometry.inner);
  Line* lines = scratch<Line>(geometry.sets, Scratch::kCall);
  for (int64_t set = 0; set < geometry.sets; ++set) {
    lines[set] = Line(weight[set], bias[set], mean[set], variance[set], eps);
  }
  const int64_t grain = std::max<int64_t>(1, kGrain / geometry.inner);
  parallel_for(0, geometry.outer * geometry.sets, grain, [&](int64_t first, int64_t last) {
    with_finish(ending, [&](const auto& finish) {
      with_vectors(streamed, [&](auto full) {
        for (int64_t i = first; i < last; ++i) {
          apply_forward(lines[i % geometry.sets], input, output, i * geometry.inner, geometry.inner, 0, 0, full,
                        finish);
        }
      });
    });
  });
}

struct GradSums {
  double g, g_x, d;  // sums of g, of g (x - centre), and, where the mean is measured again, of x - centre
};

template <bool measured, class S, class Gate, class Arrival>
GradSums chunk_grad_sums(const Runs& runs, const S* grad, const S* input, int64_t set, int64_t chunk,
                         const ForwardLine<Wide<S>>& line, const Gate& gate, const Arrival& arrived) {
  using T = Wide<S>;
  constexpr int n = measured ? 3 : 2;
  GradSums all = {0, 0, 0};
  const Vec<T> centre = broadcast(line.centre), scale = broadcast(line.scale), shift = broadcast(line.offset);
  // Beyond the end of a run the gradient is zero.
  const auto add = [&](int64_t i, int64_t later, auto part, Vec<T>(&sums)[n]) SCRATCHNN_INLINE_LAMBDA {
    prefetch(input + later);
    prefetch(grad + later);
    arrived.prepare(later);
    const Vec<T> d = part.read(input + i) - centre;
    const Vec<T> slope = gate(part, grad, i, fma(d, scale, shift));
    sums[0] += slope;
    sums[1] = fma(slope, d, sums[1]);
    if constexpr (measured) sums[2] += counted<T>(d, part);
    arrived(part, i, slope, scale);
  };
  sum_chunk<T, n>(runs, set, chunk, add, [&](int64_t, const double (&sums)[n]) {
    all.g += sums[0];
    all.g_x += sums[1];
    if constexpr (measured) all.d += sums[2];
  });
  return all;
}

template <class S, class Full>
SCRATCHNN_INLINE void apply_backward(const BackwardLine<Wide<S>>& line, const S* g, const S* x, S* dx, int64_t start,
                                     int64_t length, int64_t ahead, int64_t next, Full full) {
  using T = Wide<S>;
  const Vec<T> centre = broadcast(line.centre), grad_scale = broadcast(line.grad_scale);
  const Vec<T> input_scale = broadcast(line.input_scale), offset = broadcast(line.offset);
  for_each_vector<T>(length, full, [&](int64_t i, int, auto part) SCRATCHNN_INLINE_LAMBDA {
    if constexpr (!std::is_same_v<Full, Streamed>) prefetch(dx + start + i + ahead);
    prefetch(x + start + i + next);
    prefetch(g + start + i + next);
    const Vec<T> by_input = fma(part.read(x + start + i) - centre, input_scale, offset);
    part.write(dx + start + i, fma(part.read(g + start + i), grad_scale, by_input));
  });
}

template <class S>
void norm_backward(const Interleaved& geometry, const S* grad, const S* input, S* grad_input, const double* weight,
                   const double* mean, const double* variance, double eps, Origin origin, double* grad_weight,
                   double* grad_bias, const Ending<S>& ending, const Gate<S>& gate) {
  using T = Wide<S>;
  const Runs runs(geometry, origin == Origin::kConstants);
  const S* passed = gate.passed == nullptr ? grad : gate.passed;
  const bool streamed = is_worth_streaming(grad_input, geometry.size(), geometry.inner);
  const double count = static_cast<double>(geometry.count());
  GradSums* sums = scratch<GradSums>(geometry.sets * runs.chunks);
  std::vector<double> means(mean, mean + geometry.sets);
  set_by_set(
      runs,
      [&](int64_t set, int64_t chunk) {
        const double bias = gate.bias == nullptr ? 0 : gate.bias[set];
        const ForwardLine<T> line(weight[set], bias, mean[set], variance[set], eps);
        with_first_pass(origin, ending, gate, grad_input, streamed,
                        [&](auto measured, const auto& open, const auto& arrived) {
                          sums[set * runs.chunks + chunk] =
                              chunk_grad_sums<measured.value>(runs, grad, input, set, chunk, line, open, arrived);
                        });
        if (streamed) finish_streaming();
      },
      [&](int64_t set) {
        GradSums all = {0, 0, 0};
        for (int64_t chunk = 0; chunk < runs.chunks; ++chunk) {
          all.g += sums[set * runs.chunks + chunk].g;
          all.g_x += sums[set * runs.chunks + chunk].g_x;
          all.d += sums[set * runs.chunks + chunk].d;
        }
        const double centre = static_cast<T>(mean[set]);
        if (is_measured(origin, gate)) means[set] = centre + all.d / count;
        grad_bias[set] = all.g;
        grad_weight[set] = sum_g_x_hat(all.g, all.g_x, centre, means[set], variance[set], eps);
      },
      [&](int64_t set, int64_t chunk) {
        if (origin == Origin::kConstants) return;
        const double share = weight[set] / count;
        const BackwardLine<T> line(weight[set], means[set], variance[set], eps, share * grad_bias[set],
                                   share * grad_weight[set]);
        with_vectors(streamed, [&](auto full) {
          runs.for_each(set, chunk, [&](int64_t i) {
            apply_backward(line, passed, input, grad_input, i, geometry.inner, runs.ahead(), runs.next(2 * sizeof(S)),
                           full);
          });
        });
      });
}

}  // namespace

SCRATCHNN_REGISTER_KERNEL(norm_train_slices<float>, &norm_train<float>);
SCRATCHNN_REGISTER_KERNEL(norm_train_slices<double>, &norm_train<double>);
SCRATCHNN_REGISTER_KERNEL(norm_train_slices<BFloat16>, &norm_train<BFloat16>);
SCRATCHNN_REGISTER_KERNEL(norm_train_slices<Half>, &norm_train<Half>);
SCRATCHNN_REGISTER_KERNEL(norm_eval_slices<float>, &norm_eval<float>);
SCRATCHNN_REGISTER_KERNEL(norm_eval_slices<double>, &norm_eval<double>);
SCRATCHNN_REGISTER_KERNEL(norm_eval_slices<BFloat16>, &norm_eval<BFloat16>);
SCRATCHNN_REGISTER_KERNEL(norm_eval_slices<Half>, &norm_eval<Half>);
SCRATCHNN_REGISTER_KERNEL(norm_backward_slices<float>, &norm_backward<float>);
SCRATCHNN_REGISTER_KERNEL(norm_backward_slices<double>, &norm_backward<double>);
SCRATCHNN_REGISTER_KERNEL(norm_backward_slices<BFloat16>, &norm_backward<BFloat16>);
SCRATCHNN_REGISTER_KERNEL(norm_backward_slices<Half>, &norm_backward<Half>);

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

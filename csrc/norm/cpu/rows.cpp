// Normalization where each set is one run of memory: layer norm and RMS norm, group norm of N x C x H x W.
//
// A row is finished before the next one is begun: it is small enough for the cache more often than not. Half precision
// is widened and rounded there, row by row. Rows know nothing of each other, but for the gradients of weight and bias:
// these are summed over fixed parts of the rows, and the parts in order, so they are the same numbers however many
// threads there are.
#include <algorithm>
#include <type_traits>
#include <vector>

#include "common/half.h"
#include "common/runtime.h"
#include "common/stream.h"
#include "norm/cpu/formulas.h"
#include "norm/kernels.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {
namespace {

constexpr int64_t kBlock = 1024;       // numbers summed in their own precision
constexpr int64_t kGrain = 32768;      // numbers a thread must have to be worth waking
constexpr int64_t kMostParts = 32;     // of the rows, each with its own gradients of weight and bias
constexpr int64_t kFewestOfAPart = 8;  // rows
constexpr int64_t kRowsInT = 32;       // rows whose gradients of weight and bias are summed in their own precision

// What is written below for vectors V also serves rows shorter than a vector, with numbers for V.
template <class V, class T>
constexpr int64_t kWidth = sizeof(V) / sizeof(T);

template <class V, class T>
SCRATCHNN_INLINE V load_as(const T* p) {
  V v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

template <class V, class T>
SCRATCHNN_INLINE void store_as(T* p, V v) {
  std::memcpy(p, &v, sizeof(v));
}

// The same for results: past the cache, if `streamed`.
template <bool streamed, class V, class T>
SCRATCHNN_INLINE void store_result(T* p, V v) {
  if constexpr (streamed && kWidth<V, T> > 1) {
    stream(p, v);
  } else {
    store_as(p, v);
  }
}

// body(streamed) for results of all rows at `output`. Rows that are rounded first are not.
template <class S, class Body>
void with_streaming(const Rows& geometry, const S* output, const Body& body) {
  const int64_t step = geometry.run > 1 ? geometry.run : geometry.length();
  const bool rounds = !std::is_same_v<S, Wide<S>>;
  if (rounds || !is_worth_streaming(output, geometry.rows * geometry.length(), step)) return body(std::false_type());
  body(std::true_type());
}

// A row to compute with: itself, or a copy of it in `memory`.
template <class S>
SCRATCHNN_INLINE const Wide<S>* widened(const S* row, int64_t length, Wide<S>* memory) {
  if constexpr (std::is_same_v<S, Wide<S>>) {
    return row;
  } else {
    copy_numbers(row, length, memory);
    return memory;
  }
}

// Where a row of results is computed: where it belongs, or in `memory`; and rounded to where it belongs.
template <class S>
SCRATCHNN_INLINE Wide<S>* unrounded(S* row, Wide<S>* memory) {
  if constexpr (std::is_same_v<S, Wide<S>>) {
    return row;
  } else {
    return memory;
  }
}
template <class S>
SCRATCHNN_INLINE void round_row(const Wide<S>* memory, int64_t length, S* row) {
  if constexpr (!std::is_same_v<S, Wide<S>>) copy_numbers(memory, length, row);
}

// Numbers of memory for `rows` of those.
template <class S>
int64_t widened_size(const Rows& geometry, int64_t rows) {
  return std::is_same_v<S, Wide<S>> ? 0 : rows * geometry.length();
}

template <class V, class T>
SCRATCHNN_INLINE V all(T x) {
  if constexpr (kWidth<V, T> == 1) {
    return x;
  } else {
    return broadcast(x);
  }
}

template <class V, class T>
SCRATCHNN_INLINE T total(V v) {
  if constexpr (kWidth<V, T> == 1) {
    return v;
  } else {
    return horizontal_sum<T>(v);
  }
}

// The lanes of the vector that ends a run, `rest` numbers of which no vector before it covers; zero in the others.
template <class V, class T>
SCRATCHNN_INLINE V fresh(V v, int64_t rest) {
  if constexpr (kWidth<V, T> == 1) {
    return v;
  } else {
    return last_lanes<T>(rest) ? v : V{};
  }
}

// body(offset, lane) for the whole vectors of a run, two at a time, and tail(offset, rest) for the one that ends it.
template <class V, class T, class Body, class Tail>
SCRATCHNN_INLINE void walk(int64_t length, const Body& body, const Tail& tail) {
  constexpr int64_t n = kWidth<V, T>;
  if (n == 1 && length >= kLanes<T>) __builtin_unreachable();
  int64_t i = 0;
  for (; i + 4 * n <= length; i += 4 * n) {
    body(i, 0);
    body(i + n, 1);
    body(i + 2 * n, 0);
    body(i + 3 * n, 1);
  }
  for (; i + n <= length; i += n) body(i, 0);
  if (i < length) tail(length - n, length - i);
}

// The runs of at most about kBlock numbers that a longer one is cut into, none shorter than a vector.
template <class Body>
SCRATCHNN_INLINE void in_blocks(int64_t length, const Body& body) {
  int64_t done = 0;
  for (; length - done >= 2 * kBlock; done += kBlock) body(done, kBlock);
  body(done, length - done);
}

struct Moments {
  double mean, variance;
};

// Each block twice, from the cache: its mean, then the deviations from it, which do not cancel; the blocks' moments
// are then merged. Around zero (not centred) the sum of squares is all there is.
template <class V, class T>
SCRATCHNN_INLINE Moments moments(const T* x, int64_t length, double inverse_length, bool centred) {
  double mean = 0, squares = 0;
  in_blocks(length, [&](int64_t done, int64_t count) SCRATCHNN_INLINE_LAMBDA {
    const T* block = x + done;
    const bool alone = count == length;
    const double inverse = alone ? inverse_length : 1 / static_cast<double>(count);
    T shift = 0;
    if (centred) {
      V sum[2] = {};
      walk<V, T>(
          count, [&](int64_t i, int lane) SCRATCHNN_INLINE_LAMBDA { sum[lane] += load_as<V>(block + i); },
          [&](int64_t i, int64_t rest) SCRATCHNN_INLINE_LAMBDA { sum[0] += fresh<V, T>(load_as<V>(block + i), rest); });
      shift = total<V, T>(sum[0] + sum[1]) * static_cast<T>(inverse);
    }
    const V centre = all<V>(shift);
    V sum[2] = {}, square[2] = {};
    walk<V, T>(
        count,
        [&](int64_t i, int lane) SCRATCHNN_INLINE_LAMBDA {
          const V d = load_as<V>(block + i) - centre;
          sum[lane] += d;
          square[lane] = fma(d, d, square[lane]);
        },
        [&](int64_t i, int64_t rest) SCRATCHNN_INLINE_LAMBDA {
          const V d = fresh<V, T>(load_as<V>(block + i) - centre, rest);
          sum[0] += d;
          square[0] = fma(d, d, square[0]);
        });
    const double sum_of_squares = total<V, T>(square[0] + square[1]);
    if (!centred) {
      squares += sum_of_squares;
      return;
    }
    const double deviation = total<V, T>(sum[0] + sum[1]);
    const double block_mean = shift + deviation * inverse;
    const double block_squares = sum_of_squares - deviation * deviation * inverse;
    if (alone) {
      mean = block_mean;
      squares = block_squares;
    } else {
      const double share = static_cast<double>(count) / static_cast<double>(done + count);
      merge(mean, squares, block_mean, block_squares, share, share * static_cast<double>(done));
    }
  });
  return {mean, std::max(squares * inverse_length, 0.0)};
}

// y = ((x - centre) r + offset) w + b, weight and bias number by number; null pointers count as ones and zeros. Where
// results are streamed there is more than a cache holds, and memory is asked for what is read `ahead` numbers later, if
// that is farther than the processor itself looks.
template <class V, class T, bool streamed, bool weighted, bool biased>
SCRATCHNN_INLINE void apply_by_number(const ForwardLine<T>& line, const T* x, T* y, const T* weight, const T* bias,
                                      int64_t length, int64_t ahead) {
  const V centre = all<V>(line.centre), scale = all<V>(line.scale), offset = all<V>(line.offset);
  const bool asks = streamed && ahead >= kBlock;
  const auto normalize = [&](int64_t i) SCRATCHNN_INLINE_LAMBDA {
    if (asks) prefetch(x + i + ahead);
    V v = fma(load_as<V>(x + i) - centre, scale, offset);
    if constexpr (weighted && biased) {
      v = fma(v, load_as<V>(weight + i), load_as<V>(bias + i));
    } else if constexpr (weighted) {
      v = v * load_as<V>(weight + i);
    } else if constexpr (biased) {
      v = v + load_as<V>(bias + i);
    }
    store_result<streamed>(y + i, v);
  };
  walk<V, T>(
      length, [&](int64_t i, int) SCRATCHNN_INLINE_LAMBDA { normalize(i); },
      [&](int64_t i, int64_t) SCRATCHNN_INLINE_LAMBDA { normalize(i); });
}

template <class V, class T, bool streamed>
void forward_row(const Rows& geometry, const T* x, T* y, const T* weight, const T* bias, const Moments& m, double eps) {
  const int64_t ahead = geometry.length();
  if (kWidth<V, T> > 1 && geometry.run > 1) {
    for (int64_t p = 0; p < geometry.parameters; ++p) {
      const double w = weight == nullptr ? 1 : weight[p], b = bias == nullptr ? 0 : bias[p];
      const ForwardLine<T> line(w, b, m.mean, m.variance, eps);
      const int64_t start = p * geometry.run;
      apply_by_number<V, T, streamed, false, false>(line, x + start, y + start, nullptr, nullptr, geometry.run, ahead);
    }
    return;
  }
  const ForwardLine<T> line(1, 0, m.mean, m.variance, eps);
  if (weight != nullptr && bias != nullptr) {
    apply_by_number<V, T, streamed, true, true>(line, x, y, weight, bias, ahead, ahead);
  } else if (weight != nullptr) {
    apply_by_number<V, T, streamed, true, false>(line, x, y, weight, bias, ahead, ahead);
  } else if (bias != nullptr) {
    apply_by_number<V, T, streamed, false, true>(line, x, y, weight, bias, ahead, ahead);
  } else {
    apply_by_number<V, T, streamed, false, false>(line, x, y, weight, bias, ahead, ahead);
  }
}

template <class V, class S>
void forward(const Rows& geometry, const S* input, S* output, const Wide<S>* weight, const Wide<S>* bias, double eps,
             Wide<S>* mean, Wide<S>* variance) {
  using T = Wide<S>;
  const int64_t length = geometry.length();
  const double inverse_length = 1 / static_cast<double>(length);
  with_streaming(geometry, output, [&](auto streamed) {
    parallel_for(0, geometry.rows, std::max<int64_t>(1, kGrain / length), [&](int64_t first, int64_t last) {
      T* memory = scratch<T>(widened_size<S>(geometry, 2));
      for (int64_t row = first; row < last; ++row) {
        const T* x = widened(input + row * length, length, memory);
        T* y = unrounded(output + row * length, memory + length);
        const int64_t parameter = row % geometry.cycle * geometry.parameters;
        const Moments m = moments<V>(x, length, inverse_length, mean != nullptr);
        forward_row<V, T, streamed.value>(geometry, x, y, weight == nullptr ? nullptr : weight + parameter,
                                          bias == nullptr ? nullptr : bias + parameter, m, eps);
        round_row(y, length, output + row * length);
        if (mean != nullptr) mean[row] = static_cast<T>(m.mean);
        variance[row] = static_cast<T>(m.variance);
      }
      if (streamed) finish_streaming();
    });
  });
}

// Sums over a row, d being x - centre; the sum of d tells what the rounding of the mean took away.
struct RowSums {
  double d = 0, wg = 0, wg_d = 0;
};

// d, g and g d of a run, times a weight number by number where there is one.
template <class V, class T, bool weighted>
SCRATCHNN_INLINE RowSums run_sums(const T* g, const T* x, const T* weight, T mean, int64_t length) {
  RowSums sums;
  const V centre = all<V>(mean);
  in_blocks(length, [&](int64_t done, int64_t count) SCRATCHNN_INLINE_LAMBDA {
    V sum_d[2] = {}, sum_g[2] = {}, sum_g_d[2] = {};
    const auto add = [&](V d, V slope, int lane) SCRATCHNN_INLINE_LAMBDA {
      sum_d[lane] += d;
      sum_g[lane] += slope;
      sum_g_d[lane] = fma(slope, d, sum_g_d[lane]);
    };
    const auto slope = [&](int64_t i) SCRATCHNN_INLINE_LAMBDA {
      V v = load_as<V>(g + i);
      if constexpr (weighted) v = v * load_as<V>(weight + i);
      return v;
    };
    walk<V, T>(
        count,
        [&](int64_t i, int lane)
            SCRATCHNN_INLINE_LAMBDA { add(load_as<V>(x + done + i) - centre, slope(done + i), lane); },
        [&](int64_t i, int64_t rest) SCRATCHNN_INLINE_LAMBDA {
          add(fresh<V, T>(load_as<V>(x + done + i) - centre, rest), fresh<V, T>(slope(done + i), rest), 0);
        });
    sums.d += total<V, T>(sum_d[0] + sum_d[1]);
    sums.wg += total<V, T>(sum_g[0] + sum_g[1]);
    sums.wg_d += total<V, T>(sum_g_d[0] + sum_g_d[1]);
  });
  return sums;
}

// What the sums over a row say. With `mean` the exact mean, x_hat = (x - centre) r + x_hat_offset, and
// dx = (w g - mean_wg) r + ((x - centre) input_scale + input_offset): E[w g] is taken off before anything is scaled,
// so that where it is all there is, nothing remains.
template <class T>
struct RowLine {
  double mean, exact_r;
  T centre, mean_wg, r, x_hat_offset, input_scale, input_offset;

  RowLine(const RowSums& sums, T rounded_mean, double variance, double eps, double inverse_length, bool centred) {
    const double rounding = centred ? sums.d * inverse_length : 0;
    mean = rounded_mean + rounding;
    exact_r = 1 / std::sqrt(variance + eps);
    const double mean_wg_x_hat = (sums.wg_d - rounding * sums.wg) * exact_r * inverse_length;
    centre = static_cast<T>(mean);
    mean_wg = static_cast<T>(centred ? sums.wg * inverse_length : 0);
    r = static_cast<T>(exact_r);
    const double slope = -exact_r * exact_r * mean_wg_x_hat, lacking = static_cast<double>(centre) - mean;
    x_hat_offset = static_cast<T>(lacking * exact_r);
    input_scale = static_cast<T>(slope);
    input_offset = static_cast<T>(lacking * slope);
  }
};

// dx of a run, and the gradients of weight and bias in T where asked for. The weight is that of each number, or, not
// `weighted`, the first one.
template <class V, class T, bool streamed, bool weighted, bool parameters>
SCRATCHNN_INLINE void backward_by_number(const RowLine<T>& line, const T* g, const T* x, T* dx, const T* weight, T* dw,
                                         T* db, int64_t length, int64_t ahead) {
  const V centre = all<V>(line.centre), mean_wg = all<V>(line.mean_wg), r = all<V>(line.r);
  const V x_hat_offset = all<V>(line.x_hat_offset);
  const V input_scale = all<V>(line.input_scale), input_offset = all<V>(line.input_offset);
  const V same_weight = all<V>(weight == nullptr ? T(1) : *weight);
  const bool asks = streamed && ahead >= kBlock;
  const auto differentiate = [&](int64_t i, auto mask) SCRATCHNN_INLINE_LAMBDA {
    if (asks) {
      prefetch(x + i + ahead);
      prefetch(g + i + ahead);
    }
    const V d = load_as<V>(x + i) - centre;
    const V slope = load_as<V>(g + i);
    V w = same_weight;
    if constexpr (weighted) w = load_as<V>(weight + i);
    V wg = w * slope;
    SCRATCHNN_KEEP_IN_REGISTER(wg);  // rounded, as it was when it was summed
    store_result<streamed>(dx + i, fma(wg - mean_wg, r, fma(d, input_scale, input_offset)));
    if constexpr (parameters) {
      store_as(dw + i, load_as<V>(dw + i) + mask(slope * fma(d, r, x_hat_offset)));
      store_as(db + i, load_as<V>(db + i) + mask(slope));
    }
  };
  walk<V, T>(
      length, [&](int64_t i, int) SCRATCHNN_INLINE_LAMBDA { differentiate(i, [](V v) { return v; }); },
      [&](int64_t i, int64_t rest)
          SCRATCHNN_INLINE_LAMBDA { differentiate(i, [rest](V v) { return fresh<V, T>(v, rest); }); });
}

// A row whose numbers have parameters of their own.
template <class V, class T, bool streamed, bool weighted, bool parameters>
void backward_row_by_number(const T* g, const T* x, T* dx, const T* weight, T* dw, T* db, T centre, double variance,
                            double eps, int64_t length, double inverse_length, bool centred) {
  const RowSums sums = run_sums<V, T, weighted>(g, x, weight, centre, length);
  const RowLine<T> line(sums, centre, variance, eps, inverse_length, centred);
  backward_by_number<V, T, streamed, weighted, parameters>(line, g, x, dx, weight, dw, db, length, length);
}

// A row of runs of one parameter each. `own` is memory for two doubles a parameter.
template <class V, class T, bool streamed>
void backward_row_by_run(const Rows& geometry, const T* g, const T* x, T* dx, const T* weight, double* dw, double* db,
                         T centre, double variance, double eps, bool centred, double* own) {
  RowSums sums;
  for (int64_t p = 0; p < geometry.parameters; ++p) {
    const int64_t start = p * geometry.run;
    const double w = weight == nullptr ? 1 : weight[p];
    const RowSums run = run_sums<V, T, false>(g + start, x + start, nullptr, centre, geometry.run);
    sums.d += run.d;
    sums.wg += w * run.wg;
    sums.wg_d += w * run.wg_d;
    own[2 * p] = run.wg;
    own[2 * p + 1] = run.wg_d;
  }
  const RowLine<T> line(sums, centre, variance, eps, 1 / static_cast<double>(geometry.length()), centred);
  for (int64_t p = 0; p < geometry.parameters; ++p) {
    const int64_t start = p * geometry.run;
    backward_by_number<V, T, streamed, false, false>(line, g + start, x + start, dx + start,
                                                     weight == nullptr ? nullptr : weight + p, nullptr, nullptr,
                                                     geometry.run, geometry.length());
    if (dw != nullptr) {
      dw[p] += (own[2 * p + 1] + (centre - line.mean) * own[2 * p]) * line.exact_r;
      db[p] += own[2 * p];
    }
  }
}

// Adds to the gradients of all parameters what was summed in T, and clears that.
template <class T>
void flush(T* sums, double* gradients, int64_t count) {
  for (int64_t i = 0; i < count; ++i) gradients[i] += sums[i];
  std::fill_n(sums, count, T(0));
}

template <class V, class S, bool streamed>
void backward_part(const Rows& geometry, const S* grad, const S* input, S* grad_input, const Wide<S>* weight,
                   const Wide<S>* mean, const Wide<S>* variance, double eps, double* gradients, int64_t first,
                   int64_t last) {
  using T = Wide<S>;
  const int64_t length = geometry.length(), parameters = geometry.all_parameters();
  const double inverse_length = 1 / static_cast<double>(length);
  const bool centred = mean != nullptr;
  double* dw = gradients;
  double* db = gradients == nullptr ? nullptr : gradients + parameters;
  double* own = scratch<double>(2 * (parameters + geometry.parameters) + widened_size<S>(geometry, 3));
  T* sums = reinterpret_cast<T*>(own + 2 * geometry.parameters);  // in T: the gradients of some rows
  T* memory = sums + 2 * parameters;
  if (dw != nullptr) std::fill_n(sums, 2 * parameters, T(0));
  for (int64_t row = first; row < last; ++row) {
    const T* g = widened(grad + row * length, length, memory);
    const T* x = widened(input + row * length, length, memory + length);
    T* dx = unrounded(grad_input + row * length, memory + 2 * length);
    const int64_t p = row % geometry.cycle * geometry.parameters;
    const T* w = weight == nullptr ? nullptr : weight + p;
    const T centre = centred ? mean[row] : T(0);
    if (kWidth<V, T> > 1 && geometry.run > 1) {
      backward_row_by_run<V, T, streamed>(geometry, g, x, dx, w, dw == nullptr ? nullptr : dw + p,
                                          dw == nullptr ? nullptr : db + p, centre, static_cast<double>(variance[row]),
                                          eps, centred, own);
      round_row(dx, length, grad_input + row * length);
      continue;
    }
    const auto differentiate = [&](auto weighted, auto asked) {
      backward_row_by_number<V, T, streamed, weighted.value, asked.value>(g, x, dx, w, sums + p, sums + parameters + p,
                                                                          centre, static_cast<double>(variance[row]),
                                                                          eps, length, inverse_length, centred);
    };
    if (dw == nullptr) {
      w == nullptr ? differentiate(std::false_type(), std::false_type())
                   : differentiate(std::true_type(), std::false_type());
    } else {
      w == nullptr ? differentiate(std::false_type(), std::true_type())
                   : differentiate(std::true_type(), std::true_type());
      if ((row + 1 - first) % (kRowsInT * geometry.cycle) == 0) flush(sums, gradients, 2 * parameters);
    }
    round_row(dx, length, grad_input + row * length);
  }
  if (dw != nullptr && geometry.run == 1) flush(sums, gradients, 2 * parameters);
  if (streamed) finish_streaming();
}

template <class V, class S, bool streamed>
void backward(const Rows& geometry, const S* grad, const S* input, S* grad_input, const Wide<S>* weight,
              const Wide<S>* mean, const Wide<S>* variance, double eps, double* grad_weight, double* grad_bias) {
  if (grad_weight == nullptr) {
    const int64_t grain = std::max<int64_t>(1, kGrain / geometry.length());
    parallel_for(0, geometry.rows, grain, [&](int64_t first, int64_t last) {
      backward_part<V, S, streamed>(geometry, grad, input, grad_input, weight, mean, variance, eps, nullptr, first,
                                    last);
    });
    return;
  }
  const int64_t parameters = geometry.all_parameters();
  const int64_t worth = std::max(kFewestOfAPart * geometry.cycle, kGrain / geometry.length());
  const int64_t parts = std::clamp<int64_t>(geometry.rows / worth, 1, kMostParts);
  std::vector<double> gradients(2 * parameters * parts);
  parallel_for(0, parts, 1, [&](int64_t first_part, int64_t last_part) {
    for (int64_t part = first_part; part < last_part; ++part) {
      const int64_t first = geometry.rows * part / parts, last = geometry.rows * (part + 1) / parts;
      backward_part<V, S, streamed>(geometry, grad, input, grad_input, weight, mean, variance, eps,
                                    gradients.data() + 2 * parameters * part, first, last);
    }
  });
  std::copy_n(gradients.data(), parameters, grad_weight);
  std::copy_n(gradients.data() + parameters, parameters, grad_bias);
  for (int64_t part = 1; part < parts; ++part) {
    const double* dw = gradients.data() + 2 * parameters * part;
    for (int64_t i = 0; i < parameters; ++i) {
      grad_weight[i] += dw[i];
      grad_bias[i] += dw[parameters + i];
    }
  }
}

// Vectors, or, where the runs are shorter than that, numbers.
template <class T>
bool holds_vectors(const Rows& geometry) {
  return (geometry.run > 1 ? geometry.run : geometry.parameters) >= kLanes<T>;
}

template <class S>
void norm(const Rows& geometry, const S* input, S* output, const Wide<S>* weight, const Wide<S>* bias, double eps,
          Wide<S>* mean, Wide<S>* variance) {
  using T = Wide<S>;
  const auto& run = holds_vectors<T>(geometry) ? forward<Vec<T>, S> : forward<T, S>;
  run(geometry, input, output, weight, bias, eps, mean, variance);
}

template <class S>
void norm_backward(const Rows& geometry, const S* grad, const S* input, S* grad_input, const Wide<S>* weight,
                   const Wide<S>* mean, const Wide<S>* variance, double eps, double* grad_weight, double* grad_bias) {
  using T = Wide<S>;
  with_streaming(geometry, grad_input, [&](auto streamed) {
    const auto& run = holds_vectors<T>(geometry) ? backward<Vec<T>, S, streamed.value> : backward<T, S, streamed.value>;
    run(geometry, grad, input, grad_input, weight, mean, variance, eps, grad_weight, grad_bias);
  });
}

}  // namespace

#define SCRATCHNN_REGISTER(S)                        \
  SCRATCHNN_REGISTER_KERNEL(norm_rows<S>, &norm<S>); \
  SCRATCHNN_REGISTER_KERNEL(norm_rows_backward<S>, &norm_backward<S>);
SCRATCHNN_REGISTER(float)
SCRATCHNN_REGISTER(double)
SCRATCHNN_REGISTER(BFloat16)
SCRATCHNN_REGISTER(Half)
#undef SCRATCHNN_REGISTER

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

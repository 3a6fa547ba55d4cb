// What follows a normalization, as templates: in its last pass forward, and in its first pass backward.
//
// Formulas are for a number or a vector of them, V. Those of the limits are those of relu and hardtanh
// (csrc/activation/functions.h): NaN stays NaN, and there is no gradient at a limit.
#pragma once

#include <limits>
#include <type_traits>

#include "common/simd.h"
#include "norm/kernels.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {

template <class V, class T>
SCRATCHNN_INLINE V read(const T* p) {
  if constexpr (std::is_same_v<V, T>) {
    return *p;
  } else {
    return load(p);
  }
}

template <class V, class T>
SCRATCHNN_INLINE void write(T* p, V v) {
  if constexpr (std::is_same_v<V, T>) {
    *p = v;
  } else {
    store(p, v);
  }
}

struct Unlimited {
  template <class V>
  SCRATCHNN_MEMBER V value(V s) const {
    return s;
  }
  template <class V>
  SCRATCHNN_MEMBER V gradient(V dy, V /*s*/) const {
    return dy;
  }
};

// y = max(s, low)
template <class T>
struct Above {
  T low;
  template <class V>
  SCRATCHNN_MEMBER V value(V s) const {
    const V least = V{} + low;
    return s < low ? least : s;
  }
  template <class V>
  SCRATCHNN_MEMBER V gradient(V dy, V s) const {
    return s <= low ? V{} : dy;
  }
};

// y = min(max(s, low), high)
template <class T>
struct Between {
  T low, high;
  template <class V>
  SCRATCHNN_MEMBER V value(V s) const {
    const V least = V{} + low, most = V{} + high;
    const V raised = s < low ? least : s;
    return raised > high ? most : raised;
  }
  template <class V>
  SCRATCHNN_MEMBER V gradient(V dy, V s) const {
    const V inside = s >= high ? V{} : dy;
    return s <= low ? V{} : inside;
  }
};

template <class T, class Body>
SCRATCHNN_INLINE void with_limits(double low, double high, const Body& body) {
  constexpr double none = std::numeric_limits<double>::infinity();
  if (high < none) {
    body(Between<T>{static_cast<T>(low), static_cast<T>(high)});
  } else if (low > -none) {
    body(Above<T>{static_cast<T>(low)});
  } else {
    body(Unlimited{});
  }
}

// Forward: of number i, normalized to n, the output.
template <class T, class Limits, bool added>
struct Finish {
  const T* residual;
  Limits limits;
  template <class V>
  SCRATCHNN_MEMBER V operator()(V n, int64_t i) const {
    if constexpr (added) n = n + read<V>(residual + i);
    return limits.value(n);
  }
};

// body(finish) for what an ending says.
template <class T, class Body>
SCRATCHNN_INLINE void with_finish(const Ending<T>& ending, const Body& body) {
  with_limits<T>(ending.low, ending.high, [&](auto limits) {
    using Limits = decltype(limits);
    if (ending.residual != nullptr) {
      body(Finish<T, Limits, true>{ending.residual, limits});
    } else {
      body(Finish<T, Limits, false>{nullptr, limits});
    }
  });
}

// Backward: of number i, normalized to n, the gradient that arrives at n. It is stored, to be read in the next pass.
template <class T>
struct Open {  // nothing follows
  template <class V>
  SCRATCHNN_MEMBER V operator()(const T* grad, int64_t i, V /*n*/) const {
    return read<V>(grad + i);
  }
};

enum class Known { kNormalized, kResidual, kOutput };

template <class T, class Limits, Known known>
struct Closing {
  const T* other;  // residual or output
  T* passed;
  Limits limits;
  template <class V>
  SCRATCHNN_MEMBER V operator()(const T* grad, int64_t i, V n) const {
    if constexpr (known == Known::kResidual) n = n + read<V>(other + i);
    if constexpr (known == Known::kOutput) n = read<V>(other + i);
    const V g = limits.gradient(read<V>(grad + i), n);
    write(passed + i, g);
    return g;
  }
};

// body(gate) for what an ending says.
template <class T, class Body>
SCRATCHNN_INLINE void with_gate(const Ending<T>& ending, const Gate<T>& gate, const Body& body) {
  if (gate.passed == nullptr) return body(Open<T>{});
  with_limits<T>(ending.low, ending.high, [&](auto limits) {
    using Limits = decltype(limits);
    if constexpr (!std::is_same_v<Limits, Unlimited>) {
      if (gate.output != nullptr) {
        body(Closing<T, Limits, Known::kOutput>{gate.output, gate.passed, limits});
      } else if (ending.residual != nullptr) {
        body(Closing<T, Limits, Known::kResidual>{ending.residual, gate.passed, limits});
      } else {
        body(Closing<T, Limits, Known::kNormalized>{nullptr, gate.passed, limits});
      }
    }
  });
}

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

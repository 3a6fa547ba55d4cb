// What follows a normalization, as templates: in its last pass forward, and in its first pass backward.
//
// Formulas are for a number or a vector of them, V, in the type S that memory holds widened to T. Those of the limits
// are those of relu and hardtanh (csrc/activation/functions.h): NaN stays NaN, and there is no gradient at a limit.
#pragma once

#include <limits>
#include <type_traits>

#include "common/parts.h"
#include "norm/kernels.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {

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
template <class S, class Limits, bool added>
struct Finish {
  const S* residual;
  Limits limits;
  template <class Part, class V>
  SCRATCHNN_MEMBER V operator()(Part part, V n, int64_t i) const {
    if constexpr (added) n = n + part.read(residual + i);
    return limits.value(n);
  }
};

// body(finish) for what an ending says.
template <class S, class Body>
SCRATCHNN_INLINE void with_finish(const Ending<S>& ending, const Body& body) {
  with_limits<Wide<S>>(ending.low, ending.high, [&](auto limits) {
    using Limits = decltype(limits);
    if (ending.residual != nullptr) {
      body(Finish<S, Limits, true>{ending.residual, limits});
    } else {
      body(Finish<S, Limits, false>{nullptr, limits});
    }
  });
}

// Backward: of number i, normalized to n, the gradient that arrives at n. It is stored, to be read in the next pass.
struct Open {  // nothing follows
  template <class Part, class S, class V>
  SCRATCHNN_MEMBER V operator()(Part part, const S* grad, int64_t i, V /*n*/) const {
    return part.read(grad + i);
  }
};

enum class Known { kNormalized, kResidual, kOutput };

template <class S, class Limits, Known known>
struct Closing {
  const S* other;  // residual or output
  S* passed;
  Limits limits;
  template <class Part, class V>
  SCRATCHNN_MEMBER V operator()(Part part, const S* grad, int64_t i, V n) const {
    if constexpr (known == Known::kResidual) n = n + part.read(other + i);
    if constexpr (known == Known::kOutput) n = part.read(other + i);
    const V g = limits.gradient(part.read(grad + i), n);
    part.write(passed + i, g);
    return g;
  }
};

// body(gate) for what an ending says.
template <class S, class Body>
SCRATCHNN_INLINE void with_gate(const Ending<S>& ending, const Gate<S>& gate, const Body& body) {
  if (gate.passed == nullptr) return body(Open());
  with_limits<Wide<S>>(ending.low, ending.high, [&](auto limits) {
    using Limits = decltype(limits);
    if constexpr (!std::is_same_v<Limits, Unlimited>) {
      if (gate.output != nullptr) {
        body(Closing<S, Limits, Known::kOutput>{gate.output, gate.passed, limits});
      } else if (ending.residual != nullptr) {
        body(Closing<S, Limits, Known::kResidual>{ending.residual, gate.passed, limits});
      } else {
        body(Closing<S, Limits, Known::kNormalized>{nullptr, gate.passed, limits});
      }
    }
  });
}

// What the first pass of backward does with the gradient g that arrives at n: nothing while the means that dx is made
// of are still being summed; where statistics are constants dx = scale g, and there is no second pass.
struct Wait {
  SCRATCHNN_MEMBER void prepare(int64_t /*i*/) const {}
  template <class Part, class V>
  SCRATCHNN_MEMBER void operator()(Part, int64_t /*i*/, V /*g*/, V /*scale*/) const {}
};
template <class S, bool streamed>
struct Scale {
  S* grad_input;
  // Asks memory for what will be written to soon.
  SCRATCHNN_MEMBER void prepare(int64_t i) const {
    if (!streamed) prefetch(grad_input + i);
  }
  template <class Part, class V>
  SCRATCHNN_MEMBER void operator()(Part part, int64_t i, V g, V scale) const {
    if constexpr (streamed && std::is_same_v<Part, Whole>) {
      stream(grad_input + i, g * scale);
    } else {
      part.write(grad_input + i, g * scale);
    }
  }
};

// Whether the mean is to be measured again: under limits the forward pass' own is at hand.
template <class S>
SCRATCHNN_INLINE bool is_measured(Origin origin, const Gate<S>& gate) {
  return origin == Origin::kRounded && gate.passed == nullptr;
}

// body(measured, gate, arrival): whether the mean is, what the ending does to a gradient, and what becomes of it then.
// `streamed` says that dx is worth it.
template <class S, class Body>
SCRATCHNN_INLINE void with_first_pass(Origin origin, const Ending<S>& ending, const Gate<S>& gate, S* grad_input,
                                      bool streamed, const Body& body) {
  if (is_measured(origin, gate)) return body(std::true_type(), Open(), Wait());
  with_gate(ending, gate, [&](const auto& open) {
    if (origin != Origin::kConstants) return body(std::false_type(), open, Wait());
    if (!streamed) return body(std::false_type(), open, Scale<S, false>{grad_input});
    body(std::false_type(), open, Scale<S, true>{grad_input});
  });
}

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

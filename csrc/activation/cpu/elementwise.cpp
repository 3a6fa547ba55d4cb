// The elementwise activations: each number is read once and written once.
//
// One loop serves every function of the table and every type. The last numbers go through the same vector code as
// all others, so a result depends on its number alone and not on where it stands.
#include <algorithm>

#include "activation/functions.h"
#include "activation/kernels.h"
#include "common/parts.h"
#include "common/runtime.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {
namespace {

constexpr int64_t kGrain = 16384;  // numbers a thread must have to be worth waking
constexpr int64_t kBlock = 64;     // numbers; where one begins, so does a cache line, if one does at the first

// Forward, results are streamed from here on: of smaller ones the next layer finds enough in the cache.
constexpr int64_t kStreamedBytes = 32 << 20;

// f(part, i) for all of `count` numbers, a vector or what is left of one from number i on; past the cache if
// `streamed`.
template <class T, class Body>
SCRATCHNN_INLINE void for_each_number(int64_t count, bool streamed, const Body& body) {
  parallel_for(0, (count + kBlock - 1) / kBlock, kGrain / kBlock, [&](int64_t begin, int64_t end) {
    const Body own = body;  // its members then stay in registers: stores might change those of the original
    const int64_t last = std::min(end * kBlock, count);
    const auto run = [&](auto whole) __attribute__((always_inline)) {
      int64_t i = begin * kBlock;
#pragma GCC unroll 2
      for (; i + kLanes<T> <= last; i += kLanes<T>) own(whole, i);
      if (i < last) own(FirstLanes{last - i}, i);
    };
    with_vectors(streamed, run);
  });
}

// output[i] = f(input[i])
template <class S, class Function>
void apply(const Function& f, const S* input, S* output, int64_t count) {
  const bool large = count * static_cast<int64_t>(sizeof(S)) >= kStreamedBytes;
  const bool streamed = output != input && large && is_worth_streaming(output, count, kBlock);
  for_each_number<Wide<S>>(count, streamed, [=](auto part, int64_t i) __attribute__((always_inline)) {
    part.write(output + i, f.value(part.read(input + i)));
  });
}

// grad_input[i] = gradient(grad[i], saved[i])
template <class S, class Gradient>
void apply_gradient(const Gradient& gradient, const S* grad, const S* saved, S* grad_input, int64_t count) {
  const bool streamed = grad_input != grad && is_worth_streaming(grad_input, count, kBlock);
  for_each_number<Wide<S>>(count, streamed, [=](auto part, int64_t i) __attribute__((always_inline)) {
    part.write(grad_input + i, gradient(part.read(grad + i), part.read(saved + i)));
  });
}

template <class S>
void activation(Activation which, const double* parameters, const S* input, S* output, int64_t count) {
  with_function<Wide<S>>(which, parameters, [&](const auto& f) { apply<S>(f, input, output, count); });
}

template <class S>
void activation_backward(Activation which, const double* parameters, const S* grad, const S* saved, S* grad_input,
                         int64_t count) {
  using V = Vec<Wide<S>>;
  with_function<Wide<S>>(which, parameters, [&](const auto& f) {
    apply_gradient<S>([f](V dy, V x) { return f.gradient(dy, x); }, grad, saved, grad_input, count);
  });
}

template <class S>
void activation_output_backward(Activation which, const double* parameters, const S* grad, const S* output,
                                S* grad_input, int64_t count) {
  using V = Vec<Wide<S>>;
  with_function_of_output<Wide<S>>(which, parameters, [&](const auto& f) {
    apply_gradient<S>([f](V dy, V y) { return f.gradient_from_output(dy, y); }, grad, output, grad_input, count);
  });
}

}  // namespace

#define SCRATCHNN_REGISTER(S)                                                        \
  SCRATCHNN_REGISTER_KERNEL(activation_kernel<S>, &activation<S>);                   \
  SCRATCHNN_REGISTER_KERNEL(activation_backward_kernel<S>, &activation_backward<S>); \
  SCRATCHNN_REGISTER_KERNEL(activation_output_backward_kernel<S>, &activation_output_backward<S>);
SCRATCHNN_REGISTER(float)
SCRATCHNN_REGISTER(double)
SCRATCHNN_REGISTER(BFloat16)
SCRATCHNN_REGISTER(Half)
#undef SCRATCHNN_REGISTER

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

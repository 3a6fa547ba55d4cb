// The elementwise activations: each number is read once and written once.
//
// One loop serves every function of the table and every type. The last numbers go through the same vector code as
// all others, so a result depends on its number alone and not on where it stands.
#include "activation/functions.h"
#include "activation/kernels.h"
#include "common/half.h"
#include "common/runtime.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {
namespace {

constexpr int64_t kGrain = 16384;  // numbers a thread must have to be worth waking

// output[i] = f(input[i])
template <class S, class Function>
void apply(const Function& f, const S* input, S* output, int64_t count) {
  constexpr int64_t lanes = kLanes<Wide<S>>;
  parallel_for(0, count, kGrain, [&](int64_t first, int64_t last) {
    int64_t i = first;
#pragma GCC unroll 2
    for (; i + lanes <= last; i += lanes) write(output + i, f.value(read(input + i)));
    if (i < last) write_partial(output + i, f.value(read_partial(input + i, last - i)), last - i);
  });
}

// grad_input[i] = gradient(grad[i], saved[i])
template <class S, class Gradient>
void apply_gradient(const Gradient& gradient, const S* grad, const S* saved, S* grad_input, int64_t count) {
  constexpr int64_t lanes = kLanes<Wide<S>>;
  parallel_for(0, count, kGrain, [&](int64_t first, int64_t last) {
    int64_t i = first;
#pragma GCC unroll 2
    for (; i + lanes <= last; i += lanes) write(grad_input + i, gradient(read(grad + i), read(saved + i)));
    if (i < last) {
      const int64_t rest = last - i;
      write_partial(grad_input + i, gradient(read_partial(grad + i, rest), read_partial(saved + i, rest)), rest);
    }
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

#define SCRATCHNN_REGISTER(S)                                                   \
  SCRATCHNN_REGISTER_KERNEL(activation_kernel<S>, &activation<S>);              \
  SCRATCHNN_REGISTER_KERNEL(activation_backward_kernel<S>, &activation_backward<S>); \
  SCRATCHNN_REGISTER_KERNEL(activation_output_backward_kernel<S>, &activation_output_backward<S>);
SCRATCHNN_REGISTER(float)
SCRATCHNN_REGISTER(double)
SCRATCHNN_REGISTER(BFloat16)
SCRATCHNN_REGISTER(Half)
#undef SCRATCHNN_REGISTER

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

// ReLU, vectorised and threaded: reads each number once and writes it once, so it runs at memory speed.
#include "activation/kernels.h"
#include "common/runtime.h"
#include "common/simd.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {
namespace {

constexpr int64_t kGrain = 16384;  // numbers a thread must have to be worth waking

template <class T>
void relu(const T* input, T* output, int64_t count) {
  parallel_for(0, count, kGrain, [&](int64_t first, int64_t last) {
    int64_t i = first;
    // Written as "0 where x < 0" and not as a maximum, so that NaN stays NaN, as in torch.
#pragma GCC unroll 4
    for (; i + kLanes<T> <= last; i += kLanes<T>) {
      const Vec<T> x = load(input + i);
      store(output + i, x < T(0) ? Vec<T>{} : x);
    }
    for (; i < last; ++i) output[i] = input[i] < T(0) ? T(0) : input[i];
  });
}

template <class T>
void relu_backward(const T* grad, const T* output, T* grad_input, int64_t count) {
  parallel_for(0, count, kGrain, [&](int64_t first, int64_t last) {
    int64_t i = first;
#pragma GCC unroll 4
    for (; i + kLanes<T> <= last; i += kLanes<T>) {
      store(grad_input + i, load(output + i) <= T(0) ? Vec<T>{} : load(grad + i));
    }
    for (; i < last; ++i) grad_input[i] = output[i] <= T(0) ? T(0) : grad[i];
  });
}

}  // namespace

SCRATCHNN_REGISTER_KERNEL(relu_kernel<float>, &relu<float>);
SCRATCHNN_REGISTER_KERNEL(relu_kernel<double>, &relu<double>);
SCRATCHNN_REGISTER_KERNEL(relu_backward_kernel<float>, &relu_backward<float>);
SCRATCHNN_REGISTER_KERNEL(relu_backward_kernel<double>, &relu_backward<double>);

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn

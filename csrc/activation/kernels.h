// The fast activation kernels: elementwise over `count` numbers laid out alike.
#pragma once

#include <cstdint>

#include "common/dispatch.h"

namespace scratchnn {

// output = max(input, 0); the two may be the same memory.
template <class T>
inline Kernel<void(const T* input, T* output, int64_t count)> relu_kernel;

// grad_input = grad where output > 0, else 0.
template <class T>
inline Kernel<void(const T* grad, const T* output, T* grad_input, int64_t count)> relu_backward_kernel;

}  // namespace scratchnn

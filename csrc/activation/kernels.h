// The fast activation kernels.
//
// S is what the numbers are in memory: float, double, BFloat16 or Half (common/half.h). Elementwise kernels take
// `count` numbers laid out alike; input and output, and grad and grad_input, may be the same memory.
#pragma once

#include <cstdint>

#include "activation/table.h"
#include "common/dispatch.h"

namespace scratchnn {

// output = f(input)
template <class S>
inline Kernel<void(Activation f, const double* parameters, const S* input, S* output, int64_t count)> activation_kernel;

// grad_input = grad f'(x), from what is saved: the input, or what the formula of f takes in its place.
template <class S>
inline Kernel<void(Activation f, const double* parameters, const S* grad, const S* saved, S* grad_input, int64_t count)>
    activation_backward_kernel;

// The same from the output, for the functions that have a formula of their own for it.
template <class S>
inline Kernel<void(Activation f, const double* parameters, const S* grad, const S* output, S* grad_input,
                   int64_t count)>
    activation_output_backward_kernel;

// Rows along one dimension of a tensor without gaps: element i of row (o, k) is at (o size + i) inner + k, for `outer`
// values of o and `inner` of k.
struct Rows {
  int64_t outer, size, inner;
};

enum class Softmax { softmax, softmin, log_softmax };

// softmax: y_i = e^(x_i) / sum_j e^(x_j); softmin: of -x; log_softmax: its logarithm.
template <class S>
inline Kernel<void(Softmax f, const Rows&, const S* input, S* output)> softmax_kernel;
template <class S>
inline Kernel<void(Softmax f, const Rows&, const S* grad, const S* output, S* grad_input)> softmax_backward_kernel;

// y = a sigmoid(b): the input's rows are (a, b), each of the output's size.
template <class S>
inline Kernel<void(const Rows&, const S* input, S* output)> glu_kernel;
template <class S>
inline Kernel<void(const Rows&, const S* grad, const S* input, S* grad_input)> glu_backward_kernel;

// y = x for x > 0, else w_c x; channel c is the position in the row.
template <class S>
inline Kernel<void(const Rows&, const S* input, const S* weight, S* output)> prelu_kernel;
// grad_weight[c] = sum of grad x where x <= 0
template <class S>
inline Kernel<void(const Rows&, const S* grad, const S* input, const S* weight, S* grad_input, double* grad_weight)>
    prelu_backward_kernel;

}  // namespace scratchnn

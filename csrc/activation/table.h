// The elementwise activations, one row each: the name of the operator and its parameters.
//
// A row X(name, parameters) stands for the operators
//
//     name(Tensor input<parameters>) -> Tensor
//     name_backward(Tensor grad, Tensor saved<parameters>) -> Tensor
//
// and, in the first table, name_(Tensor(a!) input<parameters>). Their formulas are the structs of the same name in
// functions.h; `saved` is the input, unless a formula says that it is the output.
#pragma once

#define SCRATCHNN_IN_PLACE_ACTIVATIONS(X)              \
  X(relu, "")                                          \
  X(leaky_relu, ", float negative_slope")              \
  X(threshold, ", float threshold, float value")       \
  X(hardtanh, ", float min_val, float max_val")        \
  X(hardsigmoid, "")                                   \
  X(hardswish, "")                                     \
  X(elu, ", float alpha")                              \
  X(celu, ", float alpha")                             \
  X(selu, "")                                          \
  X(silu, "")                                          \
  X(mish, "")

#define SCRATCHNN_OTHER_ACTIVATIONS(X)                 \
  X(hardshrink, ", float lambd")                       \
  X(softshrink, ", float lambd")                       \
  X(sigmoid, "")                                       \
  X(log_sigmoid, "")                                   \
  X(tanh, "")                                          \
  X(tanhshrink, "")                                    \
  X(softsign, "")                                      \
  X(softplus, ", float beta, float threshold")         \
  X(gelu, "")                                          \
  X(gelu_tanh, "")

// Derivatives from the output, name_output_backward, of functions that are computed in place: their input is gone.
#define SCRATCHNN_OUTPUT_DERIVATIVES(X)                \
  X(elu, ", float alpha")                              \
  X(celu, ", float alpha")                             \
  X(selu, "")

#define SCRATCHNN_ACTIVATIONS(X)    \
  SCRATCHNN_IN_PLACE_ACTIVATIONS(X) \
  SCRATCHNN_OTHER_ACTIVATIONS(X)

namespace scratchnn {

#define SCRATCHNN_NAME(name, parameters) name,
enum class Activation { SCRATCHNN_ACTIVATIONS(SCRATCHNN_NAME) };
#undef SCRATCHNN_NAME

// How many parameters a list has: as many as commas.
constexpr int parameter_count(const char* parameters) {
  int count = 0;
  for (; *parameters != '\0'; ++parameters) count += *parameters == ',';
  return count;
}

constexpr int parameter_count(Activation f) {
  switch (f) {
#define SCRATCHNN_CASE(name, parameters) \
  case Activation::name:                 \
    return parameter_count(parameters);
    SCRATCHNN_ACTIVATIONS(SCRATCHNN_CASE)
#undef SCRATCHNN_CASE
  }
  return 0;
}

}  // namespace scratchnn

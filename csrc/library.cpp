// Every operator of scratchnn, on one page.
//
// Each family implements its operators for the CPU in csrc/<family>; their fake (meta) kernels and derivatives are
// in scratchnn/ops. Called directly, an operator has no derivative and says so.
#include <Python.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include "activation/table.h"
#include "common/dispatch.h"
#include "common/runtime.h"
#include "common/tensors.h"
#include "conv/choice.h"
#include "python/module.h"

namespace {

constexpr const char* kOperators[] = {
    // shared
    "channel_sum(Tensor input) -> Tensor",
    // conv: padding lists the amounts before and after each dimension in turn. conv_transpose is also conv's input
    // gradient; its stride, padding and dilation are those of the convolution it transposes
    "conv(Tensor input, Tensor weight, Tensor? bias, SymInt[] stride, SymInt[] padding, SymInt[] dilation, "
    "SymInt groups, str padding_mode) -> Tensor",
    "conv_transpose(Tensor input, Tensor weight, Tensor? bias, SymInt[] output_size, SymInt[] stride, "
    "SymInt[] padding, SymInt[] dilation, SymInt groups, str padding_mode) -> Tensor",
    "conv_weight_grad(Tensor grad, Tensor input, SymInt[] kernel_size, SymInt[] stride, SymInt[] padding, "
    "SymInt[] dilation, SymInt groups, str padding_mode, bool channels_last) -> Tensor",
    // linear
    "linear(Tensor input, Tensor weight, Tensor? bias) -> Tensor",
    "linear_input_grad(Tensor grad, Tensor weight) -> Tensor",
    "linear_weight_grad(Tensor grad, Tensor input) -> Tensor",
    "bilinear(Tensor input1, Tensor input2, Tensor weight, Tensor? bias) -> Tensor",
    "bilinear_weight_grad(Tensor grad, Tensor input1, Tensor input2) -> Tensor",
    // norm: train gives the output and the batch's mean and (biased) variance, in float32 at the least, in double where
    // the output will be computed from them again. backward in training measures the mean again where it is not in
    // double, and does without it
    "batch_norm_train(Tensor input, Tensor? weight, Tensor? bias, float eps, bool in_double=False) -> (Tensor, Tensor, "
    "Tensor)",
    "batch_norm_statistics(Tensor input) -> (Tensor, Tensor)",
    "batch_norm_update_(Tensor(a!) running_mean, Tensor(b!) running_var, Tensor mean, Tensor var, float momentum, "
    "SymInt count) -> ()",
    "batch_norm_eval(Tensor input, Tensor? weight, Tensor? bias, Tensor running_mean, Tensor running_var, float eps) "
    "-> Tensor",
    "batch_norm_backward(Tensor grad, Tensor input, Tensor? weight, Tensor? mean, Tensor var, float eps, bool "
    "training) "
    "-> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)",
    // that, with grad overwritten by the gradient of the input
    "batch_norm_backward_(Tensor(a!) grad, Tensor input, Tensor? weight, Tensor? mean, Tensor var, float eps, bool "
    "training) -> (Tensor grad_weight, Tensor grad_bias)",
    // the same, followed by y = min(max(n + residual, low), high): in training, with statistics in double, with given
    // statistics, and the gradients, which see the limits by n + residual or by the output; grad_residual is empty
    // without either
    "batch_norm_add_clamp_train(Tensor input, Tensor? weight, Tensor? bias, Tensor? residual, float eps, float low, "
    "float high) -> (Tensor, Tensor, Tensor)",
    "batch_norm_add_clamp(Tensor input, Tensor? weight, Tensor? bias, Tensor mean, Tensor var, Tensor? residual, "
    "float eps, float low, float high) -> Tensor",
    "batch_norm_add_clamp_backward(Tensor grad, Tensor input, Tensor? weight, Tensor? bias, Tensor mean, Tensor var, "
    "Tensor? residual, Tensor? output, float eps, float low, float high, bool training) -> (Tensor grad_input, "
    "Tensor grad_weight, Tensor grad_bias, Tensor grad_residual)",
    // that, with grad and residual overwritten by the gradients of input and residual
    "batch_norm_add_clamp_backward_(Tensor(a!) grad, Tensor input, Tensor? weight, Tensor? bias, Tensor mean, "
    "Tensor var, Tensor(b!)? residual, float eps, float low, float high, bool training) -> (Tensor grad_weight, "
    "Tensor grad_bias)",
    // normalize: by statistics of a sample alone; shape is samples, groups, channels of a group, pixels, and sharing
    // "row", "group" or "pixel". Output, mean and (biased) variance; backward does without the mean, which is measured.
    "normalize(Tensor input, Tensor? weight, Tensor? bias, SymInt[] shape, str sharing, bool centred, float eps) -> "
    "(Tensor, Tensor, Tensor)",
    "normalize_backward(Tensor grad, Tensor input, Tensor? weight, Tensor? mean, Tensor var, SymInt[] shape, "
    "str sharing, bool centred, float eps, bool parameters) -> (Tensor grad_input, Tensor grad_weight, "
    "Tensor grad_bias)",
    "local_response_norm(Tensor input, SymInt before, SymInt after, float scale, float beta, float k) -> Tensor",
    "local_response_norm_backward(Tensor grad, Tensor input, SymInt before, SymInt after, float scale, float beta, "
    "float k) -> Tensor",
    // pool
    "max_pool(Tensor input, SymInt[] kernel, SymInt[] stride, SymInt[] padding, SymInt[] dilation, "
    "bool ceil_mode) -> Tensor",
    "max_pool_with_offsets(Tensor input, SymInt[] kernel, SymInt[] stride, SymInt[] padding, "
    "SymInt[] dilation, bool ceil_mode) -> (Tensor output, Tensor offsets)",
    "max_pool_backward(Tensor grad, Tensor offsets, SymInt[] size, SymInt[] kernel, SymInt[] stride, "
    "SymInt[] padding, SymInt[] dilation) -> Tensor",
    "max_pool_gather(Tensor input, Tensor offsets, SymInt[] kernel, SymInt[] stride, SymInt[] padding, "
    "SymInt[] dilation) -> Tensor",
    "max_pool_indices(Tensor offsets, SymInt[] size, SymInt[] kernel, SymInt[] stride, SymInt[] padding, "
    "SymInt[] dilation) -> Tensor",
    "adaptive_max_pool(Tensor input, SymInt[] output_size) -> Tensor",
    "adaptive_max_pool_with_offsets(Tensor input, SymInt[] output_size) -> (Tensor output, Tensor offsets)",
    "adaptive_max_pool_backward(Tensor grad, Tensor offsets, SymInt[] size) -> Tensor",
    "adaptive_max_pool_gather(Tensor input, Tensor offsets) -> Tensor",
    "adaptive_max_pool_indices(Tensor offsets, SymInt[] size) -> Tensor",
    "fractional_max_pool(Tensor input, Tensor samples, SymInt[] kernel, SymInt[] output_size) "
    "-> (Tensor output, Tensor offsets)",
    "fractional_max_pool_backward(Tensor grad, Tensor offsets, Tensor samples, SymInt[] size, SymInt[] kernel) "
    "-> Tensor",
    "fractional_max_pool_gather(Tensor input, Tensor offsets, Tensor samples, SymInt[] kernel) -> Tensor",
    "fractional_max_pool_indices(Tensor offsets, Tensor samples, SymInt[] size, SymInt[] kernel) -> Tensor",
    "max_unpool(Tensor input, Tensor indices, SymInt[] output_size) -> Tensor",
    "max_unpool_backward(Tensor grad, Tensor indices) -> Tensor",
    "avg_pool(Tensor input, SymInt[] kernel, SymInt[] stride, SymInt[] padding, bool ceil_mode, "
    "bool count_include_pad, SymInt? divisor_override) -> Tensor",
    "avg_pool_backward(Tensor grad, SymInt[] size, SymInt[] kernel, SymInt[] stride, SymInt[] padding, "
    "bool ceil_mode, bool count_include_pad, SymInt? divisor_override, bool channels_last) -> Tensor",
    "adaptive_avg_pool(Tensor input, SymInt[] output_size) -> Tensor",
    "adaptive_avg_pool_backward(Tensor grad, SymInt[] size, bool channels_last) -> Tensor",
    // activation
    "softmax(Tensor input, int dim) -> Tensor",
    "softmax_backward(Tensor grad, Tensor output, int dim) -> Tensor",
    "softmin(Tensor input, int dim) -> Tensor",
    "softmin_backward(Tensor grad, Tensor output, int dim) -> Tensor",
    "log_softmax(Tensor input, int dim) -> Tensor",
    "log_softmax_backward(Tensor grad, Tensor output, int dim) -> Tensor",
    "glu(Tensor input, int dim) -> Tensor",
    "glu_backward(Tensor grad, Tensor input, int dim) -> Tensor",
    "prelu(Tensor input, Tensor weight) -> Tensor",
    "prelu_backward(Tensor grad, Tensor input, Tensor weight) -> (Tensor grad_input, Tensor grad_weight)",
    "maxout(Tensor input, SymInt pieces, int dim) -> (Tensor output, Tensor winners)",
    "maxout_backward(Tensor grad, Tensor winners, SymInt pieces, int dim) -> Tensor",
    "maxout_gather(Tensor input, Tensor winners, SymInt pieces, int dim) -> Tensor",
};

// activation: the elementwise functions of activation/table.h
constexpr const char* kActivations[] = {
// clang-format off
#define SCRATCHNN_SCHEMA(name, parameters) #name "(Tensor input" parameters ") -> Tensor",
    SCRATCHNN_ACTIVATIONS(SCRATCHNN_SCHEMA)
#undef SCRATCHNN_SCHEMA
#define SCRATCHNN_SCHEMA(name, parameters) #name "_backward(Tensor grad, Tensor saved" parameters ") -> Tensor",
    SCRATCHNN_ACTIVATIONS(SCRATCHNN_SCHEMA)
#undef SCRATCHNN_SCHEMA
#define SCRATCHNN_SCHEMA(name, parameters) #name "_backward_(Tensor(a!) grad, Tensor saved" parameters ") -> ()",
    SCRATCHNN_ACTIVATIONS(SCRATCHNN_SCHEMA)
#undef SCRATCHNN_SCHEMA
#define SCRATCHNN_SCHEMA(name, parameters) #name "_(Tensor(a!) input" parameters ") -> ()",
    SCRATCHNN_IN_PLACE_ACTIVATIONS(SCRATCHNN_SCHEMA)
#undef SCRATCHNN_SCHEMA
#define SCRATCHNN_SCHEMA(name, parameters) #name "_output_backward(Tensor grad, Tensor output" parameters ") -> Tensor",
    SCRATCHNN_OUTPUT_DERIVATIVES(SCRATCHNN_SCHEMA)
#undef SCRATCHNN_SCHEMA
#define SCRATCHNN_SCHEMA(name, parameters) \
  #name "_output_backward_(Tensor(a!) grad, Tensor output" parameters ") -> ()",
    SCRATCHNN_OUTPUT_DERIVATIVES(SCRATCHNN_SCHEMA)
#undef SCRATCHNN_SCHEMA
    // clang-format on
};

// Operators that draw from torch's random numbers.
constexpr const char* kRandomOperators[] = {
    // activation
    "rrelu_train(Tensor input, float lower, float upper) -> (Tensor output, Tensor slopes)",
};

std::string instruction_set() {
  switch (scratchnn::active_instruction_set()) {
    case scratchnn::InstructionSet::AVX512:
      return "AVX512";
    case scratchnn::InstructionSet::AVX2:
      return "AVX2";
    default:
      return "DEFAULT";
  }
}

// The autograd kernel of the operators that write into their arguments. They have no output to hang an error on for the
// backward pass, as torch's own fallback does, so they refuse at once; and what they write counts up its version, so
// that the backward pass notices a saved tensor that was overwritten.
void in_place(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  const auto& arguments = op.schema().arguments();
  std::vector<at::Tensor> written;
  const auto values = torch::jit::last(*stack, arguments.size());
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (!values[i].isTensor()) continue;
    const at::Tensor& tensor = values[i].toTensor();
    TORCH_CHECK(!(at::GradMode::is_enabled() && tensor.requires_grad()), "derivative for ", op.schema().name(),
                " is not implemented");
    const c10::AliasInfo* alias = arguments[i].alias_info();
    if (alias != nullptr && alias->isWrite()) written.push_back(tensor);
  }
  op.redispatchBoxed(keys & c10::after_autograd_keyset, stack);
  for (const at::Tensor& tensor : written) {
    if (tensor.defined() && !tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
  }
}

}  // namespace

TORCH_LIBRARY(scratchnn, library) {
  for (const char* schema : kOperators) library.def(schema, {at::Tag::pt2_compliant_tag});
  for (const char* schema : kActivations) library.def(schema, {at::Tag::pt2_compliant_tag});
  for (const char* schema : kRandomOperators) {
    library.def(schema, {at::Tag::pt2_compliant_tag, at::Tag::nondeterministic_seeded});
  }
  library.def("instruction_set() -> str", instruction_set);
  library.def("allow_winograd(bool? allow=None) -> bool", scratchnn::allow_winograd);
  library.def(
      "explain_conv(int[] input, int[] weight, int[] stride, int[] padding, int[] dilation, int groups, "
      "str padding_mode, ScalarType dtype) -> (str, str)",
      scratchnn::explain_conv);
  library.def("kernels_for(ScalarType dtype) -> str", scratchnn::kernels_for);
  library.def("request_naive_kernels(bool naive) -> bool", scratchnn::request_naive_kernels);
}

TORCH_LIBRARY_IMPL(scratchnn, Autograd, library) {
  const auto refuse = [&](const std::string& schema) {
    const std::string name = schema.substr(0, schema.find('('));
    library.impl(name.c_str(), name.back() == '_' ? torch::CppFunction::makeFromBoxedFunction<&in_place>()
                                                  : torch::autograd::autogradNotImplementedFallback());
  };
  for (const char* schema : kOperators) refuse(schema);
  for (const char* schema : kActivations) refuse(schema);
  for (const char* schema : kRandomOperators) refuse(schema);
}

// Importing scratchnn._C loads the library, which registers the operators above.
PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  PyObject* module = PyModule_Create(&definition);
  if (module == nullptr) return nullptr;
  if (!scratchnn::add_function_type(module) || !scratchnn::add_remembered_type(module)) Py_CLEAR(module);
  return module;
}

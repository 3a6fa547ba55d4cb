// Python arguments as the values of an operator's schema: what torch.ops does, for the few types our operators have.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <torch/csrc/Size.h>
#include <torch/csrc/autograd/python_variable.h>

#include <optional>
#include <string>
#include <vector>

namespace scratchnn {

// An operator that is called from Python without asking its schema anew each time.
class Operator {
 public:
  explicit Operator(const std::string& name);

  // Pushes the arguments; false, with the stack in any state, for whatever is not exactly what the schema names:
  // numbers that are symbols, too few arguments, other types. torch.ops then says what is wrong, or knows how to take
  // them. A NamedTuple stands for its fields.
  bool push(PyObject* const* args, Py_ssize_t count, torch::jit::Stack& stack) const;

  void call(torch::jit::Stack& stack) const { handle_.callBoxed(stack); }

  bool mutates() const { return handle_.schema().is_mutable(); }

 private:
  enum class Kind { kTensor, kOptionalTensor, kInt, kOptionalInt, kInts, kFloat, kBool, kString };

  bool push(PyObject* arg, size_t& position, torch::jit::Stack& stack) const;

  c10::OperatorHandle handle_;
  std::vector<Kind> kinds_;
};

// A tensor of torch's own two classes, wrapped in nothing: no transform and no subclass has a say in what is done to
// it.
inline bool is_plain_tensor(PyObject* object) {
  if (!THPVariable_CheckExact(object)) return false;
  constexpr c10::DispatchKeySet kWrappers({c10::DispatchKey::Python, c10::DispatchKey::Functionalize,
                                           c10::DispatchKey::FuncTorchBatched, c10::DispatchKey::FuncTorchGradWrapper});
  return (THPVariable_Unpack(object).key_set() & kWrappers).empty();
}

}  // namespace scratchnn

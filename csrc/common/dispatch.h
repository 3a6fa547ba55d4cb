// One kernel, several instruction sets.
//
// A fast kernel file is compiled once per instruction set (setup.py), each time with CPU_CAPABILITY naming the
// set and everything in it inside `inline namespace CPU_CAPABILITY`, so that no two builds share a symbol. At
// the bottom of the file each build registers its function:
//
//     SCRATCHNN_REGISTER_KERNEL(relu_kernel<float>, &relu<float>);
//
// and callers use the kernel as a function: the best set the processor supports is taken. The environment
// variable ATEN_CPU_CAPABILITY (default, avx2, avx512) lowers it, exactly as it does for torch's own kernels.
#pragma once

namespace scratchnn {

enum class InstructionSet { DEFAULT, AVX2, AVX512 };

// The set torch runs on in this process; decided once.
InstructionSet active_instruction_set();

template <class Signature>
class Kernel;

template <class... Args>
class Kernel<void(Args...)> {
 public:
  using Function = void (*)(Args...);

  constexpr Kernel() = default;

  void add(InstructionSet set, Function function) { functions_[static_cast<int>(set)] = function; }

  void operator()(Args... args) const {
    int set = static_cast<int>(active_instruction_set());
    while (functions_[set] == nullptr && set > 0) --set;  // a set this build left out: take the next lower
    functions_[set](args...);
  }

 private:
  Function functions_[3] = {};
};

}  // namespace scratchnn

#define SCRATCHNN_CONCAT_(a, b) a##b
#define SCRATCHNN_CONCAT(a, b) SCRATCHNN_CONCAT_(a, b)
#define SCRATCHNN_REGISTER_KERNEL(kernel, function)                               \
  [[maybe_unused]] static const bool SCRATCHNN_CONCAT(registered_, __COUNTER__) = \
      ((kernel).add(InstructionSet::CPU_CAPABILITY, function), true)

// What scratchnn._C offers to Python.
#pragma once

#include <torch/csrc/python_headers.h>

namespace scratchnn {

// Adds the type Function, on which scratchnn.ops._common.Function is built; false with a Python error set.
bool add_function_type(PyObject* module);

}  // namespace scratchnn

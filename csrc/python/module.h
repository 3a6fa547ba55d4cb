// What scratchnn._C offers to Python besides the operators. Each function adds one name to the module, and gives false
// with a Python error set where that fails.
#pragma once

#include <Python.h>
#include <structmember.h>

namespace scratchnn {

// Function, on which scratchnn.ops._common.Function is built, and Node, the class of grad_fn then.
bool add_function_type(PyObject* module);

// Remembered, on which scratchnn.ops._common.remembered is built.
bool add_remembered_type(PyObject* module);

}  // namespace scratchnn

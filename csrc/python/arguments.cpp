#include "python/arguments.h"

namespace scratchnn {
namespace {

// Whole numbers of Python's own type; NumPy's, tensors and booleans are for torch.ops to judge.
bool to_int(PyObject* object, int64_t& value) {
  if (!PyLong_CheckExact(object)) return false;
  int overflow = 0;
  value = PyLong_AsLongLongAndOverflow(object, &overflow);
  return overflow == 0;
}

bool to_ints(PyObject* object, c10::List<int64_t>& values) {
  const bool is_list = PyList_Check(object);
  if (!is_list && !PyTuple_Check(object)) return false;
  const Py_ssize_t count = Py_SIZE(object);
  values.reserve(count);
  for (Py_ssize_t i = 0; i < count; ++i) {
    int64_t value;
    if (!to_int(is_list ? PyList_GET_ITEM(object, i) : PyTuple_GET_ITEM(object, i), value)) return false;
    values.push_back(value);
  }
  return true;
}

bool is_named_tuple(PyObject* object) {
  // torch.Size is a tuple as well, and stands for a list of numbers.
  return PyTuple_Check(object) && !PyTuple_CheckExact(object) &&
         Py_TYPE(object) != reinterpret_cast<PyTypeObject*>(&THPSizeType);
}

}  // namespace

Operator::Operator(const std::string& name)
    : handle_(c10::Dispatcher::singleton().findSchemaOrThrow(("scratchnn::" + name).c_str(), "")) {
  for (const auto& argument : handle_.schema().arguments()) {
    const std::string type = argument.real_type()->str();
    if (type == "Tensor") {
      kinds_.push_back(Kind::kTensor);
    } else if (type == "Tensor?") {
      kinds_.push_back(Kind::kOptionalTensor);
    } else if (type == "int" || type == "SymInt") {
      kinds_.push_back(Kind::kInt);
    } else if (type == "int?" || type == "SymInt?") {
      kinds_.push_back(Kind::kOptionalInt);
    } else if (type == "int[]" || type == "SymInt[]") {
      kinds_.push_back(Kind::kInts);
    } else if (type == "float") {
      kinds_.push_back(Kind::kFloat);
    } else if (type == "bool") {
      kinds_.push_back(Kind::kBool);
    } else if (type == "str") {
      kinds_.push_back(Kind::kString);
    } else {
      TORCH_CHECK(false, "scratchnn::", name, ": arguments of type ", type, " cannot be given from Python");
    }
  }
}

bool Operator::push(PyObject* const* args, Py_ssize_t count, torch::jit::Stack& stack) const {
  stack.reserve(kinds_.size());
  size_t position = 0;
  for (Py_ssize_t i = 0; i < count; ++i) {
    if (!is_named_tuple(args[i])) {
      if (!push(args[i], position, stack)) return false;
      continue;
    }
    for (Py_ssize_t field = 0; field < PyTuple_GET_SIZE(args[i]); ++field) {
      if (!push(PyTuple_GET_ITEM(args[i], field), position, stack)) return false;
    }
  }
  return position == kinds_.size();
}

bool Operator::push(PyObject* arg, size_t& position, torch::jit::Stack& stack) const {
  if (position == kinds_.size()) return false;
  switch (kinds_[position++]) {
    case Kind::kOptionalTensor:
      if (arg == Py_None) {
        stack.emplace_back();
        return true;
      }
      [[fallthrough]];
    case Kind::kTensor:
      if (!THPVariable_CheckExact(arg)) return false;
      stack.emplace_back(THPVariable_Unpack(arg));
      return true;
    case Kind::kOptionalInt:
      if (arg == Py_None) {
        stack.emplace_back();
        return true;
      }
      [[fallthrough]];
    case Kind::kInt: {
      int64_t value;
      if (!to_int(arg, value)) return false;
      stack.emplace_back(value);
      return true;
    }
    case Kind::kInts: {
      c10::List<int64_t> values;
      if (!to_ints(arg, values)) return false;
      stack.emplace_back(std::move(values));
      return true;
    }
    case Kind::kFloat:
      if (PyFloat_CheckExact(arg)) {
        stack.emplace_back(PyFloat_AS_DOUBLE(arg));
        return true;
      }
      if (int64_t value; to_int(arg, value)) {
        stack.emplace_back(static_cast<double>(value));
        return true;
      }
      return false;
    case Kind::kBool:
      if (!PyBool_Check(arg)) return false;
      stack.emplace_back(arg == Py_True);
      return true;
    case Kind::kString: {
      if (!PyUnicode_CheckExact(arg)) return false;
      Py_ssize_t length = 0;
      const char* text = PyUnicode_AsUTF8AndSize(arg, &length);
      if (text == nullptr) throw python_error();
      stack.emplace_back(std::string(text, length));
      return true;
    }
  }
  return false;
}

}  // namespace scratchnn

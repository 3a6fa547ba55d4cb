// Remembered: what functools.lru_cache is, with no mistaking True or 1.0 for 1, and with arguments that cannot be keys
// passed on instead of refused. For functions that turn a layer's numbers, the same at each call, into checked lists.
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/object_ptr.h>

#include "python/module.h"

namespace scratchnn {
namespace {

// Beyond this the numbers do not repeat, and remembering them is in vain.
constexpr Py_ssize_t kMostKept = 4096;

struct Remembered {
  PyObject_HEAD PyObject* function;
  PyObject* results;  // arguments -> (arguments, result)
  vectorcallfunc vectorcall;
};

Remembered* as_remembered(PyObject* self) {
  return reinterpret_cast<Remembered*>(self);
}

// Constants, and tuples of them.
bool is_key(PyObject* object) {
  if (PyLong_CheckExact(object) || PyBool_Check(object) || object == Py_None || PyUnicode_CheckExact(object))
    return true;
  if (!PyTuple_Check(object)) return false;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(object); ++i) {
    if (!is_key(PyTuple_GET_ITEM(object, i))) return false;
  }
  return true;
}

// Of two keys that compare equal: whether their types are the same too.
bool same_types(PyObject* a, PyObject* b) {
  if (Py_TYPE(a) != Py_TYPE(b)) return false;
  if (!PyTuple_Check(a)) return true;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(a); ++i) {
    if (!same_types(PyTuple_GET_ITEM(a, i), PyTuple_GET_ITEM(b, i))) return false;
  }
  return true;
}

PyObject* call(PyObject* self, PyObject* const* args, size_t flags, PyObject* names) {
  Remembered* remembered = as_remembered(self);
  const Py_ssize_t count = PyVectorcall_NARGS(flags);
  bool known = names == nullptr;
  for (Py_ssize_t i = 0; known && i < count; ++i) known = is_key(args[i]);
  if (!known) return PyObject_Vectorcall(remembered->function, args, flags, names);

  THPObjectPtr key(PyTuple_New(count));
  if (!key) return nullptr;
  for (Py_ssize_t i = 0; i < count; ++i) {
    Py_INCREF(args[i]);
    PyTuple_SET_ITEM(key.get(), i, args[i]);
  }
  PyObject* entry = PyDict_GetItemWithError(remembered->results, key.get());
  if (entry == nullptr && PyErr_Occurred()) return nullptr;
  if (entry != nullptr && same_types(PyTuple_GET_ITEM(entry, 0), key.get())) {
    PyObject* result = PyTuple_GET_ITEM(entry, 1);
    Py_INCREF(result);
    return result;
  }
  THPObjectPtr result(PyObject_Vectorcall(remembered->function, args, flags, nullptr));
  if (!result || entry != nullptr) return result.release();
  if (PyDict_GET_SIZE(remembered->results) >= kMostKept) PyDict_Clear(remembered->results);
  THPObjectPtr pair(PyTuple_Pack(2, key.get(), result.get()));
  if (!pair || PyDict_SetItem(remembered->results, key.get(), pair.get()) < 0) return nullptr;
  return result.release();
}

PyObject* create(PyTypeObject* type, PyObject* args, PyObject* /*kwargs*/) {
  PyObject* function;
  if (!PyArg_ParseTuple(args, "O", &function)) return nullptr;
  PyObject* self = type->tp_alloc(type, 0);
  if (self == nullptr) return nullptr;
  Remembered* remembered = as_remembered(self);
  Py_INCREF(function);
  remembered->function = function;
  remembered->results = PyDict_New();
  remembered->vectorcall = call;
  if (remembered->results == nullptr) Py_CLEAR(self);
  return self;
}

int clear(PyObject* self) {
  Py_CLEAR(as_remembered(self)->function);
  Py_CLEAR(as_remembered(self)->results);
  return 0;
}

int traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  Py_VISIT(as_remembered(self)->function);
  Py_VISIT(as_remembered(self)->results);
  return 0;
}

void dealloc(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  PyObject_GC_UnTrack(self);
  clear(self);
  type->tp_free(self);
  Py_DECREF(type);
}

PyMemberDef members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Remembered, vectorcall), READONLY, nullptr},
    {},
};

constexpr const char* kDoc =
    "Remembered(function)\n\n"
    "The function, whose results for constants (int, bool, str, None and tuples of these) are kept.";

PyType_Slot slots[] = {
    {Py_tp_doc, const_cast<char*>(kDoc)},
    {Py_tp_new, reinterpret_cast<void*>(create)},
    {Py_tp_call, reinterpret_cast<void*>(PyVectorcall_Call)},
    {Py_tp_dealloc, reinterpret_cast<void*>(dealloc)},
    {Py_tp_traverse, reinterpret_cast<void*>(traverse)},
    {Py_tp_clear, reinterpret_cast<void*>(clear)},
    {Py_tp_members, members},
    {0, nullptr},
};

PyType_Spec spec = {"scratchnn._C.Remembered", sizeof(Remembered), 0,
                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL, slots};

}  // namespace

bool add_remembered_type(PyObject* module) {
  PyObject* type = PyType_FromSpec(&spec);
  return type != nullptr && PyModule_AddObject(module, "Remembered", type) == 0;
}

}  // namespace scratchnn

// The eager half of scratchnn.ops._common.Function: torch.autograd.Function in C++, for calls of few microseconds.
//
// torch's own Function takes longer to record a small layer than the layer takes to compute. This one does the same for
// ordinary tensors: forward and setup_context when called, a node in the graph, backward when the gradient arrives. The
// formulas stay in Python. Where anything is not ordinary (a transform, a mode, a subclass, forward-mode derivatives)
// it hands the call over to `otherwise`, which is torch's Function.
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <c10/util/ScopeExit.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/forward_grad.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/python_cpp_function.h>
#include <torch/csrc/utils/object_ptr.h>
#include <torch/version.h>

#include "python/arguments.h"
#include "python/module.h"

namespace scratchnn {
namespace {

using torch::autograd::Edge;
using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

using NodePtr = c10::intrusive_ptr<Node>;

// What differs between versions of torch.
#if TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR < 14
bool in_forward_mode() {
  return torch::autograd::ForwardADLevel::try_get_by_idx(0) != nullptr;
}

NodePtr rebase_history(const at::Tensor& tensor, const Edge& edge) {
  torch::autograd::impl::rebase_history(tensor, edge);
  return edge.function;
}

void announce(const NodePtr& /*node*/) {}
#else
bool in_forward_mode() {
  return torch::autograd::ForwardADLevel::has_any_level();
}

NodePtr rebase_history(const at::Tensor& tensor, const Edge& edge) {
  return torch::autograd::impl::rebase_history(tensor, edge);
}

// Tells those who asked to be told of new nodes.
void announce(const NodePtr& node) {
  torch::autograd::fire_node_creation_hooks(node);
}
#endif

THPObjectPtr owned(PyObject* object) {
  if (object == nullptr) throw python_error();
  return THPObjectPtr(object);
}

PyObject* share(PyObject* object) {
  Py_INCREF(object);
  return object;
}

// Passes a Python error on to whoever runs the backward pass, in whatever thread.
[[noreturn]] void throw_python_error() {
  python_error error;
  error.persist();
  throw error;
}

// Whether nobody but plain autograd watches: no mode, no transform, no tracing, no forward-mode derivatives.
bool nothing_special() {
  constexpr c10::DispatchKeySet kOrdinary =
      c10::DispatchKeySet({c10::DispatchKey::BackendSelect, c10::DispatchKey::ADInplaceOrView}) |
      c10::autocast_dispatch_keyset;
  return (c10::impl::tls_local_dispatch_key_set().included_ - kOrdinary).empty() &&
         at::impl::PythonTorchFunctionTLS::stack_len() == 0 && !c10::impl::TorchDispatchModeTLS::any_modes_set() &&
         !in_forward_mode();
}

struct FunctionNode;

// The `ctx` of setup_context and backward. The node owns it; it knows the node as long as there is one.
struct Context {
  PyObject_HEAD PyObject* attributes;  // what setup_context sets on it
  PyObject* needs_input_grad;          // a tuple of booleans, one for each argument
  PyObject* to_save;                   // tuples of tensors, or null: what setup_context said
  PyObject* non_differentiable;
  PyObject* dirty;
  FunctionNode* node;
  bool materialize_grads;
};

// torch._C.Function as scratchnn builds it: see Function.__init_subclass__ in scratchnn/ops/_common.py.
struct FunctionObject {
  PyObject_HEAD PyObject* name;
  PyObject* forward;
  PyObject* setup_context;
  PyObject* backward;
  PyObject* overwriting;  // None, or backward where the first gradient may be overwritten
  PyObject* otherwise;
  Operator* op;     // null where forward is to be called
  bool hands_over;  // backward is given its gradients to keep or to drop
  vectorcallfunc vectorcall;
};

struct FunctionNode : public Node {
  FunctionObject* function = nullptr;
  Context* context = nullptr;
  std::vector<SavedVariable> saved;
  std::vector<bool> is_tensor;          // of each argument: those have an edge
  std::vector<bool> is_differentiable;  // of each result: the others have no gradient
  bool released = false;
  bool running = false;
  int unpacking = 0;  // how many are reading `saved`: hooks that unpack may run another backward pass of this node

  ~FunctionNode() override {
    if (context == nullptr || !Py_IsInitialized()) return;
    pybind11::gil_scoped_acquire gil;
    context->node = nullptr;
    Py_DECREF(context);
    Py_DECREF(function);
  }

  std::string name() const override {
    pybind11::gil_scoped_acquire gil;
    return std::string(PyUnicode_AsUTF8(function->name)) + "Backward";
  }

  void release_variables() override {
    if (!Py_IsInitialized()) return;
    pybind11::gil_scoped_acquire gil;
    released = true;
    if (unpacking == 0) saved.clear();
  }

  variable_list apply(variable_list&& gradients) override;

  // A tuple of booleans: for which arguments the gradient is asked for in the backward pass under way.
  PyObject* needed_now() const;
};

NodePtr pointer_to(FunctionNode* node) {
  return NodePtr::reclaim_copy(node);
}

// Whether nobody but the caller has this tensor, or memory of it: neither other tensors nor, as of NumPy's arrays,
// whoever it was borrowed from.
bool is_sole_owner(PyObject* object) {
  if (Py_REFCNT(object) != 1 || !THPVariable_Check(object)) return false;
  const at::Tensor& tensor = THPVariable_Unpack(object);
  return tensor.use_count() == 1 && tensor.has_storage() && tensor.storage().use_count() == 1 &&
         tensor.storage().resizable();
}

// Whether a gradient that has just arrived may be overwritten: nobody else will see it, nor what becomes of it.
bool is_overwritable(PyObject* gradient) {
  if (at::GradMode::is_enabled() || !nothing_special() || !is_plain_tensor(gradient)) return false;
  const at::Tensor& tensor = THPVariable_Unpack(gradient);
  return is_sole_owner(gradient) && tensor.is_cpu() && tensor.is_non_overlapping_and_dense();
}

variable_list FunctionNode::apply(variable_list&& gradients) {
  pybind11::gil_scoped_acquire gil;
  const auto gradient_count = static_cast<Py_ssize_t>(gradients.size());
  const bool hands_over = function->hands_over;
  THPObjectPtr args = owned(PyTuple_New(hands_over ? 3 : gradient_count + 1));
  PyTuple_SET_ITEM(args.get(), 0, share(reinterpret_cast<PyObject*>(context)));
  PyObject *list = nullptr, *sole = nullptr;  // in args
  if (hands_over) {
    PyTuple_SET_ITEM(args.get(), 1, list = owned(PyList_New(gradient_count)).release());
    PyTuple_SET_ITEM(args.get(), 2, sole = owned(PyTuple_New(gradient_count)).release());
  }
  for (Py_ssize_t i = 0; i < gradient_count; ++i) {
    at::Tensor given = std::move(gradients[i]);
    const bool fill = context->materialize_grads && is_differentiable[i] && !given.defined();
    PyObject* gradient = THPVariable_Wrap(fill ? input_metadata(i).zeros_like() : std::move(given));
    if (gradient == nullptr) throw_python_error();
    if (hands_over) {
      PyTuple_SET_ITEM(sole, i, share(is_sole_owner(gradient) ? Py_True : Py_False));
      PyList_SET_ITEM(list, i, gradient);
    } else {
      PyTuple_SET_ITEM(args.get(), i + 1, gradient);
    }
  }
  PyObject* backward = function->backward;
  if (function->overwriting != Py_None && !hands_over && is_overwritable(PyTuple_GET_ITEM(args.get(), 1))) {
    backward = function->overwriting;
  }
  running = true;
  THPObjectPtr result(PyObject_CallObject(backward, args.get()));
  running = false;
  if (!result) throw_python_error();

  const bool single = !PyTuple_Check(result.get());
  const Py_ssize_t count = single ? 1 : PyTuple_GET_SIZE(result.get());
  TORCH_CHECK(count == static_cast<Py_ssize_t>(is_tensor.size()), name(), ": expected ", is_tensor.size(),
              " gradients, but backward returned ", count);
  variable_list results;
  results.reserve(num_outputs());
  for (Py_ssize_t i = 0; i < count; ++i) {
    if (!is_tensor[i]) continue;
    PyObject* gradient = single ? result.get() : PyTuple_GET_ITEM(result.get(), i);
    if (gradient == Py_None) {
      results.emplace_back();
    } else {
      TORCH_CHECK_TYPE(THPVariable_Check(gradient), name(), ": gradient ", i, " is not a tensor");
      results.emplace_back(THPVariable_Unpack(gradient));
    }
  }
  return results;
}

PyObject* FunctionNode::needed_now() const {
  THPObjectPtr needed = owned(PyTuple_New(static_cast<Py_ssize_t>(is_tensor.size())));
  size_t edge = 0;
  for (size_t i = 0; i < is_tensor.size(); ++i) {
    const bool need = is_tensor[i] && task_should_compute_output(edge);
    edge += is_tensor[i];
    PyTuple_SET_ITEM(needed.get(), static_cast<Py_ssize_t>(i), share(need ? Py_True : Py_False));
  }
  return needed.release();
}

// Context

PyObject* keep(PyObject*& slot, PyObject* args) {
  Py_XSETREF(slot, share(args));
  Py_RETURN_NONE;
}

Context* as_context(PyObject* self) {
  return reinterpret_cast<Context*>(self);
}

PyObject* context_save_for_backward(PyObject* self, PyObject* args) {
  return keep(as_context(self)->to_save, args);
}

PyObject* context_save_for_forward(PyObject* /*self*/, PyObject* /*args*/) {
  Py_RETURN_NONE;  // forward-mode derivatives are torch's Function's business
}

PyObject* context_mark_non_differentiable(PyObject* self, PyObject* args) {
  return keep(as_context(self)->non_differentiable, args);
}

PyObject* context_mark_dirty(PyObject* self, PyObject* args) {
  return keep(as_context(self)->dirty, args);
}

PyObject* context_set_materialize_grads(PyObject* self, PyObject* value) {
  as_context(self)->materialize_grads = value == Py_True;
  Py_RETURN_NONE;
}

PyObject* context_needs_input_grad(PyObject* self, void* /*closure*/) {
  HANDLE_TH_ERRORS
  const Context* context = as_context(self);
  if (context->node != nullptr && context->node->running) return context->node->needed_now();
  return share(context->needs_input_grad);
  END_HANDLE_TH_ERRORS
}

PyObject* context_saved_tensors(PyObject* self, void* /*closure*/) {
  HANDLE_TH_ERRORS
  FunctionNode* node = as_context(self)->node;
  TORCH_CHECK(node != nullptr, "saved tensors are there during the backward pass only");
  TORCH_CHECK(!node->released, torch::autograd::ERR_BACKWARD_TWICE);
  const NodePtr alive = pointer_to(node);
  ++node->unpacking;
  const auto done = c10::make_scope_exit([node] {
    if (--node->unpacking == 0 && node->released) node->saved.clear();
  });
  THPObjectPtr tensors = owned(PyTuple_New(static_cast<Py_ssize_t>(node->saved.size())));
  for (size_t i = 0; i < node->saved.size(); ++i) {
    const at::Tensor tensor = node->saved[i].unpack(alive);
    PyTuple_SET_ITEM(tensors.get(), static_cast<Py_ssize_t>(i), owned(THPVariable_Wrap(tensor)).release());
  }
  return tensors.release();
  END_HANDLE_TH_ERRORS
}

// The same, which are dropped by the node where nobody will run this backward pass again.
PyObject* context_take_saved_tensors(PyObject* self, PyObject* /*none*/) {
  HANDLE_TH_ERRORS
  THPObjectPtr tensors = owned(context_saved_tensors(self, nullptr));
  FunctionNode* node = as_context(self)->node;
  if (node->running && !torch::autograd::get_current_graph_task_keep_graph()) node->release_variables();
  return tensors.release();
  END_HANDLE_TH_ERRORS
}

int context_clear(PyObject* self) {
  Context* context = as_context(self);
  Py_CLEAR(context->attributes);
  Py_CLEAR(context->needs_input_grad);
  Py_CLEAR(context->to_save);
  Py_CLEAR(context->non_differentiable);
  Py_CLEAR(context->dirty);
  return 0;
}

int context_traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  const Context* context = as_context(self);
  Py_VISIT(context->attributes);
  Py_VISIT(context->needs_input_grad);
  Py_VISIT(context->to_save);
  Py_VISIT(context->non_differentiable);
  Py_VISIT(context->dirty);
  return 0;
}

void context_dealloc(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  PyObject_GC_UnTrack(self);
  context_clear(self);
  PyObject_GC_Del(self);
  Py_DECREF(type);
}

PyMethodDef context_methods[] = {
    {"save_for_backward", context_save_for_backward, METH_VARARGS, nullptr},
    {"save_for_forward", context_save_for_forward, METH_VARARGS, nullptr},
    {"take_saved_tensors", context_take_saved_tensors, METH_NOARGS, nullptr},
    {"mark_non_differentiable", context_mark_non_differentiable, METH_VARARGS, nullptr},
    {"mark_dirty", context_mark_dirty, METH_VARARGS, nullptr},
    {"set_materialize_grads", context_set_materialize_grads, METH_O, nullptr},
    {},
};

PyGetSetDef context_properties[] = {
    {"needs_input_grad", context_needs_input_grad, nullptr, nullptr, nullptr},
    {"saved_tensors", context_saved_tensors, nullptr, nullptr, nullptr},
    {},
};

PyMemberDef context_members[] = {
    {"__dictoffset__", T_PYSSIZET, offsetof(Context, attributes), READONLY, nullptr},
    {},
};

PyType_Slot context_slots[] = {
    {Py_tp_dealloc, reinterpret_cast<void*>(context_dealloc)},
    {Py_tp_traverse, reinterpret_cast<void*>(context_traverse)},
    {Py_tp_clear, reinterpret_cast<void*>(context_clear)},
    {Py_tp_methods, context_methods},
    {Py_tp_getset, context_properties},
    {Py_tp_members, context_members},
    {0, nullptr},
};

PyType_Spec context_spec = {"scratchnn._C.Context", sizeof(Context), 0,
                            Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION, context_slots};

PyTypeObject* context_type = nullptr;  // made when the module is

// Function

THPObjectPtr results_of(torch::jit::Stack& stack) {
  if (stack.size() == 1) return owned(THPVariable_Wrap(std::move(stack[0]).toTensor()));
  THPObjectPtr results = owned(PyTuple_New(static_cast<Py_ssize_t>(stack.size())));
  for (size_t i = 0; i < stack.size(); ++i) {
    PyTuple_SET_ITEM(results.get(), static_cast<Py_ssize_t>(i),
                     owned(THPVariable_Wrap(std::move(stack[i]).toTensor())).release());
  }
  return results;
}

// The results of the forward pass, by the operator where there is one; null where its arguments are for torch.ops.
THPObjectPtr run_forward(const FunctionObject* function, PyObject* const* args, Py_ssize_t count) {
  at::AutoGradMode no_grad(false);
  if (function->op == nullptr) return owned(PyObject_Vectorcall(function->forward, args, count, nullptr));
  torch::jit::Stack stack;
  if (!function->op->push(args, count, stack)) return {};
  {
    pybind11::gil_scoped_release release;
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    function->op->call(stack);
  }
  return results_of(stack);
}

bool contains(PyObject* tuple, PyObject* object) {
  if (tuple == nullptr) return false;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tuple); ++i) {
    if (PyTuple_GET_ITEM(tuple, i) == object) return true;
  }
  return false;
}

// Makes the node the origin of a result, as setup_context said of it; gives the node that the graph holds.
NodePtr set_history(FunctionNode* node, PyObject* result) {
  const Context* context = node->context;
  const bool is_differentiable = THPVariable_Check(result) && !contains(context->non_differentiable, result);
  node->is_differentiable.push_back(is_differentiable);
  if (!is_differentiable) {
    node->add_input_metadata(Node::undefined_input());
    return pointer_to(node);
  }
  const at::Tensor& tensor = THPVariable_Unpack(result);
  if (!contains(context->dirty, result)) {
    torch::autograd::set_history(tensor, pointer_to(node));
    return pointer_to(node);
  }
  torch::autograd::check_inplace(tensor, true);
  return rebase_history(tensor, Edge(pointer_to(node), node->add_input_metadata(tensor)));
}

void save_tensors(FunctionNode* node, Context* context) {
  if (context->to_save == nullptr) return;
  const Py_ssize_t count = PyTuple_GET_SIZE(context->to_save);
  node->saved.reserve(count);
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject* object = PyTuple_GET_ITEM(context->to_save, i);
    if (object == Py_None) {
      node->saved.emplace_back();
      continue;
    }
    TORCH_CHECK_TYPE(THPVariable_Check(object), "save_for_backward takes tensors and None");
    const at::Tensor& tensor = THPVariable_Unpack(object);
    // A view that was changed in place has its base's history, which leads to this node: it must not own that.
    const bool changed = contains(context->dirty, object);
    node->saved.emplace_back(tensor, changed || tensor.grad_fn().get() == node, changed && tensor.is_view());
  }
  Py_CLEAR(context->to_save);
}

PyObject* record(FunctionObject* function, PyObject* const* args, Py_ssize_t count) {
  auto node = c10::make_intrusive<FunctionNode>();
  Context* context = PyObject_GC_New(Context, context_type);
  if (context == nullptr) throw python_error();
  context->attributes = context->needs_input_grad = nullptr;
  context->to_save = context->non_differentiable = context->dirty = nullptr;
  context->node = node.get();
  context->materialize_grads = true;
  PyObject_GC_Track(context);
  node->context = context;
  node->function = reinterpret_cast<FunctionObject*>(share(reinterpret_cast<PyObject*>(function)));

  torch::autograd::edge_list edges;
  node->is_tensor.reserve(count);
  THPObjectPtr needs = owned(PyTuple_New(count));
  THPObjectPtr inputs = owned(PyTuple_New(count));
  for (Py_ssize_t i = 0; i < count; ++i) {
    const bool is_tensor = THPVariable_CheckExact(args[i]);
    const bool need = is_tensor && THPVariable_Unpack(args[i]).requires_grad();
    node->is_tensor.push_back(is_tensor);
    if (is_tensor) {
      edges.push_back(need ? torch::autograd::impl::gradient_edge(THPVariable_Unpack(args[i])) : Edge());
    }
    PyTuple_SET_ITEM(needs.get(), i, share(need ? Py_True : Py_False));
    PyTuple_SET_ITEM(inputs.get(), i, share(args[i]));
  }
  context->needs_input_grad = needs.release();

  THPObjectPtr output = run_forward(function, args, count);
  if (!output) return nullptr;
  {
    at::AutoGradMode no_grad(false);
    PyObject* told[] = {reinterpret_cast<PyObject*>(context), inputs.get(), output.get()};
    owned(PyObject_Vectorcall(function->setup_context, told, 3, nullptr));
  }
  node->set_next_edges(std::move(edges));

  NodePtr attached;
  if (PyTuple_Check(output.get())) {
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(output.get()); ++i) {
      attached = set_history(node.get(), PyTuple_GET_ITEM(output.get(), i));
    }
  } else {
    attached = set_history(node.get(), output.get());
  }
  save_tensors(node.get(), context);
  Py_CLEAR(context->non_differentiable);
  Py_CLEAR(context->dirty);
  announce(attached);
  return output.release();
}

PyObject* function_call(PyObject* self, PyObject* const* args, size_t flags, PyObject* names) {
  HANDLE_TH_ERRORS
  auto* function = reinterpret_cast<FunctionObject*>(self);
  const Py_ssize_t count = PyVectorcall_NARGS(flags);
  bool ordinary = names == nullptr && nothing_special();
  bool needs_gradient = false;
  for (Py_ssize_t i = 0; ordinary && i < count; ++i) {
    if (is_plain_tensor(args[i])) {
      needs_gradient = needs_gradient || THPVariable_Unpack(args[i]).requires_grad();
    } else {
      ordinary = !THPVariable_Check(args[i]);
    }
  }
  if (ordinary) {
    needs_gradient = needs_gradient && at::GradMode::is_enabled() && !c10::InferenceMode::is_enabled();
    PyObject* output = nullptr;
    if (!needs_gradient) {
      output = run_forward(function, args, count).release();
    } else if (function->setup_context != Py_None) {
      output = record(function, args, count);
    }
    if (output != nullptr) return output;
  }
  return PyObject_Vectorcall(function->otherwise, args, flags, names);
  END_HANDLE_TH_ERRORS
}

FunctionObject* as_function(PyObject* self) {
  return reinterpret_cast<FunctionObject*>(self);
}

PyObject* function_new(PyTypeObject* type, PyObject* args, PyObject* kwargs) {
  HANDLE_TH_ERRORS
  static const char* const names[] = {"name",     "forward",     "setup_context", "backward", "otherwise",
                                      "operator", "overwriting", "hands_over",    nullptr};
  PyObject *name, *forward, *setup_context, *backward, *otherwise, *overwriting = Py_None;
  const char* op = nullptr;
  int hands_over = 0;
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "UOOOO|zOp", const_cast<char**>(names), &name, &forward,
                                   &setup_context, &backward, &otherwise, &op, &overwriting, &hands_over)) {
    return nullptr;
  }
  THPObjectPtr self = owned(type->tp_alloc(type, 0));
  FunctionObject* function = as_function(self.get());
  function->vectorcall = function_call;
  function->hands_over = hands_over != 0;
  function->name = share(name);
  function->forward = share(forward);
  function->setup_context = share(setup_context);
  function->backward = share(backward);
  function->overwriting = share(overwriting);
  function->otherwise = share(otherwise);
  if (op != nullptr) {
    function->op = new Operator(op);
    TORCH_CHECK(!function->op->mutates(), op, " writes into its arguments: autograd must see it do so");
  }
  return self.release();
  END_HANDLE_TH_ERRORS
}

int function_clear(PyObject* self) {
  FunctionObject* function = as_function(self);
  Py_CLEAR(function->name);
  Py_CLEAR(function->forward);
  Py_CLEAR(function->setup_context);
  Py_CLEAR(function->backward);
  Py_CLEAR(function->overwriting);
  Py_CLEAR(function->otherwise);
  return 0;
}

int function_traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  const FunctionObject* function = as_function(self);
  Py_VISIT(function->name);
  Py_VISIT(function->forward);
  Py_VISIT(function->setup_context);
  Py_VISIT(function->backward);
  Py_VISIT(function->overwriting);
  Py_VISIT(function->otherwise);
  return 0;
}

void function_dealloc(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  PyObject_GC_UnTrack(self);
  function_clear(self);
  delete as_function(self)->op;
  type->tp_free(self);
  Py_DECREF(type);
}

PyMemberDef function_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(FunctionObject, vectorcall), READONLY, nullptr},
    {},
};

constexpr const char* kFunctionDoc =
    "Function(name, forward, setup_context, backward, otherwise, operator=None, overwriting=None, hands_over=False)\n\n"
    "A call of it records the operation in torch's graph. forward is run by the operator of that name, if given, on "
    "the same arguments. Calls that are not ordinary go to otherwise, and those to be recorded where setup_context is "
    "None. overwriting is backward where the first gradient is nobody else's: it may be overwritten with that of the "
    "first argument. Where hands_over, it is backward(ctx, gradients, sole): a list that it may empty, so that nobody "
    "holds what it no longer needs, and for each whether nobody else has it, so that it may be overwritten.";

PyType_Slot function_slots[] = {
    {Py_tp_doc, const_cast<char*>(kFunctionDoc)},
    {Py_tp_new, reinterpret_cast<void*>(function_new)},
    {Py_tp_call, reinterpret_cast<void*>(PyVectorcall_Call)},
    {Py_tp_dealloc, reinterpret_cast<void*>(function_dealloc)},
    {Py_tp_traverse, reinterpret_cast<void*>(function_traverse)},
    {Py_tp_clear, reinterpret_cast<void*>(function_clear)},
    {Py_tp_members, function_members},
    {0, nullptr},
};

PyType_Spec function_spec = {"scratchnn._C.Function", sizeof(FunctionObject), 0,
                             Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL, function_slots};

// What Python sees of a FunctionNode. torch shows nodes of a class of this name by what their name() says.
PyTypeObject node_type;  // filled in by torch

}  // namespace

bool add_function_type(PyObject* module) {
  torch::autograd::_initFunctionPyTypeObject(node_type, "scratchnn._C.CppFunction", nullptr, nullptr);
  torch::autograd::registerCppFunction(typeid(FunctionNode), &node_type);
  if (PyModule_AddObjectRef(module, "Node", reinterpret_cast<PyObject*>(&node_type)) < 0) return false;
  context_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&context_spec));
  if (context_type == nullptr) return false;
  if (PyModule_AddObjectRef(module, "Context", reinterpret_cast<PyObject*>(context_type)) < 0) return false;
  PyObject* function_type = PyType_FromSpec(&function_spec);
  return function_type != nullptr && PyModule_AddObject(module, "Function", function_type) == 0;
}

}  // namespace scratchnn

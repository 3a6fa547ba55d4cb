"""A block's ``forward``, traced by ``torch.fx`` and rewritten: convolution and all that follows it as one call.

The trace is of one module alone: its layers and blocks are calls in it. What of ``forward`` is not recorded must not
matter: it may read attributes (the call checks that they are as they were), but not change any, nor draw random
numbers.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Graph, Node, Tracer
from torch.nn import Identity, Module, ModuleDict, ModuleList

from scratchnn import functional
from scratchnn.fusion.joined import joined
from scratchnn.fusion.parts import (
    activation_of,
    is_conv,
    is_norm,
    looks_like_conv,
    looks_like_norm,
    reason_not_plain,
)

__all__ = ["Rewritten", "Untraceable", "has_parts", "rewrite"]

_FORWARD_OF_A_ROW = torch.nn.Sequential.forward  # is the same in both modes

_NAMES_OF_EVERY_MODULE = set(vars(Module())) - {"training"}


class Untraceable(Exception):
    """Says why a block is left as it is."""


@dataclass
class Rewritten:
    """A ``forward`` with joined calls, and what it takes for granted.

    Attributes:
        function: of the module and its input.
        joins: for each convolution in a joined call, by its name in the module, what the call stands for.
        left: for each other convolution, why it is not in one.
        attributes: what the original ``forward`` looked up in the module, as it was.
        children: the names of the parts of the module, and of its lists of modules.
    """

    function: Callable[[Module, Any], Any]
    joins: dict[str, str]
    left: dict[str, str]
    attributes: dict[str, Any]
    children: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def holds_for(self, module: Module) -> bool:
        """Whether a block still is what its ``forward`` was traced with."""
        for name, value in self.attributes.items():
            now = module.__dict__.get(name, _ABSENT)
            if now is not value and not (type(now) is type(value) and type(now) in _PLAIN and now == value):
                return False
        return all(_names(module, path) == names for path, names in self.children.items())


_ABSENT = object()
_PLAIN = (bool, int, float, str, tuple)


def _names(module: Module, path: str) -> tuple[str, ...]:
    """The names of the parts that there are in a module within a module."""
    parts = (module.get_submodule(path) if path else module)._modules
    return tuple(name for name, part in parts.items() if part is not None)


def has_parts(module: Module) -> bool:
    """Whether a module holds both a convolution and a batch normalization, itself or in a list."""
    parts = [part for _, part in _parts(module)]
    return any(map(looks_like_conv, parts)) and any(map(looks_like_norm, parts))


def _parts(module: Module, path: str = "") -> Iterator[tuple[str, Module]]:
    for name, child in module._modules.items():
        if isinstance(child, (ModuleList, ModuleDict)):
            yield from _parts(child, f"{path}{name}.")
        elif child is not None:
            yield f"{path}{name}", child


def rewrite(module: Module, choose: Callable[[str], str | None], recompute: bool) -> list[Rewritten]:
    """The rewritten ``forward``, in both modes if it differs between training and evaluation.

    Args:
        module: not changed.
        choose: tells why a convolution of a name is not to be joined.
        recompute: for the calls.

    Raises:
        Untraceable: where ``forward`` cannot be traced, or does what a trace does not show.
    """
    if isinstance(module, torch.jit.ScriptModule):
        raise Untraceable("compiled by TorchScript")
    if isinstance(module, torch.fx.GraphModule):
        raise Untraceable("a graph of torch.fx: fuse the model that it was made from")
    if "forward" in module.__dict__:
        raise Untraceable("forward is replaced on the block itself")
    versions = []
    mode = module.training
    for training in (mode,) if type(module).forward is _FORWARD_OF_A_ROW else (mode, not mode):
        with _in_mode(module, training):
            graph, attributes = _trace(module)
        versions.append((graph, attributes))
    if str(versions[0][0]) == str(versions[-1][0]):
        del versions[1:]
        versions[0][1].pop("training", None)
    elif not all("training" in attributes for _, attributes in versions):
        raise Untraceable("its forward depends on the mode of its parts")
    return [_join(module, graph, attributes, choose, recompute) for graph, attributes in versions]


class _in_mode:
    """A module and all its parts in one mode, and each in its own again."""

    def __init__(self, module: Module, training: bool) -> None:
        self.modes = [(part, part.training) for part in module.modules()]
        self.training = training

    def __enter__(self) -> None:
        for part, _ in self.modes:
            part.__dict__["training"] = self.training

    def __exit__(self, *_: Any) -> None:
        for part, training in self.modes:
            part.__dict__["training"] = training


class _OneModule(Tracer):
    """Takes every part for a leaf, and records what is done to buffers."""

    proxy_buffer_attributes = True

    def is_leaf_module(self, m: Module, module_qualified_name: str) -> bool:
        return True


def _trace(module: Module) -> tuple[Graph, dict[str, Any]]:
    """The graph, and the attributes of the module that were read for it."""
    cls = type(module)
    read: set[str] = set()

    def forward(self: Module, input: Any) -> Any:
        return super(traced, self).forward(input)  # other arguments have the values they have by default

    def get(self: Module, name: str) -> Any:
        read.add(name)
        return super(traced, self).__getattribute__(name)

    before = dict(vars(module))
    random_state, torch_state = random.getstate(), torch.get_rng_state()
    try:
        traced = type(cls.__name__, (cls,), {"forward": forward, "__getattribute__": get})
        module.__class__ = traced
        graph = _OneModule().trace(module)
    except Exception as error:
        message = (str(error).splitlines() or [type(error).__name__])[0]
        raise Untraceable(f"its forward cannot be traced: {message}") from error
    finally:
        module.__class__ = cls
        after = dict(vars(module))
        if after.keys() != before.keys() or any(after[name] is not before[name] for name in before):
            for name in after.keys() - before.keys():
                del module.__dict__[name]
            module.__dict__.update(before)
            changed = True
        else:
            changed = False
    if changed:
        raise Untraceable("its forward changes attributes of the block")
    if random.getstate() != random_state or not torch.equal(torch.get_rng_state(), torch_state):
        random.setstate(random_state)
        torch.set_rng_state(torch_state)
        raise Untraceable("its forward draws random numbers")
    if sum(node.op == "placeholder" for node in graph.nodes) != 1:
        raise Untraceable("its forward takes more than one input")
    return graph, {name: before.get(name, _ABSENT) for name in read - _NAMES_OF_EVERY_MODULE}


def _join(
    module: Module,
    graph: Graph,
    attributes: dict[str, Any],
    choose: Callable[[str], str | None],
    recompute: bool,
) -> Rewritten:
    joins, left = {}, {}
    for node in list(graph.nodes):
        if node.op != "call_module" or not looks_like_conv(module.get_submodule(node.target)):
            continue
        chain = _Chain(module, graph, node)
        reason = choose(node.target) or chain.reason
        if reason is None:
            joins[node.target] = chain.label
            left.pop(node.target, None)
            chain.replace(recompute)
        elif node.target not in joins:
            left[node.target] = reason
    code = graph.python_code("self")
    namespace = dict(code.globals)
    exec(compile(code.src, f"<{type(module).__name__} fused>", "exec"), namespace)
    lists = {""}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr") and "." in node.target:
            parts = node.target.split(".")[:-1]
            lists |= {".".join(parts[: i + 1]) for i in range(len(parts))}
    children = {path: _names(module, path) for path in sorted(lists) if _is_module(module, path)}
    return Rewritten(namespace["forward"], joins, left, attributes, children)


def _is_module(module: Module, path: str) -> bool:
    try:
        return isinstance(module.get_submodule(path), Module)
    except AttributeError:  # a parameter's name has its owner's before it, too
        return False


# Chains of layers.

_ADDITIONS = (operator.add, torch.add)
_ADDITIONS_IN_PLACE = (operator.iadd,)  # to the first operand

# Functions without parameters, by the names of their operators.
_FUNCTIONS: dict[Any, str] = {
    torch.relu: "relu",
    torch.relu_: "relu",
    torch.nn.functional.relu: "relu",
    functional.relu: "relu",
    functional.relu_: "relu",
    torch.nn.functional.silu: "silu",
    functional.silu: "silu",
    torch.nn.functional.hardswish: "hardswish",
    functional.hardswish: "hardswish",
    torch.sigmoid: "sigmoid",
    torch.tanh: "tanh",
}
_METHODS = {"relu": "relu", "relu_": "relu", "sigmoid": "sigmoid", "tanh": "tanh"}


class _Chain:
    """A convolution, the normalization that alone takes its output, and what comes after that in the same way."""

    def __init__(self, module: Module, graph: Graph, conv: Node) -> None:
        self.module, self.graph = module, graph
        self.order = {node: i for i, node in enumerate(graph.nodes)}
        self.nodes = [conv]
        self.norm: Node | None = None
        self.between: list[Node] = []
        self.residual: Node | None = None
        self.activation: Node | None = None
        self.reason = self._conv_and_norm(conv)
        if self.reason is None:
            self._rest()

    def _part(self, node: Node) -> Module | None:
        """The layer that a node calls with the end of the chain, and nothing else."""
        if node.op != "call_module" or node.kwargs or len(node.args) != 1:
            return None
        return self.module.get_submodule(node.target)

    def _conv_and_norm(self, conv: Node) -> str | None:
        layer = self._part(conv)
        if layer is None or not isinstance(conv.args[0], Node):
            return "it is given more than an input"
        if not is_conv(layer):
            return "its class computes by itself"
        if len(conv.users) > 1:
            return "its output is used more than once"
        user = self._only_user()
        norm = None if user is None else self._part(user)
        if norm is None or not looks_like_norm(norm):
            return "no batch norm follows"
        if not is_norm(norm):
            return f"{type(norm).__name__} follows, whose class computes by itself"
        if is_norm(norm) != is_conv(layer):
            return f"{type(norm).__name__} follows"
        for part, node in ((layer, conv), (norm, user)):
            reason = reason_not_plain(part)
            if reason is not None:
                return f"{node.target} {reason}"
            if any(torch.nn.parameter.is_lazy(tensor) for tensor in (*part.parameters(), *part.buffers())):
                return "lazy: call the model once before"
        if not self._reaches(user):
            return "its input may be overwritten before batch norm is called"
        self.norm = user
        self.nodes.append(user)
        return None

    def _rest(self) -> None:
        user = self._only_user()
        while user is not None and type(self._part(user)) is Identity and self._reaches(user):
            self.between.append(user)
            self.nodes.append(user)
            user = self._only_user()
        if user is not None and self._is_addition(user) and self._reaches(user):
            self.residual = next(arg for arg in user.args if arg is not self.nodes[-1])
            self.nodes.append(user)
            user = self._only_user()
        if user is not None and self._is_activation(user) and self._reaches(user):
            self.activation = user
            self.nodes.append(user)

    def _only_user(self) -> Node | None:
        users = list(self.nodes[-1].users)
        return users[0] if len(users) == 1 and users[0].op != "output" else None

    def _is_addition(self, node: Node) -> bool:
        end = self.nodes[-1]
        if node.kwargs or len(node.args) != 2 or not all(isinstance(arg, Node) for arg in node.args):
            return False
        if node.args[0] is node.args[1]:
            return False
        if node.op == "call_method":
            return node.target == "add" or (node.target == "add_" and node.args[0] is end)
        if node.op != "call_function":
            return False
        return node.target in _ADDITIONS or (node.target in _ADDITIONS_IN_PLACE and node.args[0] is end)

    def _is_activation(self, node: Node) -> bool:
        if node.op == "call_module":
            layer = self._part(node)
            return layer is not None and activation_of(layer) is not None and reason_not_plain(layer) is None
        if len(node.args) < 1 or node.args[0] is not self.nodes[-1]:
            return False
        rest = (*node.args[1:], *node.kwargs.values())
        if not all(isinstance(value, bool) for value in rest) or not set(node.kwargs) <= {"inplace"}:
            return False
        return node.target in (_METHODS if node.op == "call_method" else _FUNCTIONS)

    def _reaches(self, last: Node) -> bool:
        """Whether the convolution may as well be called where ``last`` is.

        What is called in between, and is not part of the chain, must not overwrite the convolution's input.
        """
        conv, first, end = self.nodes[0], self.order[self.nodes[0]], self.order[last]
        fresh = self._is_fresh(conv.args[0])
        between = [node for node, i in self.order.items() if first < i < end and node not in self.nodes]
        writing = [node for node in between if self._may_write(node)]
        return all(fresh and conv.args[0] not in node.all_input_nodes for node in writing)

    def _is_fresh(self, node: Node) -> bool:
        """Whether a node's value is in memory that no other node's is in."""
        if node.op == "call_function":
            return node.target is joined
        return node.op == "call_module" and bool(
            looks_like_conv(self.module.get_submodule(node.target))
            or looks_like_norm(self.module.get_submodule(node.target))
        )

    def _may_write(self, node: Node) -> bool:
        if node.op in ("placeholder", "get_attr", "output"):
            return False
        if node.op == "call_method":
            return node.target.endswith("_") or node.target == "__setitem__"
        if node.op == "call_function":
            if node.target is joined:
                return False
            name, origin = node.target.__name__, (node.target.__module__ or "torch").split(".")[0]
            if origin not in ("torch", "scratchnn", "_operator"):
                return True
            in_place = name.endswith("_") or (origin == "_operator" and name in _WRITING_OPERATORS)
            return in_place or any(value is True for value in (*node.args, *node.kwargs.values()))
        return any(map(_writes, self.module.get_submodule(node.target).modules()))

    @property
    def label(self) -> str:
        parts = [type(self.module.get_submodule(node.target)).__name__ for node in self.nodes[:2]]
        if self.residual is not None:
            parts.append("add")
        if self.activation is not None:
            node = self.activation
            target = self.module.get_submodule(node.target) if node.op == "call_module" else None
            parts.append(node.target if isinstance(node.target, str) else node.target.__name__)
            if target is not None:
                parts[-1] = type(target).__name__
        return " + ".join(parts)

    def replace(self, recompute: bool) -> None:
        """Put the call in the place of the last node of the chain."""
        graph, last = self.graph, self.nodes[-1]
        with graph.inserting_before(last):
            conv, norm = (graph.get_attr(node.target) for node in self.nodes[:2])
            between = tuple(graph.get_attr(node.target) for node in self.between)
            activation: Any = None
            if self.activation is not None:
                activation = self._function(self.activation)
            arguments = (self.nodes[0].args[0], conv, norm, between, self.residual, activation, recompute)
            call = graph.call_function(joined, arguments)
        last.replace_all_uses_with(call)
        for node in reversed(self.nodes):
            graph.erase_node(node)

    def _function(self, node: Node) -> Node | str:
        if node.op == "call_module":
            return self.graph.get_attr(node.target)
        return (_METHODS if node.op == "call_method" else _FUNCTIONS)[node.target]


_WRITING_OPERATORS = {"setitem", "delitem"} | {
    f"i{name}"
    for name in [
        "add",
        "and",
        "concat",
        "floordiv",
        "lshift",
        "matmul",
        "mod",
        "mul",
        "or",
        "pow",
        "rshift",
        "sub",
        "truediv",
        "xor",
    ]
}


def _writes(module: Module) -> bool:
    """Whether a module may overwrite its input, as far as its own computation goes."""
    known = type(module).__module__.startswith(("torch.nn.modules.", "scratchnn.nn."))
    return not known or bool(getattr(module, "inplace", False)) or reason_not_plain(module) is not None

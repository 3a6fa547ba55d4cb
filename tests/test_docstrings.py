"""What ``help()`` says: every public name is documented, with what its kind needs, and the examples are true."""

from __future__ import annotations

import ast
import builtins
import dataclasses
import doctest
import importlib
import inspect
import pkgutil
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import scratchnn
import scratchnn.nn
from scratchnn.ops._common import Function

# The modules that users import names from. Those without a list of names offer whatever they define.
INTERFACE = [
    "scratchnn",
    "scratchnn.accuracy.measure",
    "scratchnn.backends",
    "scratchnn.bench.cases",
    "scratchnn.bench.measure",
    "scratchnn.convert",
    "scratchnn.data",
    "scratchnn.errors",
    "scratchnn.explain",
    "scratchnn.fuse",
    "scratchnn.memory",
    "scratchnn.models",
    "scratchnn.override",
    "scratchnn.restore",
    "scratchnn.summary",
    "scratchnn.targets.target",
    "scratchnn.testing",
    "scratchnn.train.checkpoint",
    "scratchnn.train.config",
    "scratchnn.train.log",
    "scratchnn.train.loop",
    "scratchnn.train.schedule",
    "scratchnn.verify.measure",
    "scratchnn.verify.prepare",
    "scratchnn.verify.report",
    "scratchnn.verify.target",
    "scratchnn.visualize",
]
# Names to start with: they have an example. Of the layers, one of each kind.
WITH_EXAMPLE = [
    "convert",
    "explain",
    "fuse",
    "kernels",
    "override",
    "restore",
    "summary",
    "unfuse",
    "functional.avg_pool2d",
    "functional.batch_norm",
    "functional.conv2d",
    "functional.linear",
    "functional.max_pool2d",
    "functional.relu",
    "functional.softmax",
    "testing.assert_equivalent",
    "testing.check_equivalence",
    "testing.compare_models",
    "models.resnet20",
    "nn.AvgPool2d",
    "nn.BatchNorm2d",
    "nn.Bilinear",
    "nn.Conv1d",
    "nn.Conv2d",
    "nn.Conv3d",
    "nn.ConvTranspose2d",
    "nn.GELU",
    "nn.GlobalAvgPool",
    "nn.GroupNorm",
    "nn.InstanceNorm2d",
    "nn.LayerNorm",
    "nn.LayerNorm2d",
    "nn.Linear",
    "nn.LocalResponseNorm",
    "nn.Maxout",
    "nn.MaxPool2d",
    "nn.RMSNorm",
    "nn.ReLU",
    "nn.Sigmoid",
    "nn.Softmax",
]
# What a number is counted in, by the name that it is documented under.
PIXELS = "pixel|voxel|position|as (in|of|for) "
UNITS = {
    "kernel_size|stride|padding|dilation|output_padding": PIXELS,
    "(own_)?(forward|backward)": "multiply-adds|time",
    "(own_)?saved|saved_ours|saved_theirs": "bytes",
    "flops": "operations",
}
SECTIONS = ("Args", "Attributes", "Shape", "Returns", "Raises", "Example")
FORMULA = re.compile(r"\.\. math::|:math:`[^`]*=|``[^`]*\b[ydx](_\w|\[[^`]*\])? = ")
SHAPE = re.compile(r"``\(|any shape|input's shape|the same|the input|like the input|shape that")
SOURCE = re.compile(r"\b(19|20)\d\d\b|lecture, section 7|:class:`torch\.|as of :func:`\w+`")
FUNCTION_PROTOCOL = {"call", "forward", "setup_context", "backward", "overwriting", "jvp", "vmap"}


def sections(docstring: str) -> dict[str, str]:
    """The parts of a docstring by their headings: ``Args:`` and what is indented below; ``Source: ...``."""
    found: dict[str, list[str]] = {}
    current: list[str] = found.setdefault("", [])
    for line in docstring.splitlines():
        if line.removesuffix(":") in SECTIONS and line.endswith(":"):
            current = found.setdefault(line[:-1], [])
        elif line.startswith("Source: "):
            current = found.setdefault("Source", [line.removeprefix("Source: ")])
        else:
            if line.strip() and not line.startswith(" ") and current is not found.get("Source"):
                current = found[""]
            current.append(line)
    return {name: textwrap.dedent("\n".join(lines)).strip() for name, lines in found.items()}


def entries(section: str) -> dict[str, str]:
    """``a, b: what they are`` as two names with their text."""
    found = {}
    for entry in re.split(r"\n(?=\S)", section):
        names, _, text = entry.partition(":")
        found |= {name.strip(): " ".join(text.split()) for name in names.split(",")}
    return found


def parameters_of(function: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


def is_ours(value: Any) -> bool:
    return (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__.startswith("scratchnn")


def raises(function: Callable[..., Any]) -> bool:
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    return any(isinstance(node, ast.Raise) for node in ast.walk(tree))


def module_named(name: str) -> ModuleType:
    importlib.import_module(name)
    return sys.modules[name]  # functions hide the modules of their names


EVERY_MODULE = [scratchnn] + [
    module_named(module.name)
    for module in pkgutil.walk_packages(scratchnn.__path__, "scratchnn.")
    if not module.name.endswith(("._C", ".__main__"))
]
NAMES_OF_MODULES = {module.__name__ for module in EVERY_MODULE}


def interface() -> dict[str, Any]:
    """The public names that are not layers, by where they are imported from."""
    found: dict[int, tuple[str, Any]] = {}
    for name in INTERFACE:
        module = module_named(name)
        listed = getattr(module, "__all__", None)
        if listed is None:
            listed = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == name]
        for key in listed:
            value = getattr(module, key)
            if is_ours(value) and not key.startswith("_"):
                found.setdefault(id(value), (f"{name}.{key}", value))
    return dict(found.values())


MODULES = {f"nn.{name}": layer for name, layer in scratchnn.nn.implemented().items()}
FUNCTIONALS = {f"functional.{name}": getattr(scratchnn.functional, name) for name in scratchnn.functional.__all__}
TOOLS = interface()


def check_common(value: Any, parts: dict[str, str], parameters: list[str], listed: str = "Args") -> None:
    """The first line, the parameters (all of them, and no others), the errors, the units."""
    first, *_ = value.__doc__.splitlines()
    assert first.strip().endswith((".", ":")), f"the first line is no sentence: {first!r}"
    documented = entries(parts[listed]) if listed in parts else {}
    assert set(parameters) <= set(documented), f"{listed} lacks {sorted(set(parameters) - set(documented))}"
    if listed == "Args":
        assert set(documented) <= set(parameters), f"no parameters: {sorted(set(documented) - set(parameters))}"
    for name, text in documented.items():
        assert text, f"{name} is not explained"
        assert not re.match(r"\w\. ?", text), f"{name} starts a list where this is set as a page: {text}"
        for pattern, unit in UNITS.items():
            if re.fullmatch(pattern, name):
                assert re.search(unit, text), f"{name} has no unit, {unit}: {text}"
    for name, text in entries(parts["Raises"]).items() if "Raises" in parts else ():
        error = getattr(builtins, name, None) or find_error(name)
        assert inspect.isclass(error), f"there is no {name}"
        assert issubclass(error, Exception), f"{name} is no error"
        assert text, f"{name} is not explained"


def find_error(name: str) -> Any:
    for module in EVERY_MODULE:
        if hasattr(module, name):
            return getattr(module, name)
    owner, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(owner), attribute) if owner else None


@pytest.mark.parametrize("name", MODULES)
def test_layers(name: str) -> None:
    layer = MODULES[name]
    assert vars(layer).get("__doc__"), "the docstring is torch's, or missing"
    parts = sections(inspect.getdoc(layer))
    check_common(layer, parts, parameters_of(layer.__init__))
    assert FORMULA.search(layer.__doc__), "no formula"
    assert {"Shape", "Raises", "Source"} <= set(parts), f"only {sorted(parts)}"
    for side in ("Input", "Output"):
        line = re.search(rf"^- {side}: .*", parts["Shape"], re.MULTILINE)
        assert line is not None, f"no {side.lower()} in Shape"
        assert SHAPE.search(line[0]), f"no shape in {line[0]!r}"
    assert SOURCE.search(parts["Source"]), f"no source: {parts['Source']}"


@pytest.mark.parametrize("name", FUNCTIONALS)
def test_functionals(name: str) -> None:
    function = FUNCTIONALS[name]
    parts = sections(inspect.getdoc(function))
    check_common(function, parts, parameters_of(function))
    assert FORMULA.search(function.__doc__), "no formula"
    assert {"Args", "Returns", "Raises", "Source"} <= set(parts), f"only {sorted(parts)}"
    for part in ("Args", "Returns"):
        assert SHAPE.search(parts[part]) or "as in :func:" in parts[part], f"no shape in {part}: {parts[part]}"
    assert SOURCE.search(parts["Source"]), f"no source: {parts['Source']}"


@pytest.mark.parametrize("name", TOOLS)
def test_tools(name: str) -> None:
    value = TOOLS[name]
    parts = sections(inspect.getdoc(value) or "")
    if inspect.isclass(value):
        fields = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
        if fields and all(field.metadata.get("help") for field in fields):
            parameters: list[str] = []  # told field by field, from where the command line has them as well
        else:
            parameters = [] if issubclass(value, Exception) else parameters_of(value)
        check_common(
            value, parts, parameters, "Attributes" if "Attributes" in parts and "Args" not in parts else "Args"
        )
        return
    check_common(value, parts, parameters_of(value))
    returns = inspect.signature(value).return_annotation
    assert returns in (None, "None") or "Returns" in parts, f"does not tell what it returns, {returns}"
    assert not raises(value) or "Raises" in parts, "does not tell what it raises"


def public_members(module: ModuleType) -> Iterator[tuple[str, Any, type | None]]:
    """Functions, classes and their methods and properties, each with the class that it belongs to."""
    for name, value in vars(module).items():
        if name.startswith("_") or not is_ours(value) or value.__module__ != module.__name__:
            continue
        yield name, value, None
        for key, member in vars(value).items() if inspect.isclass(value) else ():
            plain = member.__func__ if isinstance(member, classmethod | staticmethod) else member
            if key.startswith("_") or key in getattr(value, "__dataclass_fields__", ()):
                continue
            if inspect.isfunction(plain) or isinstance(plain, property):
                yield f"{name}.{key}", plain, value


@pytest.mark.parametrize("module", EVERY_MODULE, ids=lambda module: module.__name__)
def test_attributes_stand_alone(module: ModuleType) -> None:
    """The reference makes an entry of each line, which ``a, b: what they are`` would spoil."""
    for name, value, _ in public_members(module):
        if inspect.isclass(value):
            listed = sections(inspect.getdoc(value) or "").get("Attributes", "")
            assert not re.search(r"^\w+(, \w+)+:", listed, re.MULTILINE), f"{name}: {listed}"


def told_elsewhere(name: str, owner: type | None) -> bool:
    """Methods of a protocol that its base class tells of: torch's modules, autograd functions."""
    method = name.rpartition(".")[2]
    if owner is None:
        return False
    if issubclass(owner, Function) and method in FUNCTION_PROTOCOL:
        return True
    return any(getattr(base, method, None) is not None for base in owner.__mro__[1:])


@pytest.mark.parametrize("module", EVERY_MODULE, ids=lambda module: module.__name__)
def test_nothing_is_without_a_docstring(module: ModuleType) -> None:
    assert module.__doc__, "the file does not say what it is for"
    if module.__name__.startswith("scratchnn.decompositions.") or "._" in module.__name__:
        return  # one function for each operator, of the operator's name, in operators of torch; and what is private
    missing = [
        name
        for name, value, owner in public_members(module)
        if not inspect.getdoc(value) and not told_elsewhere(name, owner)
    ]
    assert not missing


@pytest.mark.parametrize("module", EVERY_MODULE, ids=lambda module: module.__name__)
def test_references_lead_somewhere(module: ModuleType) -> None:
    for target in re.findall(r":(?:func|class|mod|data|attr|meth):`~?(scratchnn\.[\w.]+)`", inspect.getsource(module)):
        found: Any = scratchnn
        path = ""
        for part in target.split("."):
            path = f"{path}.{part}".lstrip(".")
            found = sys.modules[path] if path in NAMES_OF_MODULES else getattr(found, part)


def test_all_that_the_reference_shows_is_looked_at() -> None:
    pages = (Path(__file__).parent.parent / "docs" / "reference").glob("*.rst")
    shown = {
        name for page in pages for name in re.findall(r"^\.\. automodule:: (\S+)$", page.read_text(), re.MULTILINE)
    }
    covered = {*INTERFACE, "scratchnn.nn", "scratchnn.functional"}
    others = {name for name in shown - covered if not name.startswith("scratchnn.nn.")}
    assert [name for name in others if list(public_members(module_named(name)))] == []


@pytest.mark.parametrize("name", WITH_EXAMPLE)
def test_central_names_have_an_example(name: str) -> None:
    value: Any = scratchnn
    for part in name.split("."):
        value = getattr(value, part)
    assert ">>> " in value.__doc__


EXAMPLES = [
    example
    for module in EVERY_MODULE
    for example in doctest.DocTestFinder(exclude_empty=True).find(module, module.__name__)
    if example.examples
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_examples_are_true(example: doctest.DocTest) -> None:
    torch.manual_seed(0)
    example.globs = {"torch": torch, "scratchnn": scratchnn}
    written: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    runner.run(example, out=written.append, clear_globs=False)
    assert not runner.failures, "".join(written)

"""PyTorch's own sample and error inputs, run on our layers and on torch's side by side.

``torch.testing._internal`` describes every operator and module of torch for torch's own tests: inputs worth trying,
inputs that must be refused, and the dtypes each serves. :func:`functions` and :func:`modules` give those that belong
to our families, :func:`compare` runs one sample on both sides. Executed as a program, this file prints how many
samples there are of each family, and the exclusions.

The database is private to torch and changes with its versions; :data:`REASON_TO_SKIP` says where it cannot be used.
"""

from __future__ import annotations

import copy
import importlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

import scratchnn

NEWEST_KNOWN = (2, 15)  # the version of torch whose database this file was written against

FAMILIES = ("conv", "pool", "norm", "linear", "activation")

# The database lists these under names of their own.
OTHER_NAMES = {"softmax": "softmax", "log_softmax": "log_softmax", "sigmoid": "sigmoid", "tanh": "tanh"}

# (name, dtype or None for all) -> why it is not compared.
EXCLUDED: dict[tuple[str, torch.dtype | None], str] = {
    ("hardsigmoid", torch.float64): "torch's gradient multiplies by a sixth in float32",
}


def _database() -> tuple[str | None, Any, Any, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            operators = importlib.import_module("torch.testing._internal.common_methods_invocations")
            layers = importlib.import_module("torch.testing._internal.common_modules")
        return None, operators.op_db, layers.module_db, layers.ModuleErrorEnum
    except (ImportError, AttributeError) as error:
        return f"this torch's database of samples cannot be used: {error}", [], [], None


REASON_TO_SKIP, _OPERATORS, _MODULES, _ERROR_ON = _database()
if tuple(int(part) for part in torch.__version__.split(".")[:2]) > NEWEST_KNOWN:
    REASON_TO_SKIP = REASON_TO_SKIP or f"written for torch {NEWEST_KNOWN[0]}.{NEWEST_KNOWN[1]} and earlier"


@dataclass(frozen=True)
class Entry:
    """One function or module of the database, and which of ours it is compared with.

    Attributes:
        name: torch's name, and the variant where the database has several.
        family: ours.
        ours, theirs: the two functions, or module classes.
        info: torch's description.
    """

    name: str
    family: str
    ours: Callable[..., Any]
    theirs: Callable[..., Any]
    info: Any = field(repr=False, compare=False)

    def __str__(self) -> str:
        return self.name


def functions() -> list[Entry]:
    """The functions of our families that the database describes."""
    entries = []
    for info in _OPERATORS:
        name = OTHER_NAMES.get(info.name, info.name.removeprefix("nn.functional."))
        known = info.name in OTHER_NAMES or info.name.startswith("nn.functional.")
        if not known or name not in scratchnn.functional.__all__:
            continue
        label = f"{name} {info.variant_test_name}".strip()
        ours = getattr(scratchnn.functional, name)
        theirs = getattr(torch.nn.functional, name)
        entries.append(Entry(label, _family(scratchnn.ops, name), ours, theirs, info))
    return entries


def modules() -> list[Entry]:
    """The modules of our families that the database describes."""
    ours = scratchnn.nn.implemented()
    return [
        Entry(name, _family(scratchnn.nn, name), ours[name], info.module_cls, info)
        for info in _MODULES
        if (name := info.name.removeprefix("nn.")) in ours
    ]


def _family(package: Any, name: str) -> str:
    return next(family for family in FAMILIES if name in getattr(package, family).__all__)


def dtypes_of(entry: Entry) -> list[torch.dtype]:
    """The dtypes torch lists, in a fixed order."""
    listed = entry.info.dtypes if isinstance(entry.theirs, type) else entry.info.supported_dtypes("cpu")
    return [dtype for dtype in sorted(listed, key=str) if reason_to_exclude(entry, dtype) is None]


def reason_to_exclude(entry: Entry, dtype: torch.dtype) -> str | None:
    return EXCLUDED.get((entry.name, dtype)) or EXCLUDED.get((entry.name, None))


@dataclass(frozen=True)
class Sample:
    """One call: of a function with arguments, or of a module, made with some arguments, with others."""

    args: tuple
    kwargs: dict[str, Any]
    make: tuple[tuple, dict[str, Any]] | None = None
    training: bool = True

    def __str__(self) -> str:
        def shown(value: Any) -> str:
            return f"{value.dtype}{list(value.shape)}" if isinstance(value, Tensor) else repr(value)

        words = [shown(value) for value in self.args] + [f"{key}={shown(v)}" for key, v in self.kwargs.items()]
        made = "" if self.make is None else f"made with {self.make}, training={self.training}, "
        return f"{made}called with {', '.join(words)}"


def samples(entry: Entry, dtype: torch.dtype) -> Iterator[Sample]:
    """The database's samples, those with derivatives where torch has them in this dtype."""
    differentiable = dtype.is_floating_point or dtype.is_complex
    if isinstance(entry.theirs, type):
        for training in (True, False) if entry.info.train_and_eval_differ else (True,):
            for sample in entry.info.module_inputs_func(
                entry.info, device="cpu", dtype=dtype, requires_grad=True, training=training
            ):
                made = (sample.constructor_input.args, sample.constructor_input.kwargs)
                yield Sample(tuple(sample.forward_input.args), sample.forward_input.kwargs, made, training)
        return
    differentiable = differentiable and dtype in entry.info.supported_backward_dtypes("cpu")
    for sample in entry.info.sample_inputs("cpu", dtype, requires_grad=differentiable):
        yield Sample((sample.input, *sample.args), sample.kwargs)


def error_samples(entry: Entry) -> Iterator[Sample]:
    """The database's inputs that must be refused; in a module that may be already when it is made."""
    if not isinstance(entry.theirs, type):
        if entry.info.error_inputs_func is not None:
            for error in entry.info.error_inputs("cpu"):
                yield Sample((error.sample_input.input, *error.sample_input.args), error.sample_input.kwargs)
        return
    if entry.info.module_error_inputs_func is None:
        return
    for training in (True, False):
        for error in entry.info.module_error_inputs_func(
            entry.info, device="cpu", dtype=torch.float32, requires_grad=False, training=training
        ):
            sample = error.module_error_input
            made = (sample.constructor_input.args, sample.constructor_input.kwargs)
            forward = sample.forward_input
            if error.error_on is _ERROR_ON.CONSTRUCTION_ERROR or forward is None:
                yield Sample((), {}, made, training)
            else:
                yield Sample(tuple(forward.args), forward.kwargs, made, training)


Results = dict[str, Any]


def run(
    function: Callable[..., Any], sample: Sample, dtype: torch.dtype, exact: bool = False, order: int = 1
) -> Results:
    """Everything that a call gives: outputs, gradients up to ``order``, what it wrote into; or the error it raised.

    With ``exact`` all numbers are made float64 (or complex128) first.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _run(function, sample, dtype, exact, order)
    except Exception as error:
        return {"error": error}


def _run(function: Callable[..., Any], sample: Sample, dtype: torch.dtype, exact: bool, order: int) -> Results:
    convert = _exact if exact else (lambda value: value)
    args, kwargs = tree_map(lambda value: _own(convert(value)), (sample.args, sample.kwargs))
    results: Results = {}
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    leaves = [tensor for tensor in tensors if tensor.requires_grad]
    written = [tensor for tensor in tensors if not tensor.requires_grad]
    torch.manual_seed(42)
    if sample.make is not None:
        made_args, made_kwargs = copy.deepcopy(sample.make)
        module = function(*made_args, **made_kwargs).to(dtype).train(sample.training)
        if not sample.args and not sample.kwargs:
            return {}
        if any(torch.nn.parameter.is_lazy(parameter) for parameter in module.parameters()):
            module(*tree_map(_own, sample.args), **tree_map(_own, sample.kwargs))  # takes its shape from the input
            torch.manual_seed(42)
        if exact:
            module.to(torch.complex128 if dtype.is_complex else torch.float64)
        leaves += module.parameters()
        written += module.buffers()
        results["state_dict"] = list(module.state_dict())
        results["repr"] = repr(module)
        function = module
    output = function(*args, **kwargs)
    outputs = tree_flatten(output)[0]
    for position, value in enumerate(outputs):
        results[f"output {position}"] = value.detach() if isinstance(value, Tensor) else value
    for position, tensor in enumerate(written):
        results[f"argument {position} afterwards"] = tensor.detach().clone()
    differentiable = [value for value in outputs if isinstance(value, Tensor) and value.requires_grad]
    if not differentiable or not leaves:
        return results
    grads = [_random(value, dtype, seed) for seed, value in enumerate(differentiable)]
    if order == 2:
        grads = [grad.requires_grad_() for grad in grads]
    first = torch.autograd.grad(differentiable, leaves, grads, create_graph=order == 2, allow_unused=True)
    for position, gradient in enumerate(first):
        results[f"gradient {position}"] = None if gradient is None else gradient.detach()
    first = [gradient for gradient in first if gradient is not None and gradient.requires_grad]
    if order == 2 and first:
        further = [_random(value, dtype, 100 + seed) for seed, value in enumerate(first)]
        second = torch.autograd.grad(first, [*leaves, *grads], further, allow_unused=True)
        for position, gradient in enumerate(second):
            results[f"second gradient {position}"] = gradient
    return results


def _exact(value: Any) -> Any:
    if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
        return value
    wide = torch.complex128 if value.is_complex() else torch.float64
    return value.detach().to(wide).requires_grad_(value.requires_grad)


def _own(value: Any) -> Any:
    """A tensor of the same numbers, strides and all, that may be written to."""
    if not isinstance(value, Tensor):
        return value
    dense = value.is_contiguous() or torch._prims_common.is_non_overlapping_and_dense(value)
    return (value.detach().clone() if dense else value.detach()).requires_grad_(value.requires_grad)


def _random(like: Tensor, dtype: torch.dtype, seed: int) -> Tensor:
    """The same numbers whatever the precision of ``like``: rounded to ``dtype``, where that is narrower."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.complex128 if like.is_complex() else torch.float64
    numbers = torch.randn(like.shape, dtype=wide, generator=generator)
    if dtype.is_floating_point and not like.is_complex():
        numbers = numbers.to(dtype)
    elif dtype.is_complex:
        numbers = numbers.to(dtype if like.is_complex() else dtype.to_real())
    return numbers.to(like.dtype)


def compare(entry: Entry, sample: Sample, dtype: torch.dtype, order: int = 1) -> None:
    """Both sides give the same, or raise the same type.

    Numbers may differ from torch's by no more than rounding: the error against float64 is at most twice torch's own
    (four times in convolutions, which may use Winograd's algorithm), give or take a few steps.
    """
    theirs = run(entry.theirs, sample, dtype, order=order)
    ours = run(entry.ours, sample, dtype, order=order)
    if "error" in theirs or "error" in ours:
        expected, found = (type(results.get("error")) for results in (theirs, ours))
        assert found is expected, f"{sample}: torch {theirs.get('error')!r}, scratchnn {ours.get('error')!r}"
        return
    assert list(ours) == list(theirs), f"{sample}: {list(ours)} instead of {list(theirs)}"
    truth: Results = {}
    for name, other in theirs.items():
        mine = ours[name]
        if "gradient" in name and (mine is None) != (other is None):  # no gradient counts as zero
            mine, other = (0 * (other if mine is None else mine) if value is None else value for value in (mine, other))
        if not isinstance(other, Tensor):
            assert mine == other, f"{sample}: {name} is {mine}, torch's {other}"
            continue
        assert isinstance(mine, Tensor), f"{sample}: {name} is {mine}"
        assert (mine.dtype, mine.shape) == (other.dtype, other.shape), f"{sample}: {name} {mine.dtype} {mine.shape}"
        if mine.dtype == torch.complex32:  # which torch can hardly compare
            mine, other = mine.to(torch.complex64), other.to(torch.complex64)
        if torch.equal(mine, other):
            continue
        assert mine.is_floating_point() or mine.is_complex(), f"{sample}: {name} differs from torch's"
        if not truth:
            truth = run(entry.theirs, sample, dtype, exact=True, order=order)
        exact = truth.get(name)
        if exact is None or exact.dtype == mine.dtype:
            exact = other  # nothing more exact to compare with
        _assert_close(mine, other, exact, 4.0 if entry.family == "conv" else 2.0, f"{sample}: {name}")


def _assert_close(mine: Tensor, other: Tensor, exact: Tensor, factor: float, what: str) -> None:
    """Errors are root mean squares; a sum that cancels may be off by a few steps of numbers of order 1."""
    for part in (torch.isnan,) if mine.is_complex() else (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(part(mine), part(other)), f"{what}: {part.__name__} elsewhere than in torch's"
    step = torch.finfo(mine.dtype).eps * (4096 if mine.dtype in (torch.float64, torch.complex128) else 4)
    finite = mine.isfinite() & other.isfinite() & exact.isfinite()
    mine, other, exact = (values[finite].to(torch.complex128) for values in (mine, other, exact))
    size = exact.abs().square().mean().sqrt().item() if exact.numel() else 0.0
    error, allowed = ((x - exact).abs().square().mean().sqrt().item() if x.numel() else 0.0 for x in (mine, other))
    allowed = factor * allowed + step * max(1.0, size)
    assert error <= allowed, f"{what}: error {error:.2e}, allowed {allowed:.2e}, numbers of size {size:.2e}"


def main() -> None:
    """How much there is of each family."""
    table: dict[str, Counter[str]] = {family: Counter() for family in FAMILIES}
    for kind, entries in (("functions", functions()), ("modules", modules())):
        for entry in entries:
            count = table[entry.family]
            count[kind] += 1
            for dtype in dtypes_of(entry):
                count[f"{kind} x dtypes"] += 1
                count["samples"] += sum(1 for _ in samples(entry, dtype))
            count["error inputs"] += sum(1 for _ in error_samples(entry))
    columns = ["functions", "functions x dtypes", "modules", "modules x dtypes", "samples", "error inputs"]
    print(f"torch {torch.__version__}")
    print("family      " + "".join(f"{column:>20}" for column in columns))
    for family, count in table.items():
        print(f"{family:12}" + "".join(f"{count[column]:20}" for column in columns))
    for (name, dtype), reason in EXCLUDED.items():
        print(f"excluded: {name}{'' if dtype is None else f' {dtype}'}: {reason}")


if __name__ == "__main__":
    main()

"""One case from its description to its numbers: build both sides, compare their results, then time them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Module

import scratchnn.nn
from scratchnn.bench.cases import Case, borrowed
from scratchnn.bench.groups import groups_of
from scratchnn.bench.timing import Spread, interleave, ratio
from scratchnn.errors import UserError

# The largest relative L2 difference between both sides' results that passes for rounding.
TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-11, torch.bfloat16: 2e-2, torch.float16: 2e-3}
# Of a model: its output before a step, the gradients taken together, its output after the step. Rounding differences
# grow on their way back through many fresh layers: in ResNet-50 torch's own memory formats part by 4e-2. What proves a
# model right is `scratchnn verify`; this is to notice when times would compare different things.
MODEL_TOLERANCES = (1e-2, 1e-1, 1e-2)

LEARNING_RATE, MOMENTUM = 0.01, 0.9

LAYERS = "layers"  # our side as it is: torch's layers replaced by ours, one by one
FUSED = "fused"  # the side of ours whose blocks are joined


def _fused(model: Module) -> Module:
    scratchnn.fuse(model)
    return model


# What is done to a model of ours before it runs: each way is timed, beside the same runs of torch's.
OUR_SIDES: dict[str, Callable[[Module], Module]] = {LAYERS: lambda model: model, FUSED: _fused}


@dataclass(frozen=True)
class Result:
    """The times of one pass of one case, in seconds per call.

    Attributes:
        case: name of the case.
        family: its family.
        groups: those of :mod:`scratchnn.bench.groups` that it belongs to.
        net: where such a layer is found.
        which: the pass: forward, forward+backward or training step.
        side: which of :data:`OUR_SIDES` ours is.
        layer: the layer, as torch prints it.
        shape: of the input.
        dtype: of input and parameters.
        memory_format: the layout ours ran in.
        flops: operations of the pass by formula (:mod:`scratchnn.bench.cost`).
        bytes: bytes it has to move.
        rounds: how often each side was timed.
        ours: time of scratchnn's.
        torch: time of torch.nn in each memory format it was timed in.
        ratios: torch's time over ours for each of those; above 1 is a win.
        torch_format: the faster of them.
        compiled: time of torch.nn under torch.compile, in the layout of ours, where that was timed.
        compiled_ratio: that time over ours.
    """

    case: str
    family: str
    groups: tuple[str, ...]
    net: str
    which: str
    side: str
    layer: str
    shape: tuple[int, ...]
    dtype: str
    memory_format: str
    flops: int
    bytes: int
    rounds: int
    ours: Spread
    torch: dict[str, Spread]
    ratios: dict[str, Spread]
    torch_format: str
    compiled: Spread | None = None
    compiled_ratio: Spread | None = None

    @property
    def ratio(self) -> Spread:
        """The ratio to torch in its faster format."""
        return self.ratios[self.torch_format]

    @property
    def name(self) -> str:
        """The name of the case and, unless ours are plain layers, of our side."""
        return name_of(self.case, self.side)

    @property
    def verdict(self) -> str:
        """``faster`` or ``slower`` where three quarters of the rounds say so, else ``even``."""
        if self.ratio.lower > 1:
            return "faster"
        return "slower" if self.ratio.upper < 1 else "even"


def name_of(case: str, side: str) -> str:
    """The name of a case and, unless ours are plain layers, of our side.

    Args:
        case: its name.
        side: one of :data:`OUR_SIDES`.

    Returns:
        the name.
    """
    return case if side == LAYERS else f"{case}, {side}"


def names_of(case: Case) -> list[str]:
    """The names that the results of a case have.

    Args:
        case: any.

    Returns:
        the names, one for each of our sides.
    """
    return [name_of(case.name, side) for side in _our_sides(case)]


def _our_sides(case: Case) -> list[str]:
    """A layer by itself runs in one way only."""
    return list(OUR_SIDES) if case.model else [LAYERS]


class Disagreement(Exception):
    """Ours and torch's results differ by more than rounding: times would compare different things."""


class Side:
    """A layer with its input, ready to run: ours, or torch's in one memory format.

    Args:
        case: what to run.
        layer: that computes it.
        input: copied into the memory format.
        memory_format: ``"channels_last"`` or ``"contiguous"``.

    Raises:
        NotImplementedError: from its methods; subclasses have them.
    """

    def __init__(self, case: Case, layer: Module, input: Tensor, memory_format: str) -> None:
        layout = case.layout(memory_format)
        self.layer = _laid_out(layer.to(case.dtype), layout).train(case.training)
        self.input = input.clone(memory_format=layout).requires_grad_(case.input_gradient)
        self.parameters = [parameter for parameter in layer.parameters() if parameter.requires_grad]

    def forward(self) -> Tensor:
        """The output, without gradients."""
        with torch.no_grad():
            return self.layer(self.input)

    def results(self) -> list[Tensor]:
        """What both sides must agree on."""
        raise NotImplementedError

    def passes(self) -> tuple[Callable[[], object], ...]:
        """What is timed, in the order of :attr:`Case.passes`."""
        raise NotImplementedError


class _LayerSide(Side):
    """A layer by itself: a forward pass, and one followed by the gradients of everything."""

    def __init__(self, case: Case, layer: Module, input: Tensor, memory_format: str) -> None:
        super().__init__(case, layer, input, memory_format)
        generator = torch.Generator().manual_seed(1)
        output = self.forward()
        gradient = torch.randn(output.shape, dtype=case.dtype, generator=generator)
        self.gradient = torch.empty_like(output).copy_(gradient)  # in the layout of the output
        self.leaves = [*([self.input] if case.input_gradient else []), *self.parameters]

    def forward_backward(self) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.layer(self.input), self.leaves, self.gradient)

    def results(self) -> list[Tensor]:
        return [self.forward(), *self.forward_backward()]

    def passes(self) -> tuple[Callable[[], object], ...]:
        return self.forward, self.forward_backward


class _ModelSide(Side):
    """A whole model: inference, and a training step (forward, loss, backward, SGD with momentum)."""

    def __init__(self, case: Case, layer: Module, input: Tensor, memory_format: str) -> None:
        super().__init__(case, layer, input, memory_format)
        self.labels = torch.arange(case.shape[0]) % 10
        self.optimizer = torch.optim.SGD(self.parameters, lr=LEARNING_RATE, momentum=MOMENTUM)

    def inference(self) -> Tensor:
        self.layer.eval()
        return self.forward()

    def training_step(self) -> None:
        self.layer.train()
        self.optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(self.layer(self.input), self.labels).backward()
        self.optimizer.step()

    def results(self) -> list[Tensor]:
        before = self.inference()
        torch.manual_seed(0)  # dropout and the like draw the same on both sides
        self.training_step()
        gradients = torch.cat([parameter.grad.flatten() for parameter in self.parameters])
        return [before, gradients, self.inference()]

    def passes(self) -> tuple[Callable[[], object], ...]:
        return self.inference, self.training_step


def _laid_out(layer: Module, layout: torch.memory_format) -> Module:
    """The layer with those of its parameters in the layout that have the rank for it."""
    if layout == torch.channels_last_3d:
        for parameter in layer.parameters():
            if parameter.dim() == 5:
                parameter.data = parameter.data.to(memory_format=layout)
        return layer
    return layer.to(memory_format=layout)


def require_ours(cases: list[Case]) -> None:
    """Refuse layers that would time torch against itself; models are looked at when they are built.

    Args:
        cases: of which layers are looked at.

    Raises:
        UserError: naming the layers that ``scratchnn.nn`` took from torch, and the families they are in.
    """
    layers: dict[str, None] = {}
    families: dict[str, None] = {}
    with torch.device("meta"):
        for case in cases:
            missing = [] if case.model else borrowed(case.build(scratchnn.nn))
            if missing:
                layers |= dict.fromkeys(missing)
                families[case.family] = None
    if layers:
        raise UserError(
            f"scratchnn.nn takes {', '.join(layers)} from torch, so there is nothing to compare: choose "
            f"other cases with --family or --filter (concerned: {', '.join(families)})"
        )


def measure(
    case: Case, seconds: float, min_rounds: int = 5, every_format: bool = True, compile: bool = False
) -> Iterator[Result]:
    """Time each pass of a case, ours and torch's taking turns.

    Args:
        case: what to time.
        seconds: for the whole case.
        min_rounds: at least so often, however long that takes.
        every_format: give torch the choice of memory formats, not only that of the case.
        compile: time models of torch.nn under ``torch.compile`` as well. Compiling is not timed.

    Returns:
        a result for each pass and side, as it is timed.

    Raises:
        Disagreement: before anything is timed, when the results differ.
    """
    formats = case.torch_formats() if every_format else (case.memory_format,)
    ours, theirs = build_sides(case, formats)
    _check(case, ours, theirs[case.memory_format])
    candidates = [*ours.values(), *theirs.values()]
    if compile and case.model:
        candidates.append(compiled_side(case, theirs[case.memory_format]))
    for position, which in enumerate(case.passes):
        runs = [side.passes()[position] for side in candidates]
        samples = iter(interleave(runs, seconds / len(case.passes), min_rounds))
        our_samples = {name: next(samples) for name in ours}
        their_samples = {name: next(samples) for name in theirs}
        compiled = next(samples, None)
        work = case.work(which)
        for name, mine in our_samples.items():
            ratios = {name: ratio(mine, other) for name, other in their_samples.items()}
            yield Result(
                case=case.name,
                family=case.family,
                groups=groups_of(case),
                net=case.net,
                which=which,
                side=name,
                layer=case.label if case.model else str(ours[name].layer),
                shape=case.shape,
                dtype=str(case.dtype).removeprefix("torch."),
                memory_format=case.memory_format,
                flops=work.flops,
                bytes=work.bytes,
                rounds=len(mine),
                ours=Spread.of(mine),
                torch={name: Spread.of(other) for name, other in their_samples.items()},
                ratios=ratios,
                torch_format=min(ratios, key=lambda name: ratios[name].median),
                compiled=None if compiled is None else Spread.of(compiled),
                compiled_ratio=None if compiled is None else ratio(mine, compiled),
            )


def build_sides(case: Case, torch_formats: Sequence[str]) -> tuple[dict[str, Side], dict[str, Side]]:
    """Ours by :data:`OUR_SIDES` (of a layer only the first) and torch's by format: the same weights, the same input.

    Args:
        case: what to build.
        torch_formats: the memory formats of torch's sides.

    Returns:
        our sides by name, and torch's by memory format.

    Raises:
        UserError: when a model of ours has layers of torch's that scratchnn has its own for.
    """
    kind = _ModelSide if case.model else _LayerSide
    generator = torch.Generator().manual_seed(0)
    input = torch.randn(case.shape, dtype=case.dtype, generator=generator)
    torch.manual_seed(0)
    first = case.build(torch.nn)
    ours = {}
    for name in _our_sides(case):
        layer = case.build(scratchnn.nn)
        missing = borrowed(layer, lacking=False) if case.model else []  # layers: require_ours
        if missing:
            raise UserError(f"{case.name}: {', '.join(missing)} would be torch's on both sides")
        layer.load_state_dict(first.state_dict())
        ours[name] = kind(case, OUR_SIDES[name](layer), input, case.memory_format)
    theirs = {}
    for memory_format in torch_formats:
        other = case.build(torch.nn)
        other.load_state_dict(first.state_dict())
        theirs[memory_format] = kind(case, other, input, memory_format)
    return ours, theirs


def compiled_side(case: Case, eager: Side) -> Side:
    """torch's model compiled, in the layout of the case.

    One layout is enough: on the CPU the compiler lays out what a convolution touches itself, as channels_last.

    Args:
        case: a model.
        eager: torch's side of it, which is copied.

    Returns:
        the compiled side.
    """
    torch.compiler.reset()  # what earlier models left would count towards the limit of recompilations
    side = _ModelSide(case, copy.deepcopy(eager.layer), eager.input.detach(), case.memory_format)
    side.layer = torch.compile(side.layer)
    return side


def _check(case: Case, ours: dict[str, Side], theirs: Side) -> None:
    expected = theirs.results()
    tolerances = MODEL_TOLERANCES if case.model else (TOLERANCES[case.dtype],) * len(expected)
    for side in ours.values():
        for mine, other, tolerance in zip(side.results(), expected, tolerances, strict=True):
            if mine.shape != other.shape:
                raise Disagreement(f"{case.name}: shape {tuple(mine.shape)}, torch's is {tuple(other.shape)}")
            difference = _relative_difference(mine, other)
            if not difference <= tolerance:
                raise Disagreement(
                    f"{case.name}: results differ from torch's by {difference:.1e} (relative L2), "
                    f"allowed {tolerance:.0e}"
                )


def _relative_difference(mine: Tensor, theirs: Tensor) -> float:
    scale = theirs.double().norm().item()
    return (mine.double() - theirs.double()).norm().item() / (scale or 1.0)

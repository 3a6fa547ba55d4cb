"""One case from its description to its numbers: build both sides, compare their results, then time them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import scratchnn.nn
from scratchnn.bench.cases import MEMORY_FORMATS, Case, borrowed
from scratchnn.bench.timing import Spread, interleave, ratio
from scratchnn.errors import UserError

# The largest relative L2 difference between both sides' results that passes for rounding.
TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-11, torch.bfloat16: 2e-2, torch.float16: 2e-3}
MODEL_TOLERANCE = 1e-2  # rounding differences grow on their way through many layers

LEARNING_RATE, MOMENTUM = 0.01, 0.9


@dataclass(frozen=True)
class Result:
    """The times of one pass of one case, in seconds per call.

    Attributes:
        case: name of the case.
        family: its family.
        which: the pass: forward, forward+backward or training step.
        layer: the layer, as torch prints it.
        shape: of the input.
        dtype: of input and parameters.
        memory_format: the layout ours ran in.
        flops: operations of the pass by formula (:mod:`scratchnn.bench.cost`).
        bytes: bytes it has to move.
        rounds: how often each side was timed.
        ours: time of scratchnn.nn.
        torch: time of torch.nn in each memory format it was timed in.
        torch_format: the faster of them, which the ratio is about.
        ratio: torch's time over ours; above 1 is a win.
    """

    case: str
    family: str
    which: str
    layer: str
    shape: tuple[int, ...]
    dtype: str
    memory_format: str
    flops: int
    bytes: int
    rounds: int
    ours: Spread
    torch: dict[str, Spread]
    torch_format: str
    ratio: Spread

    @property
    def verdict(self) -> str:
        """``faster`` or ``slower`` where three quarters of the rounds say so, else ``even``."""
        if self.ratio.lower > 1:
            return "faster"
        return "slower" if self.ratio.upper < 1 else "even"


class Disagreement(Exception):
    """Ours and torch's results differ by more than rounding: times would compare different things."""


class _Side:
    """A layer with its input, ready to run: ours, or torch's in one memory format."""

    def __init__(self, case: Case, layer: torch.nn.Module, input: Tensor, memory_format: str) -> None:
        layout = MEMORY_FORMATS[memory_format] if case.is_image else torch.contiguous_format
        self.layer = layer.to(case.dtype).to(memory_format=layout).train(case.training)
        self.input = input.clone(memory_format=layout).requires_grad_(case.input_gradient)
        self.parameters = [parameter for parameter in layer.parameters() if parameter.requires_grad]

    def forward(self) -> Tensor:
        with torch.no_grad():
            return self.layer(self.input)

    def results(self) -> list[Tensor]:
        """What both sides must agree on."""
        raise NotImplementedError

    def passes(self) -> tuple[Callable[[], object], ...]:
        """What is timed, in the order of :attr:`Case.passes`."""
        raise NotImplementedError


class _LayerSide(_Side):
    """A layer by itself: a forward pass, and one followed by the gradients of everything."""

    def __init__(self, case: Case, layer: torch.nn.Module, input: Tensor, memory_format: str) -> None:
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


class _ModelSide(_Side):
    """A whole model: inference, and a training step (forward, loss, backward, SGD with momentum)."""

    def __init__(self, case: Case, layer: torch.nn.Module, input: Tensor, memory_format: str) -> None:
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
        self.training_step()
        return [before, *(parameter.grad for parameter in self.parameters), self.inference()]

    def passes(self) -> tuple[Callable[[], object], ...]:
        return self.inference, self.training_step


def require_ours(cases: list[Case]) -> None:
    """Refuse cases that would time torch against itself.

    Raises:
        UserError: naming the layers that ``scratchnn.nn`` took from torch, and the families they are in.
    """
    layers: dict[str, None] = {}
    families: dict[str, None] = {}
    with torch.device("meta"):
        for case in cases:
            missing = borrowed(case.build(scratchnn.nn))
            if missing:
                layers |= dict.fromkeys(missing)
                families[case.family] = None
    if layers:
        raise UserError(
            f"scratchnn.nn takes {', '.join(layers)} from torch, so there is nothing to compare: choose "
            f"other cases with --family or --filter (concerned: {', '.join(families)})"
        )


def measure(case: Case, seconds: float, min_rounds: int = 5, every_format: bool = True) -> Iterator[Result]:
    """Time each pass of a case, ours and torch's taking turns.

    Args:
        case: what to time.
        seconds: for the whole case.
        min_rounds: at least so often, however long that takes.
        every_format: give torch the choice of memory formats, not only that of the case.

    Raises:
        Disagreement: before anything is timed, when the results differ.
    """
    formats = case.torch_formats() if every_format else (case.memory_format,)
    sides = _sides(case, formats)
    _check(case, sides)
    for position, which in enumerate(case.passes):
        candidates = [side.passes()[position] for side in sides]
        ours, *theirs = interleave(candidates, seconds / len(case.passes), min_rounds)
        ratios = {name: ratio(ours, samples) for name, samples in zip(formats, theirs, strict=True)}
        best = min(ratios, key=lambda name: ratios[name].median)
        work = case.work(which)
        yield Result(
            case=case.name,
            family=case.family,
            which=which,
            layer=case.label if case.model else str(sides[0].layer),
            shape=case.shape,
            dtype=str(case.dtype).removeprefix("torch."),
            memory_format=case.memory_format,
            flops=work.flops,
            bytes=work.bytes,
            rounds=len(ours),
            ours=Spread.of(ours),
            torch={name: Spread.of(samples) for name, samples in zip(formats, theirs, strict=True)},
            torch_format=best,
            ratio=ratios[best],
        )


def _sides(case: Case, torch_formats: tuple[str, ...]) -> list[_Side]:
    """Ours first, then torch in each format: the same weights, the same input."""
    kind = _ModelSide if case.model else _LayerSide
    generator = torch.Generator().manual_seed(0)
    input = torch.randn(case.shape, dtype=case.dtype, generator=generator)
    torch.manual_seed(0)
    layer = case.build(scratchnn.nn)
    sides = [kind(case, layer, input, case.memory_format)]
    for memory_format in torch_formats:
        other = case.build(torch.nn)
        other.load_state_dict(layer.state_dict())
        sides.append(kind(case, other, input, memory_format))
    return sides


def _check(case: Case, sides: list[_Side]) -> None:
    tolerance = MODEL_TOLERANCE if case.model else TOLERANCES[case.dtype]
    ours, *others = [side.results() for side in sides]
    for mine, theirs in zip(ours, others[0], strict=True):
        if mine.shape != theirs.shape:
            raise Disagreement(f"{case.name}: shape {tuple(mine.shape)}, torch's is {tuple(theirs.shape)}")
        difference = _relative_difference(mine, theirs)
        if not difference <= tolerance:
            raise Disagreement(
                f"{case.name}: results differ from torch's by {difference:.1e} (relative L2), allowed {tolerance:.0e}"
            )


def _relative_difference(mine: Tensor, theirs: Tensor) -> float:
    scale = theirs.double().norm().item()
    return (mine.double() - theirs.double()).norm().item() / (scale or 1.0)

"""How much memory training takes: what a layer keeps for its backward pass, and the peak of a model's step.

*Kept for backward* is what autograd saves while a layer runs forward, told by its own hooks
(``torch.autograd.graph.saved_tensors_hooks``): every storage once and as a whole. Parameters and buffers are left out,
as they exist anyway; the layer's input and its output are counted apart, as others may hold them as well.

*Peak of a step* is the most that is allocated at any moment of forward, loss, backward and update, above what lived
before it (the parameters, the optimizer's state, the batch). *Activations* are the same without what outlives the step,
the parameters' gradients: all that a larger batch takes more of. torch's allocator reports every allocation to the
profiler, so both are exact, and the same from run to run. The kernels' scratch of each thread, which ours and torch's
libraries take from the system themselves, is not seen there; the growth of the process's resident memory, measured
beside it, has whatever they take anew. Scratch that is kept from step to step is in neither.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from scratchnn.bench.cases import Case
from scratchnn.bench.measure import Side, build_sides, compiled_side

__all__ = [
    "Change",
    "Kept",
    "KeptResult",
    "Peak",
    "PeakResult",
    "allocations",
    "kept_for_backward",
    "measure_kept",
    "measure_peaks",
    "peak_of",
    "return_freed_memory",
    "saved",
]


Output = TypeVar("Output")


@dataclass(frozen=True)
class Kept:
    """Bytes that a forward pass keeps for the backward pass, by what they are.

    Attributes:
        input: storages of the caller's inputs.
        output: storage of the result.
        other: made for the backward pass alone.
    """

    input: int
    output: int
    other: int

    @property
    def own(self) -> int:
        """Without the input, which the caller has made."""
        return self.output + self.other

    @property
    def all(self) -> int:
        """Bytes of all three."""
        return self.input + self.output + self.other


@dataclass(frozen=True)
class KeptResult:
    """What a layer case keeps, ours and torch's in the same memory format."""

    case: str
    family: str
    net: str
    ours: Kept
    torch: Kept

    @property
    def exceeds(self) -> bool:
        """Whether ours keeps more than torch's, with or without the input."""
        return self.ours.own > self.torch.own or self.ours.all > self.torch.all


@dataclass(frozen=True)
class Peak:
    """The most memory that was taken at once, in bytes.

    Attributes:
        allocated: by torch's allocator.
        activations: of that, without what was allocated and stayed; its peak may be at another moment.
        resident: by the process; None where the system does not tell (it is Linux that does).
    """

    allocated: int
    activations: int
    resident: int | None


@dataclass(frozen=True)
class PeakResult:
    """The peak of one training step of a model.

    Attributes:
        case: as of :class:`scratchnn.bench.measure.Result`.
        net: likewise.
        side: likewise.
        ours: of scratchnn's.
        torch: of torch.nn in each memory format.
        compiled: of torch.nn under torch.compile, where that was measured.
    """

    case: str
    net: str
    side: str
    ours: Peak
    torch: dict[str, Peak]
    compiled: Peak | None = None

    @property
    def torch_format(self) -> str:
        """The format in which torch takes less."""
        return min(self.torch, key=lambda name: self.torch[name].allocated)

    @property
    def ratio(self) -> float:
        """Ours over torch's in the better format, of all that is allocated: below 1 is a win."""
        return self.ours.allocated / self.torch[self.torch_format].allocated

    @property
    def activations_ratio(self) -> float:
        """The same of activations."""
        return self.ours.activations / min(peak.activations for peak in self.torch.values())


def kept_for_backward(run: Callable[[], Tensor], inputs: Iterable[Tensor], parameters: Iterable[Tensor]) -> Kept:
    """What ``run`` keeps for the backward pass of the tensor it returns.

    Args:
        run: a forward pass that records gradients.
        inputs: the tensors that were there before and are counted as such.
        parameters: those that are not counted at all.
    """
    output, sizes = saved(run, parameters)
    of_input = sum(sizes.pop(address, 0) for address in {_address(tensor) for tensor in inputs})
    of_output = sizes.pop(_address(output), 0)
    return Kept(of_input, of_output, sum(sizes.values()))


def saved(run: Callable[[], Output], without: Iterable[Tensor]) -> tuple[Output, dict[int, int]]:
    """Run something, and tell which storages autograd saved meanwhile: their sizes in bytes by address.

    Args:
        run: a forward pass that records gradients.
        without: tensors whose storages are left out.
    """
    storages: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run()
    sizes = {address: storage.nbytes() for address, storage in storages.items()}
    for tensor in without:
        sizes.pop(_address(tensor), None)
    return output, sizes


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def measure_kept(case: Case) -> KeptResult:
    """What one layer case keeps on either side, in the memory format of the case."""
    ours, theirs = build_sides(case, (case.memory_format,))
    (mine,), (other,) = ours.values(), theirs.values()
    return KeptResult(case.name, case.family, case.net, _kept(mine), _kept(other))


def _kept(side: Side) -> Kept:
    state = [*side.layer.parameters(), *side.layer.buffers()]
    return kept_for_backward(lambda: side.layer(side.input), [side.input], state)


def measure_peaks(case: Case, every_format: bool = True, compile: bool = False) -> list[PeakResult]:
    """The peak of a training step of a model: one result for each way in which ours run."""
    formats = case.torch_formats() if every_format else (case.memory_format,)
    ours, theirs = build_sides(case, formats)
    compiled = _peak_of_step(compiled_side(case, theirs[case.memory_format])) if compile else None
    of_torch = {name: _peak_of_step(side) for name, side in theirs.items()}
    return [
        PeakResult(case.name, case.net, name, _peak_of_step(side), of_torch, compiled) for name, side in ours.items()
    ]


def _peak_of_step(side: Side) -> Peak:
    step = side.passes()[1]
    step()  # makes the optimizer's state and whatever else lasts

    def prepare() -> None:
        for parameter in side.parameters:
            parameter.grad = None

    return peak_of(step, prepare)


def peak_of(run: Callable[[], object], prepare: Callable[[], object] = lambda: None) -> Peak:
    """The peak of memory while ``run`` runs, above what lived before.

    Args:
        run: is called twice, once for each of the two numbers.
        prepare: is called before each time.
    """
    prepare()
    changes = allocations(run)
    lasting = _lasting(changes)
    allocated = max(itertools.accumulate((change.bytes for change in changes), initial=0))
    temporary = (0 if i in lasting else change.bytes for i, change in enumerate(changes))
    activations = max(itertools.accumulate(temporary, initial=0))
    prepare()
    return Peak(allocated, activations, _peak_resident(run))


class Change(NamedTuple):
    """What torch's allocator gave out (above 0) or took back (below), in bytes, and where."""

    bytes: int
    address: int


def _lasting(changes: list[Change]) -> set[int]:
    """Which of the changes gave out what was not taken back, or took back what was there before."""
    open_at: dict[int, int] = {}
    lasting = set()
    for i, change in enumerate(changes):
        if change.bytes >= 0:
            open_at[change.address] = i
        elif open_at.pop(change.address, None) is None:
            lasting.add(i)
    return lasting | set(open_at.values())


def allocations(run: Callable[[], object]) -> list[Change]:
    """What torch's allocator gave out and took back while ``run`` ran, in order."""
    # Without a GPU the profiler would tell of it on each use.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        profiler.export_chrome_trace(file.name)
        events = json.loads(Path(file.name).read_text())["traceEvents"]
    changes = [event for event in events if event.get("name") == "[memory]" and event["args"]["Device Type"] == 0]
    changes.sort(key=lambda event: event["ts"])
    return [Change(change["args"]["Bytes"], change["args"]["Addr"]) for change in changes]


_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
_M_MMAP_THRESHOLD = -3  # from <malloc.h>
_LARGE = 128 << 10


def return_freed_memory() -> None:
    """Let glibc take every large block from the system and return it when it is freed, from now on.

    Left to itself it raises the size from which it does so, and keeps smaller blocks: the process then holds memory
    that nobody uses. Called before the first large tensor is made, the resident memory follows what is allocated.
    """
    libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE)


def _peak_resident(run: Callable[[], object]) -> int | None:
    gc.collect()
    try:
        _RESET.write_text(_RESET_PEAK)
    except OSError:
        return None
    before = _status("VmRSS")
    run()
    return max(_status("VmHWM") - before, 0)


def _status(field: str) -> int:
    """A size from the process's status, in bytes."""
    match = re.search(rf"^{field}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1]) << 10

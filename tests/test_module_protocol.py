"""What PyTorch does to modules, done to every layer: checkpointing, files, devices, hooks, switches, ``nn.utils``.

Of each the layer does what torch's does in its place.

Tests marked ``dear`` take a layer of each kind in the quick suite (``FEW`` in sides.py), all of them in the slow one.
"""

from __future__ import annotations

import copy
import functools
import inspect
import io
import pickle
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from sides import IMAGES, LAYERS, agree, close, differentiable, draw, leaves, of, outcome, pair, quiet, weighting
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import grad
from torch.nn import Module
from torch.nn.utils import fuse_conv_bn_eval, parametrizations, prune, skip_init
from torch.optim import swa_utils
from torch.overrides import TorchFunctionMode
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    checkpoint_sequential,
    create_selective_checkpoint_contexts,
)

import scratchnn
from scratchnn.accuracy.layers import Layer

WITH_WEIGHTS = [layer for layer in LAYERS if any(True for _ in layer.theirs().parameters())]
WITH_MATRICES = [layer for layer in LAYERS if layer.family in ("conv", "linear") and layer in WITH_WEIGHTS]
IN_TORCH = [layer for layer in LAYERS if layer.reference is None]


def results(module: Module, *inputs: Tensor, call: Callable[..., Tensor] | None = None) -> list[Tensor]:
    """The output, the gradients of all leaves, and the statistics afterwards."""
    torch.manual_seed(1)
    output = module(*inputs) if call is None else call(module, *inputs)
    gradients = grad(output, differentiable(module, inputs), weighting(output)) if output.requires_grad else ()
    return [output.detach(), *gradients, *(b.clone() for b in module.buffers())]


def equal(found: list[Tensor], expected: list[Tensor]) -> bool:
    """Bit by bit."""
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# --- checkpointing ------------------------------------------------------------------------------------------------


@of(LAYERS, dear=True)
@quiet
def test_checkpointing(layer: Layer) -> None:
    """Computed again in the backward pass: the same bits; statistics are updated as often as torch's."""

    def again(module: Module, *inputs: Tensor) -> list[Tensor]:
        return results(module, *inputs, call=functools.partial(checkpoint, use_reentrant=False))

    def reentrant(module: Module, *inputs: Tensor) -> list[Tensor]:
        output = checkpoint(module, *inputs, use_reentrant=True)
        output.backward(weighting(output))
        return [output, *(x.grad for x in differentiable(module, inputs)), *module.buffers()]

    plain, _ = pair(layer)
    count = len(list(plain.buffers()))
    expected = results(plain, *leaves(draw(layer)))
    for way in (again, reentrant):
        found = outcome(way, pair(layer)[0], leaves(draw(layer)))
        assert equal(found[: len(found) - count], expected[: len(found) - count])
        if count:
            agree(layer, way)


@of(LAYERS, dear=True)
@quiet
def test_selective_checkpointing(layer: Layer) -> None:
    """Our operators can be named in the policy: what it saves is not computed again."""
    seen: list[str] = []

    def policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        seen.append(operator.name())
        ours = operator.namespace == "scratchnn"
        return CheckpointPolicy.MUST_SAVE if ours else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = functools.partial(create_selective_checkpoint_contexts, policy)
    module, plain = pair(layer)[0], pair(layer)[0]
    call = functools.partial(checkpoint, use_reentrant=False, context_fn=contexts)
    found, expected = results(module, *leaves(draw(layer)), call=call), results(plain, *leaves(draw(layer)))
    if getattr(module, "num_batches_tracked", None) is not None:  # counted again, by torch's own addition
        found, expected = found[:-1], expected[:-1]
    assert equal(found, expected)
    assert layer.name == "Identity" or any(name.startswith("scratchnn::") for name in seen)


def network(nn: Any, dtype: torch.dtype = torch.float64) -> Module:
    torch.manual_seed(3)
    return torch.nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.GELU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, bias=False),
        nn.GroupNorm(2, 8),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        nn.Linear(8, 5),
        nn.BatchNorm1d(5),
    ).to(dtype)


def test_checkpointing_a_sequence() -> None:
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    for reentrant in (False, True):
        found = []
        for nn in (scratchnn.nn, torch.nn):
            model = network(nn)
            own = x.clone().requires_grad_()
            output = checkpoint_sequential(model, 3, own, use_reentrant=reentrant)
            output.sin().sum().backward()
            found.append([output.detach(), own.grad, *(p.grad for p in model.parameters()), *model.buffers()])
        close(*found)


# --- files, and layers without memory -------------------------------------------------------------------------------


def saved(content: Any) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return file


@of(LAYERS)
@quiet
def test_files(layer: Layer) -> None:
    """States load with ``weights_only``; whole layers as well, where their class and nothing else is named safe."""
    module, theirs = pair(layer)
    state = torch.load(saved(module.state_dict()), weights_only=True)
    assert all(type(value) is Tensor for value in state.values())
    if layer.reference is None:
        theirs.load_state_dict(state, strict=True)
    empty = copy.deepcopy(module)
    with torch.no_grad():
        for p in empty.parameters():
            p.zero_()
    empty.load_state_dict(state)
    inputs = draw(layer)
    assert equal(results(empty, *leaves(inputs)), results(copy.deepcopy(module), *leaves(inputs)))

    file = saved(module)
    name = f"{type(module).__module__}.{type(module).__qualname__}"
    assert get_unsafe_globals_in_checkpoint(file) == [name]
    file.seek(0)
    with pytest.raises(pickle.UnpicklingError, match=name):
        torch.load(file, weights_only=True)
    file.seek(0)
    with safe_globals([type(module)]):
        loaded = torch.load(file, weights_only=True)
    assert repr(loaded) == repr(module)
    assert equal(results(loaded, *leaves(inputs)), results(module, *leaves(inputs)))


class Doubled(torch.nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_files_of_converted_models() -> None:
    """Converted torch layers are as safe as ours; a converted class of the user's own needs to be trusted."""
    model = network(torch.nn)
    scratchnn.convert(model)
    classes = {type(module) for module in model.modules()}
    with safe_globals(list(classes)):
        loaded = torch.load(saved(model), weights_only=True)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert torch.equal(loaded(x), model(x))

    own = torch.nn.Sequential(Doubled(3, 4, 1)).double()
    scratchnn.convert(own)
    with safe_globals([torch.nn.Sequential, Doubled]), pytest.raises(pickle.UnpicklingError):
        torch.load(saved(own), weights_only=True)
    loaded = torch.load(saved(own), weights_only=False)
    assert type(loaded[0]) is type(own[0])
    assert torch.equal(loaded(x), own(x))


@of(LAYERS)
@quiet
def test_layers_without_memory(layer: Layer) -> None:
    """Built on the meta device, then filled by ``to_empty`` or by assignment; ``skip_init``; registered elsewhere."""
    module, _ = pair(layer, torch.float32)
    inputs = draw(layer, torch.float32)
    expected = results(copy.deepcopy(module), *leaves(inputs))
    lazy = layer.name.startswith("Lazy")

    def built() -> Module:
        return layer.build(scratchnn.nn) if not lazy else copy.deepcopy(module).to("meta")

    with torch.device("meta"):
        first, second = built(), built()
    with registered_on_meta():
        third = built()
    for hollow in (first, second, third):
        tensors = [*hollow.parameters(), *(() if hollow is third else hollow.buffers())]
        assert all(x.is_meta for x in tensors)
    first.to_empty(device="cpu").load_state_dict(module.state_dict())
    for hollow in (second, third):
        hollow.load_state_dict(module.state_dict(), assign=True)
        assert all(a.data_ptr() == b.data_ptr() for a, b in zip(hollow.parameters(), module.parameters(), strict=True))
    for filled in (first, second, third):
        assert filled.training is module.training
        assert equal(results(filled, *leaves(inputs)), expected)
        module.load_state_dict(dict(zip(module.state_dict(), initial(layer), strict=True)))


def initial(layer: Layer) -> list[Tensor]:
    return list(pair(layer, torch.float32)[0].state_dict().values())


@contextmanager
def registered_on_meta() -> Iterator[None]:
    """As accelerate's ``init_empty_weights``: a parameter goes to the meta device when it is registered."""
    register = Module.register_parameter

    def replaced(self: Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        register(self, name, parameter)
        if parameter is not None and not torch.nn.parameter.is_lazy(parameter):
            kept = self._parameters[name]
            self._parameters[name] = type(kept)(kept.to("meta"), requires_grad=kept.requires_grad)

    Module.register_parameter = replaced
    try:
        yield
    finally:
        Module.register_parameter = register


def test_skipping_the_initialization() -> None:
    for make in (
        lambda cls: skip_init(cls.Conv2d, 3, 4, 3, dtype=torch.float64),
        lambda cls: skip_init(cls.ConvTranspose1d, 3, 4, kernel_size=3),
        lambda cls: skip_init(cls.Linear, 5, 2),
        lambda cls: skip_init(cls.BatchNorm2d, 5),
        lambda cls: skip_init(cls.GroupNorm, 2, 4),
    ):
        ours, theirs = make(scratchnn.nn), make(torch.nn)
        assert repr(ours) == repr(theirs)
        for mine, other in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
            assert (mine.shape, mine.dtype, mine.device) == (other.shape, other.dtype, other.device)


@of(IN_TORCH, dear=True)
@quiet
def test_types_formats_and_devices(layer: Layer) -> None:
    """``half``, ``double``, ``to`` of all sorts: what becomes of the state, with new tensors put in and swapped."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    conversions: list[Callable[[Module], Module]] = [
        lambda module: module.half(),
        lambda module: module.bfloat16(),
        lambda module: module.float(),
        lambda module: module.to(torch.float32, non_blocking=True).requires_grad_(False),
        lambda module: module.to(memory_format=formats.get(len(layer.shapes[0]), torch.preserve_format)),
        lambda module: module.share_memory(),
        lambda module: module.to("meta"),
        lambda module: module.apply(lambda part: part.train(False)),
    ]

    def look(module: Module) -> list[Any]:
        found: list[Any] = [module.training]
        for name, x in module.state_dict(keep_vars=True).items():
            found.append((name, x.dtype, x.device, x.stride(), x.requires_grad, type(x), x.is_shared()))
        return found

    for number, convert in enumerate(conversions):
        ours, theirs = pair(layer)
        kept = list(ours.parameters())
        swapped = number % 2 == 0
        torch.__future__.set_swap_module_params_on_conversion(swapped)
        try:
            assert convert(ours) is ours
            convert(theirs)
        finally:
            torch.__future__.set_swap_module_params_on_conversion(False)
        assert look(ours) == look(theirs)
        if swapped:
            assert all(a is b for a, b in zip(kept, ours.parameters(), strict=True))


# --- tensors and modes of other kinds -------------------------------------------------------------------------------


class Marked(Tensor):
    """A subclass that does nothing but stay what it is."""


@of(LAYERS, dear=True)
@quiet
def test_subclasses_pass_through(layer: Layer) -> None:
    """Outputs and gradients have the types, and the numbers, that they have with torch's layer."""

    def marked(module: Module, *inputs: Tensor) -> list[Any]:
        own = [x.detach().as_subclass(Marked).requires_grad_(x.requires_grad) for x in inputs]
        output = module(*own)
        gradients = grad(output, differentiable(module, own), weighting(output.as_subclass(Tensor)))
        with torch.no_grad():
            again = module(*own)
        kinds.append([type(x).__name__ for x in (output, again, *gradients)])
        return [x.as_subclass(Tensor) for x in (output, *gradients)]

    def doubled(module: Module, *inputs: Tensor) -> list[Any]:
        own = [TwoTensor(x.detach(), 2 * x.detach()).requires_grad_(x.requires_grad) for x in inputs]
        output = module(*own)
        incoming = TwoTensor(weighting(output.a), weighting(output.a))
        gradients = grad(output, [x for x in own if x.requires_grad], incoming)
        kinds.append([type(x).__name__ for x in (output, *gradients)])
        return [half for x in (output, *gradients) for half in (x.a, x.b)]

    for action in (marked, doubled):
        if action is doubled and "Unpool" in layer.name:
            continue  # the second half of its indices would not be indices
        kinds: list[list[str]] = []
        agree(layer, action)
        assert kinds[0] == kinds[1]


class Looking(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Listening(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@of(LAYERS, dear=True)
@quiet
def test_modes_change_nothing(layer: Layer) -> None:
    """Onlookers, a default device and the switches of torch's own kernels: the same bits with them as without."""
    inputs = draw(layer, torch.float32)

    def run() -> list[Tensor]:
        module, _ = pair(layer, torch.float32)
        return results(module, *leaves(inputs))

    expected = run()
    modes = [Looking(), Listening(), torch.device("cpu"), deterministic(), flushed()]
    if layer.family in ("conv", "linear"):
        modes += [torch.backends.mkldnn.flags(enabled=False), torch.backends.nnpack.flags(enabled=False)]
        modes += [matmul_precision("medium")]
    for mode in modes:
        with mode:
            assert equal(run(), expected), mode


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def deterministic() -> Iterator[None]:
    """Everything new is filled with NaN: a number that was never written would show."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def flushed() -> Iterator[None]:
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@of(LAYERS)
@quiet
def test_fake_tensors(layer: Layer) -> None:
    """Shape, type and layout of output and gradients, with nothing computed."""

    def action(module: Module, *inputs: Tensor) -> list[Any]:
        mode = FakeTensorMode()
        state = {name: mode.from_tensor(x) for name, x in (*module.named_parameters(), *module.named_buffers())}
        own = [mode.from_tensor(x) for x in inputs]
        with mode:
            output = torch.func.functional_call(module, state, tuple(own))
            sources = [x for x in (*own, *state.values()) if x.requires_grad]
            gradients = grad(output, sources, torch.empty_like(output))
        assert all(type(x).__name__ == "FakeTensor" for x in (output, *gradients))
        strided = layer.reference is None
        looks.append([(x.shape, x.dtype, x.device, x.stride() if strided else None) for x in (output, *gradients)])
        return []

    looks: list[list[Any]] = []
    agree(layer, action)
    assert looks[0] == looks[1]


# --- calls, hooks -------------------------------------------------------------------------------------------------


@of(IN_TORCH)
def test_called_by_name(layer: Layer) -> None:
    """``forward`` has torch's parameters, so that arguments may be named."""
    ours, theirs = (inspect.signature(type(module).forward).parameters for module in pair(layer))
    assert list(ours) == list(theirs)


@of(LAYERS)
@quiet
def test_hooks(layer: Layer) -> None:
    """Of the layer and of all layers, before and after both passes, seeing and changing what torch's see and change."""

    def action(module: Module, *inputs: Tensor) -> list[Any]:
        seen: list[Any] = []
        name = next(iter(inspect.signature(module.forward).parameters))

        def before(module: Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            seen.append("before")
            return args, kwargs | {name: 2 * kwargs[name]} if kwargs else kwargs

        def after(module: Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor:
            seen.append(len(args) + len(kwargs))
            return 3 * output

        def gradient_before(module: Module, gradients: tuple) -> tuple:
            seen.append([g.clone() for g in gradients])
            return tuple(2 * g for g in gradients)

        def gradient_after(module: Module, results: tuple, incoming: tuple) -> None:
            seen.append([g.clone() for g in results if g is not None])
            seen.append([g.clone() for g in incoming if g is not None])

        register = torch.nn.modules.module
        with ExitStack() as stack:
            for handle in (
                module.register_forward_pre_hook(before, with_kwargs=True),
                module.register_forward_hook(after, with_kwargs=True, always_call=True),
                module.register_full_backward_pre_hook(gradient_before),
                module.register_full_backward_hook(gradient_after),
                register.register_module_forward_pre_hook(lambda module, args: seen.append("any before")),
                register.register_module_forward_hook(lambda module, args, output: seen.append("any after")),
                register.register_module_full_backward_pre_hook(lambda module, gradients: seen.append("any gradient")),
                register.register_module_full_backward_hook(lambda *args: seen.append("any gradient after")),
            ):
                stack.callback(handle.remove)
            output = module(inputs[0], *inputs[1:])
            output.backward(weighting(output))
            seen += [output, *(x.grad for x in differentiable(module, inputs))]
            if len(inputs) == 1:
                torch.manual_seed(1)
                seen.append(module(**{name: inputs[0]}))
        count = len(seen)
        module(*inputs)
        assert len(seen) == count
        kinds.append([x for x in seen if isinstance(x, (str, int))])
        return [x for x in seen if not isinstance(x, (str, int))]

    kinds: list[list[Any]] = []
    # A layer of several of torch's parts calls the global hooks for each.
    if layer.reference is None:
        agree(layer, action)
        assert kinds[0] == kinds[1]
    else:
        assert not isinstance(outcome(action, pair(layer)[0], leaves(draw(layer))), Exception)


@of(LAYERS, dear=True)
@quiet
def test_random_numbers(layer: Layer) -> None:
    """The same seed, the same draws, and the generator stands where torch's layer leaves it; forks are left alone."""

    def action(module: Module, *inputs: Tensor) -> list[Tensor]:
        outputs = [module(*inputs), torch.rand(3)]
        state = torch.get_rng_state()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            outputs.append(module(*inputs))
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(5)
        if not any(True for _ in module.buffers()):
            assert torch.equal(module(*inputs), outputs[-1])
        return outputs

    agree(layer, action)


# --- torch.nn.utils, torch.optim ------------------------------------------------------------------------------------


@of(WITH_MATRICES, dear=True)
@quiet
def test_weights_made_of_others(layer: Layer) -> None:
    """Weight norm, old and new, spectral norm, pruning: the layer computes with what they make, and its gradients."""

    def action(wrap: Callable[[Module], Any], module: Module, *inputs: Tensor) -> list[Tensor]:
        name = "weight" if hasattr(module, "weight") else "linear.weight"
        part = module if name == "weight" else module.linear
        torch.manual_seed(2)
        wrap(part)
        torch.manual_seed(1)
        output = module(*inputs)
        sources = differentiable(module, inputs)
        return [output, *grad(output, sources, weighting(output)), part.weight]

    wraps: dict[str, Callable[[Module], Any]] = {
        "weight_norm": parametrizations.weight_norm,
        "spectral_norm": parametrizations.spectral_norm,
        "old weight_norm": torch.nn.utils.weight_norm,
        "pruned": lambda module: prune.l1_unstructured(module, "weight", 0.3),
    }
    for wrap in wraps.values():
        agree(layer, lambda *args, wrap=wrap: action(wrap, *args))


def test_convolutions_fuse_with_batch_norms() -> None:
    """Into one convolution, and it is ours; linear layers too."""
    for make in (
        lambda nn: (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), (2, 3, 6, 6)),
        lambda nn: (nn.Conv1d(3, 4, 3, bias=False), nn.BatchNorm1d(4), (2, 3, 6)),
        lambda nn: (nn.ConvTranspose2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), (2, 3, 6, 6)),
        lambda nn: (nn.Linear(3, 4), nn.BatchNorm1d(4), (5, 3)),
    ):
        outputs = []
        for nn in (scratchnn.nn, torch.nn):
            torch.manual_seed(3)
            layer, norm, shape = make(nn)
            layer, norm = layer.double(), norm.double()
            x = torch.randn(shape, dtype=torch.float64)
            norm(layer(x))
            layer.eval(), norm.eval()
            if isinstance(layer, torch.nn.Linear):
                fused = torch.nn.utils.fuse_linear_bn_eval(layer, norm)
            else:
                fused = fuse_conv_bn_eval(layer, norm, transpose="Transpose" in type(layer).__name__)
            assert type(fused) is type(layer)
            torch.testing.assert_close(fused(x), norm(layer(x)))
            outputs.append(fused(x))
        close(*outputs)


def test_averaged_models() -> None:
    """The average of weights over steps, and the batch norms' statistics for it."""
    batches = [torch.randn(6, 3, 8, 8, dtype=torch.float64) for _ in range(3)]
    for multi_avg in (None, swa_utils.get_ema_multi_avg_fn(0.9)):
        found = []
        for nn in (scratchnn.nn, torch.nn):
            model = network(nn)
            averaged = swa_utils.AveragedModel(model, multi_avg_fn=multi_avg, use_buffers=multi_avg is not None)
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            for x in batches:
                optimizer.zero_grad()
                model(x).sin().sum().backward()
                optimizer.step()
                averaged.update_parameters(model)
            swa_utils.update_bn(batches, averaged)
            found.append([*averaged.module.state_dict().values(), averaged.eval()(batches[0])])
        close(*found)


@of(layer for layer in IMAGES if layer.family == "conv" and len(layer.shapes[0]) == 4)
@quiet
def test_weights_in_another_format(layer: Layer) -> None:
    """``convert_conv2d_weight_memory_format`` as it does torch's; the numbers stay."""
    module, theirs = pair(layer)
    inputs = draw(layer)
    expected = results(module, *leaves(inputs))
    for side in (module, theirs):
        torch.nn.utils.convert_conv2d_weight_memory_format(side, torch.channels_last)
    assert module.weight.stride() == theirs.weight.stride()
    close(results(module, *leaves(inputs)), expected)


def test_compiled_in_place() -> None:
    """``Module.compile``: the same module, its call compiled."""
    model, expected = network(scratchnn.nn), network(scratchnn.nn)
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    model.compile(backend="eager", fullgraph=True)
    close(model(x), expected(x))
    close(list(model.state_dict().values()), list(expected.state_dict().values()))

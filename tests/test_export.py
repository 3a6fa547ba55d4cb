"""torch.export of converted models: programs that run ours, programs that run without us, dynamic sizes, training."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from test_layers import made
from torch import Tensor
from torch._ops import OpOverload
from torch.export import Dim, ExportedProgram
from torch.nn import Module, ModuleList

import scratchnn
from scratchnn.accuracy.layers import LAYERS


class EveryLayer(Module):
    """All layers beside each other: one output for each."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs = [layer.draw(torch.float32) for layer in LAYERS]
        self.layers = ModuleList(made(layer, *inputs) for layer, inputs in zip(LAYERS, self.inputs, strict=True))

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        rest = iter(inputs)
        return [layer(*(next(rest) for _ in own)) for layer, own in zip(self.layers, self.inputs, strict=True)]


class SmallNet(Module):
    """What networks are made of: any number of images of any size."""

    def __init__(self) -> None:
        super().__init__()
        nn = torch.nn
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
            nn.Conv2d(8, 8, 3, padding="same", groups=2, padding_mode="reflect"),
            nn.GroupNorm(2, 8),
            nn.Hardswish(inplace=True),
            nn.AvgPool2d(2, ceil_mode=True),
            nn.ConvTranspose2d(8, 4, 2, stride=2),
            nn.SiLU(),
        )
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.LayerNorm(16), nn.Linear(16, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def converted(model: Module) -> Module:
    torch.manual_seed(0)
    scratchnn.convert(model)
    return model


def operators(program: ExportedProgram) -> set[OpOverload]:
    found = set()
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            found |= {node.target for node in module.graph.nodes if isinstance(node.target, OpOverload)}
    return found


def namespaces(program: ExportedProgram) -> set[str]:
    return {operator.namespace for operator in operators(program)}


def to_core() -> Any:
    table = torch.export.default_decompositions()
    table.update(scratchnn.decompositions())
    return table


def seeded(function: Any, *inputs: Tensor) -> Any:
    torch.manual_seed(0)
    return function(*inputs)


def assert_close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# Programs that run without us


@pytest.fixture(scope="module")
def every_layer() -> tuple[EveryLayer, tuple[Tensor, ...], ExportedProgram]:
    """The layers, what they are called with, and the program of them in training."""
    model = EveryLayer()
    inputs = tuple(x for own in model.inputs for x in own)
    return model, inputs, torch.export.export(copy.deepcopy(model), inputs)


@pytest.fixture(scope="module")
def every_layer_of_torch(every_layer: tuple) -> tuple[EveryLayer, tuple[Tensor, ...], ExportedProgram]:
    """The same in torch's operators."""
    *rest, program = every_layer
    return *rest, program.run_decompositions(scratchnn.decompositions())


WITHOUT_US = """
import sys
sys.modules["scratchnn"] = None  # importing it fails

import torch

for path in sys.argv[1:]:
    inputs, expected = torch.load(path + ".pt")
    program = torch.export.load(path + ".pt2").module()
    torch.manual_seed(0)
    found = program(*inputs)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
assert not any(name.startswith("scratchnn.") for name in sys.modules)
assert not hasattr(torch.ops.scratchnn, "conv")
"""


def check_without_us(folder: Path, programs: dict[str, tuple[Module, tuple[Tensor, ...], ExportedProgram]]) -> None:
    """Saved, loaded in a process that cannot import scratchnn, and run there."""
    for name, (model, inputs, program) in programs.items():
        assert namespaces(program) == {"aten"}
        torch.export.save(program, folder / f"{name}.pt2")
        with torch.no_grad():
            torch.save((inputs, seeded(copy.deepcopy(model), *inputs)), folder / f"{name}.pt")
    subprocess.run([sys.executable, "-I", "-c", WITHOUT_US, *programs], check=True, cwd=folder)


def network(name: str) -> tuple[Module, tuple[Tensor, ...], ExportedProgram]:
    model = converted(getattr(torchvision.models, name)(num_classes=10)).eval()
    inputs = (torch.randn(2, 3, 64, 64),)
    return model, inputs, torch.export.export(model, inputs).run_decompositions(scratchnn.decompositions())


def test_programs_run_where_scratchnn_cannot_be_imported(tmp_path: Path, every_layer_of_torch: tuple) -> None:
    check_without_us(tmp_path, {"layers": every_layer_of_torch, "resnet18": network("resnet18")})


@pytest.mark.slow
def test_more_networks_run_where_scratchnn_cannot_be_imported(tmp_path: Path) -> None:
    names = ("mobilenet_v3_small", "densenet121", "efficientnet_b0", "convnext_tiny", "shufflenet_v2_x0_5")
    check_without_us(tmp_path, {name: network(name) for name in names})


# What torch has no decomposition of itself: its own operators, which it runs, but not core ones.
NOT_CORE = {
    torch.ops.aten.adaptive_max_pool2d.default,
    torch.ops.aten.adaptive_max_pool3d.default,
    torch.ops.aten.fractional_max_pool2d.default,
    torch.ops.aten.fractional_max_pool3d.default,
    torch.ops.aten.rrelu_with_noise_functional.default,
}


def test_together_with_torchs_decompositions_the_core_operators_are_left(every_layer: tuple) -> None:
    model, inputs, program = every_layer
    program = program.run_decompositions(to_core())
    rest = {operator for operator in operators(program) if torch.Tag.core not in operator.tags}
    assert rest == NOT_CORE
    assert_close(seeded(program.module(), *inputs), seeded(copy.deepcopy(model), *inputs))


# Sizes that are not known


@pytest.mark.parametrize(("strict", "training"), [(True, True), (False, False)])
def test_dynamic_sizes(strict: bool, training: bool) -> None:
    """One program for any number of images of any size, ours and decomposed; buffers move as they do in eager mode."""
    model = converted(SmallNet()).train(training)
    sizes = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}  # refuses to be specialised
    program = torch.export.export(model, (torch.randn(3, 3, 34, 41),), dynamic_shapes=(sizes,), strict=strict)
    assert "scratchnn" in namespaces(program)
    decomposed = program.run_decompositions(scratchnn.decompositions())
    assert namespaces(decomposed) == {"aten"}
    start = copy.deepcopy(model.state_dict())
    for shape in ((3, 3, 34, 41), (2, 3, 65, 32), (5, 3, 40, 40)):
        x = torch.randn(shape)
        model.load_state_dict(start)
        expected = model(x)
        for each in (program, decomposed):
            module = each.module()
            module.load_state_dict(start, strict=False)  # without the buffers that are not used
            assert_close(module(x), expected)
            buffers = dict(model.named_buffers())
            assert_close(dict(module.named_buffers()), {name: buffers[name] for name, _ in module.named_buffers()})


def test_a_named_batch_dimension() -> None:
    """With the range that was asked for, and none of ours in it."""
    model = converted(SmallNet()).eval()
    program = torch.export.export(model, (torch.randn(3, 3, 32, 32),), dynamic_shapes=({0: Dim("batch", max=64)},))
    program = program.run_decompositions(to_core())
    (bounds,) = program.range_constraints.values()
    assert bounds.upper == 64
    for batch in (1, 2, 64):
        x = torch.randn(batch, 3, 32, 32)
        assert_close(program.module()(x), model(x))


# Training


def losses(module: Module, batches: list[tuple[Tensor, Tensor]]) -> list[float]:
    optimizer = torch.optim.SGD(module.parameters(), 0.05, momentum=0.9)
    history = []
    for x, target in batches:
        loss = torch.nn.functional.cross_entropy(module(x), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append(loss.item())
    return history


def test_a_decomposed_program_is_trained_as_the_model() -> None:
    """By torch's own derivatives of the operators it is made of."""
    model = converted(SmallNet())
    batches = [(torch.randn(4, 3, 32, 32), torch.randint(5, (4,))) for _ in range(4)]
    program = torch.export.export(copy.deepcopy(model), batches[0][:1])
    module = program.run_decompositions(scratchnn.decompositions()).module()
    assert losses(module, batches) == pytest.approx(losses(model, batches), rel=1e-4)
    expected = model.state_dict()
    assert_close({name: module.state_dict()[name] for name in expected}, dict(expected))


def test_gradients_of_every_layer_of_a_decomposed_program(every_layer_of_torch: tuple) -> None:
    model, inputs, program = every_layer_of_torch
    module = program.module()
    leaves = [x.detach().requires_grad_(x.is_floating_point()) for x in inputs]
    wanted = [x for x in leaves if x.requires_grad]
    expected = seeded(copy.deepcopy(model), *leaves)
    grads = [torch.randn_like(y) for y in expected]
    for found, truth in zip(
        torch.autograd.grad(seeded(module, *leaves), wanted, grads, allow_unused=True),
        torch.autograd.grad(expected, wanted, grads, allow_unused=True),
        strict=True,
    ):
        assert_close(found, truth)


def test_programs_of_our_operators_run_but_are_not_differentiated() -> None:
    """Their operators are called bare, and they say so."""
    model = converted(SmallNet())
    x = torch.randn(4, 3, 32, 32)
    module = torch.export.export(copy.deepcopy(model), (x,)).module()
    output = module(x)
    assert_close(output, model(x))
    with pytest.raises(RuntimeError, match=r"derivative for scratchnn::.* is not implemented"):
        output.sum().backward()


# Other compilers


@pytest.mark.slow
@pytest.mark.parametrize("table", [{}, scratchnn.decompositions()], ids=["ours", "decomposed"])
def test_compiled_ahead_of_time(table: dict, tmp_path: Path) -> None:
    model = converted(SmallNet()).eval()
    x = torch.randn(4, 3, 32, 32)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: Dim("batch", min=2, max=64)},))
    package = torch._inductor.aoti_compile_and_package(
        program.run_decompositions(table) if table else program, package_path=str(tmp_path / "model.pt2")
    )
    compiled = torch._inductor.aoti_load_package(package)
    for batch in (4, 7):
        x = torch.randn(batch, 3, 32, 32)
        with torch.no_grad():
            assert_close(compiled(x), model(x))


@pytest.mark.slow
def test_onnx(tmp_path: Path) -> None:
    """Where its packages are installed, which the tests do not ask for."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = converted(SmallNet()).eval()
    x = torch.randn(4, 3, 32, 32)
    program = torch.export.export(model, (x,)).run_decompositions(scratchnn.decompositions())
    torch.onnx.export(program, dynamo=True).save(tmp_path / "model.onnx")
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        assert_close(torch.tensor(found), model(x))

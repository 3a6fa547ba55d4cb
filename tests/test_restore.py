"""The way back to torch.nn: what becomes of each layer, and what a restored model no longer needs."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from common import relative_error
from test_convert import IMAGES, Scaled, example_for, runs_on_ours, small_model, user_layers
from torch import Tensor
from torch.nn import Module

import scratchnn
from scratchnn import models
from scratchnn.accuracy.layers import LAYERS, Layer
from scratchnn.restore import Restoration

IN_TORCH = [layer for layer in LAYERS if layer.reference is None]
OURS = tuple(scratchnn.nn.implemented().values())


def types(model: Module) -> dict[str, type]:
    return {name: type(module) for name, module in model.named_modules()}


def contents(model: Module) -> dict[str, dict[str, Any]]:
    return {name: dict(vars(module)) for name, module in model.named_modules()}


# Every layer.


@pytest.mark.parametrize("layer", IN_TORCH, ids=lambda layer: str(layer).replace(" ", "_"))
def test_every_layer_goes_back(layer: Layer) -> None:
    """One that was built as ours, and one that was converted: torch's class, and nothing else is different."""
    for build in (scratchnn.nn, torch.nn):
        module = layer.build(build)
        scratchnn.convert(module)
        ours, before, shown, state = type(module), contents(module), repr(module), list(module.state_dict())
        restoration = scratchnn.restore(module)
        assert restoration.restored == {"": layer.name}
        assert not restoration.left
        assert type(module) is getattr(torch.nn, layer.name)
        assert (contents(module), repr(module), list(module.state_dict())) == (before, shown, state)
        scratchnn.convert(module)
        assert type(module) is ours
        assert contents(module) == before


@pytest.mark.parametrize("name", user_layers())
def test_derived_classes_go_back(name: str) -> None:
    layer = user_layers()[name]
    cls, before = type(layer), contents(layer)
    x = example_for(layer)
    expected = layer(x)
    for _ in range(2):
        scratchnn.convert(layer)
        converted = type(layer)
        assert scratchnn.restore(layer).restored == {"": cls.__name__}
        assert type(layer) is cls
        assert contents(layer) == before
        assert torch.equal(layer(x), expected)
        scratchnn.convert(layer)
        assert type(layer) is converted
        scratchnn.restore(layer)


@pytest.mark.parametrize("layer", [torch.nn.Conv2d, Scaled, scratchnn.nn.Conv2d])
def test_parametrized_layers_go_back(layer: type) -> None:
    model = layer(3, 4, 3)
    torch.nn.utils.parametrizations.weight_norm(model)
    scratchnn.convert(model)
    x = torch.randn(2, 3, 6, 6)
    expected = model(x)
    shown = repr(model)
    assert "" in scratchnn.restore(model).restored
    assert not runs_on_ours(model)
    assert repr(model) == shown
    assert torch.nn.utils.parametrize.is_parametrized(model, "weight")
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    torch.nn.utils.parametrize.remove_parametrizations(model, "weight")
    assert type(model) is (torch.nn.Conv2d if layer is scratchnn.nn.Conv2d else layer)
    old_style = torch.nn.utils.weight_norm(scratchnn.nn.Conv2d(3, 4, 3))
    expected = old_style(x)
    assert scratchnn.restore(old_style).restored == {"": "Conv2d"}
    assert not runs_on_ours(old_style)
    torch.testing.assert_close(old_style(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_lazy_layers_become_torchs() -> None:
    nn = scratchnn.nn
    model = torch.nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.LazyLinear(2))
    scratchnn.restore(model)
    x = torch.randn(2, 3, 5, 5)
    model(x)
    assert [type(layer) for layer in model] == [torch.nn.Conv2d, torch.nn.BatchNorm2d, torch.nn.Linear]
    seen = torch.nn.Sequential(nn.LazyConv2d(4, 3))
    seen(x)
    assert scratchnn.restore(seen).restored == {"0": "Conv2d"}
    assert type(seen[0]) is torch.nn.Conv2d


def test_image_layer_norm_becomes_torchvisions() -> None:
    layer = scratchnn.nn.LayerNorm2d(5)
    torch.nn.init.normal_(layer.weight)
    x, before, shown = torch.randn(2, 5, 4, 3), contents(layer), repr(layer)
    expected = layer(x)
    assert scratchnn.restore(layer).restored == {"": "LayerNorm2d"}
    assert type(layer) is torchvision.models.convnext.LayerNorm2d
    assert (contents(layer), repr(layer)) == (before, shown)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-6)
    scratchnn.convert(layer)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-6)


# What is left, and what is said.


class Built(scratchnn.nn.Conv2d):
    """Derived from ours by the user."""


def test_what_is_left_and_why() -> None:
    nn = scratchnn.nn
    model = torch.nn.ModuleDict(
        {
            "pool": nn.GlobalAvgPool(),
            "maxout": nn.Maxout(3, 4, 2),
            "built": Built(3, 4, 3),
            "dropout": nn.Dropout(),
            "linear": nn.Linear(3, 3),
        }
    )
    restoration = scratchnn.restore(model)
    assert isinstance(restoration, Restoration)
    assert restoration.model is model
    assert restoration.restored == {"linear": "Linear"}
    assert {name: (left.type, left.reason) for name, left in restoration.left.items()} == {
        "pool": ("GlobalAvgPool", "torch has no such layer"),
        "maxout": ("Maxout", "torch has no such layer"),
        "built": ("Built", "its class was derived from scratchnn's Conv2d"),
    }
    assert str(restoration) == (
        "1 of 4 layers restored\n"
        "  1 Linear\n"
        "3 left as they were\n"
        "  1 GlobalAvgPool: torch has no such layer (pool)\n"
        "  1 Maxout: torch has no such layer (maxout)\n"
        "  1 Built: its class was derived from scratchnn's Conv2d (built)"
    )


def test_nothing_to_do() -> None:
    model = small_model()
    before = types(model)
    assert str(scratchnn.restore(model)) == "0 of 0 layers restored"
    assert types(model) == before


def test_graphs_call_torch_again() -> None:
    class Network(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return scratchnn.functional.max_pool2d(scratchnn.functional.relu(x), 2)

    x = torch.randn(2, 3, 6, 6)
    traced = torch.fx.symbolic_trace(Network())
    assert "scratchnn" in traced.code
    assert scratchnn.restore(traced).restored == {"": "Network"}
    assert "scratchnn" not in traced.code
    assert torch.equal(traced(x), Network()(x))
    torch.fx.symbolic_trace(traced)  # leaves no trace in torch.fx
    traced = torch.fx.symbolic_trace(lambda x: scratchnn.functional.maxout(x, 3))
    assert scratchnn.restore(traced).left[""].reason == "its graph calls maxout of scratchnn"
    exported = torch.export.export(scratchnn.nn.ReLU(), (x,)).module()
    assert "relu" in scratchnn.restore(exported).left[""].reason


def test_the_summary_is_printed_on_demand(capsys: pytest.CaptureFixture) -> None:
    restoration = scratchnn.restore(scratchnn.convert(small_model()).model, verbose=True)
    assert capsys.readouterr().out == f"{restoration}\n"


def test_only_modules() -> None:
    for wrong in (None, [scratchnn.nn.Linear(2, 2)], scratchnn.nn.Linear, torch.zeros(2)):
        with pytest.raises(TypeError, match=r"model.*torch\.nn\.Module"):
            scratchnn.restore(wrong)


# Whole models.


def test_everything_a_layer_holds_stays() -> None:
    model = scratchnn.convert(small_model()).model
    model[3].eval()
    model[4].bias.requires_grad_(False)
    calls: list[str] = []
    model[0].register_forward_hook(lambda *_: calls.append("forward"))
    model[0].register_full_backward_hook(lambda *_: calls.append("backward"))
    model.append(torch.nn.Linear(7, 7))
    model.append(scratchnn.nn.Linear(7, 7))
    model[6].weight = model[5].weight  # tied
    model.append(model[6])  # shared
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    before = contents(model)
    scratchnn.restore(model)
    assert contents(model) == before
    assert not any(isinstance(module, OURS) for module in model.modules())
    assert model[6].weight is model[5].weight
    assert model[7] is model[6]
    old = model[0].weight.detach().clone()
    model(torch.randn(IMAGES)).square().sum().backward()
    optimizer.step()
    assert calls == ["forward", "backward"]
    assert not torch.equal(model[0].weight, old)


def test_there_and_back_and_there_again() -> None:
    for build in (torchvision.models.convnext_tiny, torchvision.models.vit_b_16, torchvision.models.mobilenet_v3_small):
        with torch.device("meta"):
            model = build(num_classes=10)
        before = types(model), contents(model), repr(model), list(model.state_dict())
        converted = scratchnn.convert(model)
        there = types(model), contents(model), repr(model), list(model.state_dict())
        assert there[1:] == before[1:]
        restored = scratchnn.restore(model)
        assert (types(model), contents(model), repr(model), list(model.state_dict())) == before
        assert restored.restored == converted.converted
        scratchnn.convert(model)
        assert (types(model), contents(model), repr(model), list(model.state_dict())) == there


def test_a_built_model_gives_the_same_on_torch() -> None:
    ours = models.build("resnet20", nn=scratchnn.nn).eval()
    theirs = copy.deepcopy(ours)
    assert not scratchnn.restore(theirs).left
    x = torch.randn(2, 3, 32, 32)
    truth = copy.deepcopy(theirs).double()(x.double())
    assert relative_error(ours(x), truth) <= 4 * relative_error(theirs(x), truth)


def test_a_restored_model_needs_no_scratchnn(tmp_path: Path) -> None:
    """Saved whole, in both ways, it is loaded where scratchnn cannot be imported."""
    nn = scratchnn.nn
    model = torch.nn.Sequential(
        nn.Conv2d(3, 4, 3),
        scratchnn.convert(torchvision.models.convnext.LayerNorm2d(4)).model,
        nn.LayerNorm2d(4),
        nn.GELU(),
        nn.Sequential(nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1)),
        nn.Flatten(),
        nn.LazyLinear(2),
    ).eval()
    x = torch.randn(2, 3, 6, 6)
    torch.nn.Sequential(*model[:6], torch.nn.Identity())(x)
    assert not scratchnn.restore(model).left
    expected = model(x)
    torch.save(model, tmp_path / "model.pt")
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(model))
    torch.save((x, expected), tmp_path / "example.pt")
    code = """
        import pickle, sys
        sys.modules["scratchnn"] = None  # importing it fails
        import torch
        x, expected = torch.load("example.pt")
        with open("model.pickle", "rb") as file:
            models = torch.load("model.pt", weights_only=False), pickle.load(file)
        for model in models:
            assert torch.equal(model(x), expected)
        print("loaded", type(model[0]).__module__)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.stdout == "loaded torch.nn.modules.conv\n", done.stderr


def test_a_converted_model_does_need_it() -> None:
    """What the test above would miss otherwise."""
    file = io.BytesIO()
    torch.save(scratchnn.convert(small_model()).model, file)
    assert b"scratchnn" in file.getvalue()
    file = io.BytesIO()
    torch.save(scratchnn.restore(scratchnn.convert(small_model()).model).model, file)
    assert b"scratchnn" not in file.getvalue()

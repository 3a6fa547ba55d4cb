"""scratchnn.nn and scratchnn.functional in place of torch's: every name is there, ours where there is one."""

from __future__ import annotations

import importlib
import inspect
import sys
from types import ModuleType

import pytest
import torch
import torchvision

import scratchnn


def test_every_name_of_torch() -> None:
    for ours, theirs in ((scratchnn.nn, torch.nn), (scratchnn.functional, torch.nn.functional)):
        for name in dir(theirs):
            assert hasattr(ours, name), name
    assert scratchnn.nn.Dropout is torch.nn.Dropout
    assert scratchnn.functional.dropout is torch.nn.functional.dropout
    for name, layer in scratchnn.nn.implemented().items():
        assert getattr(scratchnn.nn, name) is layer
        assert layer.__module__.startswith("scratchnn.")
        if hasattr(torch.nn, name) and name != "SyncBatchNorm":  # DistributedDataParallel bars torch's from the CPU
            assert issubclass(layer, getattr(torch.nn, name))


def test_what_is_computed_by_torch() -> None:
    """Of the families of layers, nothing is torch's."""
    families = ("activation", "batchnorm", "conv", "instancenorm", "linear", "normalization", "pooling")
    others = {"MultiheadAttention", "CrossMapLRN2d"}  # attention; a forerunner of LocalResponseNorm
    for family in families:
        for name in getattr(torch.nn.modules, family).__all__:
            assert name in scratchnn.nn.implemented() or name in others, name


def test_functional_is_found_where_torch_has_it() -> None:
    assert scratchnn.nn.functional is scratchnn.functional
    assert importlib.import_module("scratchnn.nn.functional") is scratchnn.functional


def test_functions_look_like_torchs() -> None:
    """The same parameters in the same order, with the same defaults."""
    for name in scratchnn.functional.__all__:
        theirs = getattr(torch.nn.functional, name, None)
        try:
            expected = inspect.signature(theirs)
        except (TypeError, ValueError):  # a builtin, or none of torch's
            continue
        if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in expected.parameters.values()):
            continue  # dispatches on an argument
        found = inspect.signature(getattr(scratchnn.functional, name))
        for mine, other in zip(found.parameters.values(), expected.parameters.values(), strict=True):
            assert (mine.name, mine.default, mine.kind) == (other.name, other.default, other.kind), f"{name}: {mine}"


# file of torchvision.models -> its smallest model, and options
FILES: dict[str, tuple[str, dict[str, bool]]] = {
    "alexnet": ("alexnet", {}),
    "vgg": ("vgg11_bn", {}),
    "resnet": ("resnet18", {}),
    "densenet": ("densenet121", {}),
    "googlenet": ("googlenet", {"init_weights": True, "aux_logits": False}),
    "shufflenetv2": ("shufflenet_v2_x0_5", {}),
    "squeezenet": ("squeezenet1_1", {}),
    "mnasnet": ("mnasnet0_5", {}),
}


@pytest.mark.parametrize("file", FILES)
def test_a_model_file_runs_unchanged(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only its imports of torch.nn are replaced: the same numbers, and every layer that computes is ours."""
    original = importlib.import_module(f"torchvision.models.{file}")
    source = inspect.getsource(original)
    source = source.replace("import torch.nn as nn", "import scratchnn.nn as nn")
    source = source.replace("import torch.nn.functional as F", "import scratchnn.nn.functional as F")
    ours = ModuleType(f"torchvision.models.{file}_of_scratchnn")
    ours.__package__ = "torchvision.models"
    monkeypatch.setitem(sys.modules, ours.__name__, ours)
    monkeypatch.setattr(torchvision.models._api, "BUILTIN_MODELS", {})  # where the file enters its models
    exec(compile(source, file, "exec"), vars(ours))
    name, options = FILES[file]
    models = []
    for module in (ours, original):
        torch.manual_seed(0)
        models.append(getattr(module, name)(**options).eval())
    mine, other = models
    borrowed = {type(layer).__name__ for layer in mine.modules() if type(layer).__module__.startswith("torch.nn.")}
    assert borrowed <= {"Sequential", "ModuleList", "Dropout", "Flatten"}
    x = torch.randn(1, 3, 96, 96)
    torch.testing.assert_close(mine(x), other(x), rtol=1e-3, atol=1e-4)

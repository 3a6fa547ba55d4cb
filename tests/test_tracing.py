"""torch.fx and what builds on it: models of ours are traced as torch's are."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torchvision
from test_convert import Scaled, Standardized
from torch import Tensor
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import scratchnn


def traced_beside_torchs(model: torch.nn.Module) -> tuple[torch.fx.GraphModule, torch.fx.GraphModule]:
    return torch.fx.symbolic_trace(scratchnn.convert(copy.deepcopy(model)).model), torch.fx.symbolic_trace(model)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "convnext_tiny"])
def test_graphs_of_converted_models_are_those_of_torchs(name: str) -> None:
    model = torchvision.models.get_model(name, weights=None).eval()
    ours, theirs = traced_beside_torchs(model)
    assert ours.code == theirs.code
    assert isinstance(ours.get_submodule("avgpool"), scratchnn.nn.AdaptiveAvgPool2d)
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


def test_layers_in_a_graph_are_converted() -> None:
    theirs = torch.fx.symbolic_trace(torchvision.models.resnet18().eval())
    x = torch.randn(1, 3, 64, 64)
    expected = theirs(x)
    conversion = scratchnn.convert(theirs)
    assert len(conversion.converted) == 52
    assert not conversion.left
    torch.testing.assert_close(theirs(x), expected, rtol=1e-4, atol=1e-5)
    copied = pickle.loads(pickle.dumps(theirs))
    assert torch.equal(copied(x), theirs(x))
    assert len(scratchnn.restore(theirs).restored) == 52
    assert torch.equal(theirs(x), expected)


def test_features_of_converted_models() -> None:
    model = torchvision.models.resnet18().eval()
    x = torch.randn(1, 3, 64, 64)
    wanted = {"layer1.0.conv1": "first", "layer3": "deep", "avgpool": "last"}
    expected = create_feature_extractor(model, wanted)(x)
    names = get_graph_node_names(model)
    scratchnn.convert(model)
    assert get_graph_node_names(model) == names
    extractor = create_feature_extractor(model, wanted)
    found = extractor(x)
    assert list(found) == list(expected)
    for name in wanted.values():
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-4)
    assert isinstance(extractor.get_submodule("layer1.0.conv1"), scratchnn.nn.Conv2d)


class Network(torch.nn.Module):
    """A model file written for ours, with functions, layers that torch lacks, and hooks."""

    def __init__(self) -> None:
        super().__init__()
        nn = scratchnn.nn
        self.norm = nn.BatchNorm2d(3)
        self.pool = nn.GlobalAvgPool()
        self.maxout = nn.Maxout(3, 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = scratchnn.functional.relu(self.norm(x))
        x, _ = scratchnn.functional.max_pool2d(x, 2, return_indices=True)
        return scratchnn.nn.functional.softmax(self.maxout(self.pool(x)), dim=1)


def test_models_written_for_scratchnn() -> None:
    model, x = Network(), torch.randn(2, 3, 6, 6)
    calls: list[str] = []
    model.norm.register_forward_hook(lambda *_: calls.append("hook"))
    traced = torch.fx.symbolic_trace(model)
    assert not calls
    kinds = [(node.op, getattr(node.target, "__name__", node.target)) for node in traced.graph.nodes]
    assert kinds == [
        ("placeholder", "x"),
        ("call_module", "norm"),
        ("call_function", "relu"),
        ("call_function", "max_pool2d"),
        *[("call_function", "getitem")] * (len(kinds) - 8),
        ("call_module", "pool"),
        ("call_module", "maxout"),
        ("call_function", "softmax"),
        ("output", "output"),
    ]
    assert model.norm.num_batches_tracked == 0  # tracing ran nothing
    assert torch.equal(copy.deepcopy(traced)(x), traced(x))
    assert calls == ["hook", "hook"]
    torch.testing.assert_close(traced(x), model(x))


def test_derived_classes_are_traced_into_as_torchs() -> None:
    theirs = torch.nn.Sequential(Scaled(3, 4, 3), Standardized(4, 3, 3), torch.nn.ReLU())
    ours, other = traced_beside_torchs(theirs)
    operations = [[node.op for node in graph.graph.nodes] for graph in (ours, other)]
    assert operations[0] == operations[1]
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_users_still_choose_their_leaves() -> None:
    class Everything(torch.fx.Tracer):
        def is_leaf_module(self, m: torch.nn.Module, module_qualified_name: str) -> bool:
            return not isinstance(m, torch.nn.ReLU) and super().is_leaf_module(m, module_qualified_name)

    model = torch.nn.Sequential(scratchnn.nn.ReLU(), scratchnn.nn.Linear(2, 2), torch.nn.Dropout(), Network())
    operations = [(node.op, str(node.target)) for node in Everything().trace(model).nodes]
    assert ("call_module", "0") not in operations
    assert ("call_module", "1") in operations
    assert ("call_module", "2") in operations
    assert ("call_module", "3") not in operations
    assert ("call_module", "3.norm") in operations

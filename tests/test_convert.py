"""Turning models over to scratchnn: what changes, what stays, and what is said about it."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
import torchvision
from common import relative_error
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils import fusion, prune
from torch.testing._internal.two_tensor import TwoTensor

import scratchnn
from scratchnn.convert import Conversion

OURS = scratchnn.nn.implemented()


def small_model() -> torch.nn.Sequential:
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Dropout(0.5),
        torch.nn.Sequential(torch.nn.Conv2d(4, 4, 1, bias=False), torch.nn.Flatten()),
        torch.nn.Linear(4 * 5 * 5, 7),
    )


IMAGES = (2, 3, 5, 5)


# Classes as users write them.


class Scaled(torch.nn.Conv2d):
    """Reaches the layer through super(), and has state of its own."""

    def __init__(self, *args: Any, scale: float = 2.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.scale = scale

    def forward(self, input: Tensor) -> Tensor:
        return self.scale * super().forward(input)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, scale={self.scale}"


class Standardized(torch.nn.Conv2d):
    """Reaches the layer through the method that Conv2d offers for it."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(input, weight, self.bias)


class Plain(torch.nn.Linear):
    """Changes nothing."""


class ScaledAgain(Scaled):
    """Two steps away."""


class Own(torch.nn.Linear):
    """Computes by itself."""

    def forward(self, input: Tensor) -> Tensor:
        return input @ self.weight.T * 3


class OwnBelow(Own):
    """Its super() leads to a class that computes by itself."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


class CallsFunction(torch.nn.Conv2d):
    """Calls what Conv2d calls, by itself."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return torch.tanh(torch.nn.functional.conv2d(input, weight, self.bias))


class CallsHelper(torch.nn.LayerNorm):
    """Calls what LayerNorm calls, further away."""

    def forward(self, input: Tensor) -> Tensor:
        return channels_last_norm(input, self)


def channels_last_norm(x: Tensor, layer: torch.nn.LayerNorm) -> Tensor:
    x = torch.nn.functional.layer_norm(x.movedim(1, -1), layer.normalized_shape, layer.weight, layer.bias, layer.eps)
    return x.movedim(-1, 1)


class LazyScaled(torch.nn.LazyConv2d):
    """Becomes a class of the user's."""

    cls_to_become = Scaled

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.scale = 2.0


class Slotted(torch.nn.Linear):
    """Takes an argument when it is derived from: not by us."""

    def __init_subclass__(cls, *, role: str, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)


def user_layers() -> dict[str, torch.nn.Module]:
    return {
        "scaled": Scaled(3, 4, 3, scale=1.5),
        "standardized": Standardized(3, 4, 3),
        "plain": Plain(6, 5),
        "scaled_again": ScaledAgain(3, 4, 3),
        "calls_function": CallsFunction(3, 4, 3),
        "calls_helper": CallsHelper(3),
        "torchvision": torchvision.models.convnext.LayerNorm2d(3),
    }


def example_for(layer: torch.nn.Module) -> Tensor:
    return torch.randn(2, 6) if isinstance(layer, torch.nn.Linear) else torch.randn(2, 3, 6, 6)


def runs_on_ours(layer: torch.nn.Module) -> bool:
    """Whether a call arrives at an operator of scratchnn."""
    with torch.profiler.profile() as profile:
        layer(example_for(layer))
    return any(event.name.startswith("scratchnn::") for event in profile.events())


# What stays.


def test_everything_a_layer_holds_stays() -> None:
    model = small_model()
    model[3].eval()
    model[4].weight.requires_grad_(False)
    calls: list[str] = []
    model[0].register_forward_hook(lambda *_: calls.append("forward"))
    model[0].register_full_backward_hook(lambda *_: calls.append("backward"))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    before = {name: (id(module), module.training, dict(vars(module))) for name, module in model.named_modules()}
    parameters = {name: id(parameter) for name, parameter in model.named_parameters()}

    conversion = scratchnn.convert(model)

    assert conversion.model is model
    assert before == {name: (id(module), module.training, dict(vars(module))) for name, module in model.named_modules()}
    assert parameters == {name: id(parameter) for name, parameter in model.named_parameters()}
    for index in (0, 1, 4):
        assert type(model[index]) is OURS[type(model[index]).__name__]
    assert type(model[3][0]) is OURS["Conv2d"]
    old = model[0].weight.detach().clone()
    model(torch.randn(IMAGES)).square().sum().backward()
    optimizer.step()
    assert calls == ["forward", "backward"]
    assert not torch.equal(model[0].weight, old)


def test_results_and_gradients_are_the_same() -> None:
    theirs = small_model().eval()
    ours = scratchnn.convert(copy.deepcopy(theirs)).model
    x = torch.randn(IMAGES)
    for model in (ours, theirs):
        model(x).square().sum().backward()
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)


def test_tied_weights_and_shared_layers_stay_so() -> None:
    shared = torch.nn.Linear(4, 4)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), shared, shared, torch.nn.Linear(4, 4))
    model[3].weight = model[0].weight
    conversion = scratchnn.convert(model)
    assert model[1] is model[2] is shared
    assert model[3].weight is model[0].weight
    assert list(conversion.converted) == ["0", "1", "3"]


def test_state_travels_both_ways() -> None:
    theirs, ours = small_model().eval(), scratchnn.convert(small_model().eval()).model
    x = torch.randn(IMAGES)
    assert repr(ours) == repr(theirs)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    another = small_model().eval()
    another.load_state_dict(ours.state_dict())
    assert torch.equal(another(x), theirs(x))


def test_a_single_layer() -> None:
    layer = torch.nn.Linear(3, 2)
    conversion = scratchnn.convert(layer)
    assert conversion.model is layer
    assert type(layer) is OURS["Linear"]
    assert conversion.converted == {"": "Linear"}
    conversion = scratchnn.convert(torch.nn.Dropout())
    assert not conversion.converted
    assert "the model itself" in str(conversion)


def test_a_second_time_changes_nothing() -> None:
    model = torch.nn.Sequential(small_model(), *user_layers().values())
    scratchnn.convert(model)
    types = [type(module) for module in model.modules()]
    again = scratchnn.convert(model)
    assert not again.converted
    assert [type(module) for module in model.modules()] == types
    assert again.left["0.0"].reason == again.left["1"].reason == "already scratchnn's"


# Classes derived from torch's layers.


@pytest.mark.parametrize("name", user_layers())
def test_derived_classes(name: str) -> None:
    torch.manual_seed(1)
    layer = user_layers()[name]
    user_class, shown = type(layer), repr(layer)
    x = example_for(layer)
    expected = layer(x)
    conversion = scratchnn.convert(layer)
    assert conversion.converted == {"": user_class.__name__}
    assert runs_on_ours(layer)
    assert isinstance(layer, user_class)
    assert isinstance(layer, tuple(OURS.values()))
    assert repr(layer) == shown
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)

    other = user_layers()[name]
    scratchnn.convert(other)
    assert type(other) is type(layer)
    assert not runs_on_ours(user_layers()[name])  # the user's class itself is as it was


@pytest.mark.parametrize("name", user_layers())
def test_copies_and_files_of_derived_classes(name: str) -> None:
    layer = scratchnn.convert(user_layers()[name]).model
    layer.note = "kept"
    x = example_for(layer)
    saved = io.BytesIO()
    torch.save(layer, saved)
    saved.seek(0)
    copies = [copy.copy(layer), copy.deepcopy(layer), torch.load(saved, weights_only=False)]
    copies += [pickle.loads(pickle.dumps(layer, protocol)) for protocol in range(2, 6)]
    for copied in copies:
        assert type(copied) is type(layer)
        assert vars(copied).keys() == vars(layer).keys()
        assert copied.note == "kept"
        assert torch.equal(copied(x), layer(x))
    assert copies[1].weight is not layer.weight


def test_derived_classes_that_never_reach_the_layer_are_left() -> None:
    for cls in (Own, OwnBelow):
        layer = cls(6, 5)
        x = torch.randn(2, 6)
        expected = layer(x)
        conversion = scratchnn.convert(layer)
        assert not conversion.converted
        assert type(layer) is cls
        assert conversion.left[""].type == cls.__name__
        assert "forward does not call super()" in conversion.left[""].reason
        assert torch.equal(layer(x), expected)


def test_functions_that_a_forward_calls_are_rerouted_for_the_layer_alone() -> None:
    layer = scratchnn.convert(CallsFunction(3, 4, 3)).model
    with torch.profiler.profile() as profile:
        layer(torch.randn(2, 3, 6, 6))
        torch.nn.functional.conv2d(torch.randn(2, 3, 6, 6), torch.randn(4, 3, 3, 3))
    names = [event.name for event in profile.events()]
    assert names.count("scratchnn::conv") == names.count("aten::conv2d") == 1
    assert "aten::tanh" in names  # no part of a Conv2d


def test_a_forward_replaced_on_the_layer_is_left() -> None:
    layer = torch.nn.Linear(6, 5)
    layer.forward = lambda input: input
    assert "forward is replaced" in scratchnn.convert(layer).left[""].reason
    assert type(layer) is torch.nn.Linear


def test_a_class_that_cannot_be_derived_from_is_left() -> None:
    layer = Slotted(6, 5)
    assert "cannot be changed" in scratchnn.convert(layer).left[""].reason
    assert type(layer) is Slotted


@pytest.mark.parametrize("layer", [torch.nn.Conv2d, Scaled])
def test_parametrized_layers(layer: type) -> None:
    """Weights computed anew for each call: torch slips a class over the layer's, and takes it off again."""
    model = layer(3, 4, 3)
    parametrized = torch.nn.utils.parametrizations.weight_norm(model)
    x = torch.randn(2, 3, 6, 6)
    expected = parametrized(x)
    conversion = scratchnn.convert(parametrized)
    assert "" in conversion.converted
    assert runs_on_ours(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    assert not scratchnn.convert(model).converted
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    torch.nn.utils.parametrize.remove_parametrizations(model, "weight")
    assert runs_on_ours(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    assert runs_on_ours(scratchnn.convert(torch.nn.utils.spectral_norm(layer(3, 4, 3))).model)


@pytest.mark.parametrize("layer", [torch.nn.Conv2d, Scaled])
def test_copies_of_parametrized_layers_stay_apart(layer: type) -> None:
    """Such a copy has the very class of the original."""
    model = torch.nn.utils.parametrizations.weight_norm(layer(3, 4, 3))
    copied = copy.deepcopy(model)
    scratchnn.convert(copied)
    assert runs_on_ours(copied)
    assert not runs_on_ours(model)
    torch.nn.utils.parametrize.register_parametrization(copied, "bias", torch.nn.Identity())
    assert hasattr(copied.parametrizations, "bias")
    assert not hasattr(model.parametrizations, "bias")


# What is left, and what is said.


def test_what_is_left_and_why() -> None:
    model = torch.nn.ModuleDict(
        {
            "dropout": torch.nn.Dropout(),
            "attention": torch.nn.MultiheadAttention(4, 2),
            "fake_quantised": torch.ao.nn.qat.Linear(3, 3, qconfig=torch.ao.quantization.default_qat_qconfig),
            "quantised": torch.ao.nn.quantized.dynamic.Linear(3, 3),
            "compiled": torch.jit.script(torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Dropout())),
            "sparse": torch.nn.Linear(3, 3),
            "frozen": torchvision.ops.FrozenBatchNorm2d(3),
            "ours": scratchnn.nn.Maxout(3, 3, 2),
            "empty": torch.nn.Sequential(),
            "fine": torch.nn.Linear(3, 3),
        }
    )
    model.sparse.weight = torch.nn.Parameter(model.sparse.weight.detach().to_sparse())
    converted = {"attention.out_proj": "NonDynamicallyQuantizableLinear", "fine": "Linear"}
    types = {name: type(module) for name, module in model.named_modules() if name not in converted}
    conversion = scratchnn.convert(model)
    assert conversion.converted == converted
    assert types == {name: type(module) for name, module in model.named_modules() if name not in converted}
    assert {name: (left.type, left.reason) for name, left in conversion.left.items()} == {
        "dropout": ("Dropout", "scratchnn has no such layer"),
        "attention": ("MultiheadAttention", "scratchnn has no such layer"),
        "fake_quantised": ("Linear", "torch's own variant of Linear"),
        "fake_quantised.weight_fake_quant.activation_post_process": (
            "MovingAverageMinMaxObserver",
            "scratchnn has no such layer",
        ),
        "quantised": ("Linear", "quantised"),
        "quantised._packed_params": ("LinearPackedParams", "quantised"),
        "compiled.0": ("Linear", "compiled by TorchScript"),
        "compiled.1": ("Dropout", "compiled by TorchScript"),
        "sparse": ("Linear", "its parameters have the layout torch.sparse_coo"),
        "frozen": ("FrozenBatchNorm2d", "scratchnn has no such layer"),
        "ours": ("Maxout", "already scratchnn's"),
    }
    # What is missed is of these families, and not ours.
    assert set(conversion.missed) == {"fake_quantised", "compiled.0", "sparse"}
    assert conversion.missed.items() <= conversion.left.items()


def test_tensors_in_wrappers_are_left() -> None:
    """A parameter that is more than its numbers, as the quantised ones of torchao are, has torch's operators only."""
    layer = torch.nn.Linear(3, 3)
    values = layer.weight.detach()
    layer.weight = torch.nn.Parameter(TwoTensor(values, values.clone()))
    assert scratchnn.convert(layer).left[""].reason == "its parameters are of type TwoTensor"


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_lazy_layers_become_ours() -> None:
    model = torch.nn.Sequential(torch.nn.LazyConv2d(4, 3), torch.nn.LazyBatchNorm2d())
    assert scratchnn.convert(model).converted == {"0": "LazyConv2d", "1": "LazyBatchNorm2d"}
    model(torch.randn(2, 3, 5, 5))
    assert [type(layer) for layer in model] == [scratchnn.nn.Conv2d, scratchnn.nn.BatchNorm2d]


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_lazy_layers_become_what_the_user_says() -> None:
    layer = scratchnn.convert(LazyScaled(4, 3)).model
    x = torch.randn(2, 3, 6, 6)
    layer(x)
    assert isinstance(layer, Scaled)
    assert runs_on_ours(layer)
    torch.testing.assert_close(layer(x), 2 * torch.nn.Conv2d.forward(layer, x), rtol=1e-4, atol=1e-5)


def test_complex_layers_are_converted() -> None:
    layer, x = torch.nn.Linear(3, 4, dtype=torch.complex64), torch.randn(2, 3, dtype=torch.complex64)
    expected = layer(x)
    assert scratchnn.convert(layer).converted == {"": "Linear"}
    torch.testing.assert_close(layer(x), expected)


def test_layers_on_the_meta_device_are_converted() -> None:
    layer = scratchnn.convert(torch.nn.Linear(6, 4, device="meta")).model.to_empty(device="cpu")
    assert runs_on_ours(layer)


# With the rest of torch.nn.


def converted_beside_torchs() -> tuple[torch.nn.Module, torch.nn.Module]:
    theirs = small_model().eval()
    return scratchnn.convert(copy.deepcopy(theirs)).model, theirs


def test_hooks_of_all_kinds_run() -> None:
    outcomes = []
    for model in converted_beside_torchs():
        calls: list[str] = []
        layer = model[0]
        layer.register_forward_pre_hook(lambda module, args, calls=calls: calls.append("pre"))
        layer.register_forward_hook(lambda module, args, output, calls=calls: (calls.append("post"), output * 2)[1])
        layer.register_full_backward_pre_hook(lambda module, grad, calls=calls: calls.append("backward pre"))
        layer.register_full_backward_hook(lambda module, grads, outputs, calls=calls: calls.append("backward"))
        layer.register_state_dict_pre_hook(lambda *args, calls=calls: calls.append("state pre"))
        layer.register_state_dict_post_hook(lambda *args, calls=calls: calls.append("state"))
        layer.register_load_state_dict_pre_hook(lambda *args, calls=calls: calls.append("load pre"))
        layer.register_load_state_dict_post_hook(lambda *args, calls=calls: calls.append("load"))
        everywhere = torch.nn.modules.module.register_module_forward_hook(
            lambda module, args, output, calls=calls: calls.append(type(module).__name__)
        )
        output = model(torch.ones(IMAGES, requires_grad=True))
        everywhere.remove()
        output.sum().backward()
        model.load_state_dict(model.state_dict())
        outcomes.append((calls, output))
    assert outcomes[0][0] == outcomes[1][0]
    assert {"pre", "post", "backward pre", "backward", "state", "load", "Conv2d", "ReLU"} <= set(outcomes[0][0])
    torch.testing.assert_close(outcomes[0][1], outcomes[1][1], rtol=1e-4, atol=1e-5)


def test_utilities_of_torch() -> None:
    x, outcomes = torch.randn(IMAGES), []
    for model in converted_beside_torchs():
        prune.l1_unstructured(model[0], "weight", 0.5)
        results = [model(x), model[0].weight_mask]
        prune.remove(model[0], "weight")
        vector = torch.nn.utils.parameters_to_vector(model.parameters())
        torch.nn.utils.vector_to_parameters(2 * vector, model.parameters())
        results += [vector, model(x)]
        model(x).square().sum().backward()
        results += [torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1), model[0].weight.grad]
        norm = torch.nn.BatchNorm2d(4)
        norm.running_mean.fill_(0.3)
        fused = fusion.fuse_conv_bn_eval(model[0].eval(), norm.eval())
        assert type(fused) is type(model[0])
        results += [fused(x), norm(model[0](x))]
        weights = {name: parameter / 2 for name, parameter in model.named_parameters()}
        results.append(torch.func.functional_call(model, weights, (x,)))
        torch.nn.utils.spectral_norm(model[4], n_power_iterations=20)
        results.append(model.train()[4](torch.ones(1, 100)))
        outcomes.append(results)
    for mine, other in zip(*outcomes, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)


def test_pretrained_weights() -> None:
    theirs = torchvision.models.squeezenet1_1(num_classes=3).eval()
    file = io.BytesIO()
    torch.save(theirs.state_dict(), file)
    file.seek(0)
    ours = scratchnn.convert(torchvision.models.squeezenet1_1(num_classes=3).eval()).model
    ours.load_state_dict(torch.load(file, weights_only=True), assign=True)
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_what_compile_has_seen_is_compiled_anew() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    model = torch.compile(torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.ReLU()), backend=counter)
    x = torch.randn(2, 6)
    expected = model(x)
    assert list(scratchnn.convert(model).converted) == ["_orig_mod.0", "_orig_mod.1"]
    torch.testing.assert_close(model(x), expected)
    assert counter.frame_count == 2


def test_the_summary() -> None:
    model = torch.nn.Sequential(
        *(torch.nn.Linear(2, 2) for _ in range(3)), *(torch.nn.Dropout() for _ in range(4)), Own(2, 2)
    )
    assert str(scratchnn.convert(model)) == (
        "3 of 8 layers converted\n"
        "  3 Linear\n"
        "5 left as they were\n"
        "  4 Dropout: scratchnn has no such layer (3, 4, 5, ...)\n"
        "  1 Own: its forward does not call super().forward() (7)"
    )
    assert str(scratchnn.convert(torch.nn.Linear(2, 2))) == "1 of 1 layers converted\n  1 Linear"


def test_the_summary_is_printed_on_demand(capsys: pytest.CaptureFixture) -> None:
    conversion = scratchnn.convert(small_model())
    assert isinstance(conversion, Conversion)
    assert capsys.readouterr().out == ""
    conversion = scratchnn.convert(small_model(), verbose=True)
    assert capsys.readouterr().out == f"{conversion}\n"


def test_only_modules() -> None:
    for wrong in (None, [torch.nn.Linear(2, 2)], torch.nn.Linear, torch.zeros(2)):
        with pytest.raises(TypeError, match=r"model.*torch\.nn\.Module"):
            scratchnn.convert(wrong)


# A whole network.


def one_step(model: torch.nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Output, loss and gradients of a training step, then the state after it and the output in evaluation."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    model.train()
    output = model(images)
    loss = torch.nn.functional.cross_entropy(output, labels)
    loss.backward()
    results = {"output": output, "loss": loss}
    results |= {f"gradient of {name}": parameter.grad for name, parameter in model.named_parameters()}
    optimizer.step()
    results |= {f"{name} after": tensor for name, tensor in model.state_dict().items()}
    model.eval()
    with torch.no_grad():
        results["evaluation"] = model(images)
    return {name: tensor.detach().clone() for name, tensor in results.items()}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_residual_network_learns_as_accurately(memory_format: torch.memory_format) -> None:
    errors: dict[str, list[tuple[float, float]]] = {}
    for _ in range(3):
        theirs = torchvision.models.resnet18(weights=None, num_classes=10).to(memory_format=memory_format)
        truth = copy.deepcopy(theirs).double()
        ours = copy.deepcopy(theirs)
        conversion = scratchnn.convert(ours)
        expected = sum(type(module).__name__ in OURS for module in theirs.modules())
        assert len(conversion.converted) == expected
        assert {left.reason for left in conversion.left.values()} <= {"scratchnn has no such layer"}

        images = torch.randn(4, 3, 64, 64).to(memory_format=memory_format)
        labels = torch.tensor([1, 7, 3, 3])
        exact = one_step(truth, images.double(), labels)
        mine, other = one_step(ours, images, labels), one_step(theirs, images, labels)
        for name, value in exact.items():
            pair = (relative_error(mine[name], value), relative_error(other[name], value))
            errors.setdefault(name, []).append(pair)
    # The median of three networks: a rounding error that turns a ReLU or a maximum over, which happens to either
    # side now and then, changes a gradient by a thousand times its usual error.
    for name, pairs in errors.items():
        error, allowed = (sorted(side)[1] for side in zip(*pairs, strict=True))
        assert error <= 4 * allowed + 1e-6, f"{name}: error {error:.2e}, torch's {allowed:.2e}"


def test_the_network_under_compile_and_transforms() -> None:
    model = scratchnn.convert(torch.nn.Sequential(Scaled(3, 4, 3), torch.nn.ReLU(), Standardized(4, 2, 3))).model
    x = torch.randn(2, 3, 8, 8)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))
    weights = dict(model.named_parameters())

    def loss(weights: dict, image: Tensor) -> Tensor:
        return torch.func.functional_call(model, weights, (image[None],)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, x)
    assert each["0.weight"].shape == (2, 4, 3, 3, 3)

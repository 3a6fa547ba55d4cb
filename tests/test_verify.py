"""``scratchnn verify``: which model is meant, what is said of it, what is written, and with what status."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

import scratchnn
from scratchnn import __main__ as command
from scratchnn.__main__ import main
from scratchnn.errors import UserError
from scratchnn.override import REROUTED
from scratchnn.targets import zoo
from scratchnn.targets.zoo import REPRESENTATIVES, Inputs
from scratchnn.testing.models import call_arguments
from scratchnn.testing.nested import named_tensors
from scratchnn.verify.command import GROUPS, HELP
from scratchnn.verify.measure import measure_costs
from scratchnn.verify.prepare import prepare
from scratchnn.verify.target import load

MODELS = """
import torch
from torch import nn


class Own(nn.Linear):
    def forward(self, x):
        return x @ self.weight.T + self.bias


def small():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5)
    )


def rows():
    return nn.Sequential(nn.Linear(6, 4), nn.ReLU(), Own(4, 2)), torch.randn(3, 6)


def drawn():
    return nn.Linear(6, 4), lambda seed: torch.randn(seed + 2, 6)


def writing():
    class Writing(nn.Linear):
        def forward(self, x):
            y = super().forward(x)
            return torch.sigmoid(y, out=y)

    return Writing(6, 4), torch.randn(3, 6)


def stubborn():
    class Stubborn(nn.Linear):
        def forward(self, x):
            if x.element_size() == 8:
                raise TypeError("too wide")
            return super().forward(x)

    return Stubborn(6, 4), torch.randn(3, 6)


def number():
    return 3


def failing():
    raise RuntimeError("no such thing")


constant = 7
"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own, with a file of models in it."""
    (tmp_path / "models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("scratchnn.verify.command.SECONDS", 0.0)


def verify(*options: object) -> int:
    return main(["verify", *map(str, options)])


def refused(capsys: pytest.CaptureFixture[str], status: int) -> str:
    """The one sentence that a mistake is answered with."""
    said = capsys.readouterr()
    assert status == 2
    assert said.err.startswith("scratchnn: ")
    assert said.err.count("\n") == 1
    assert not Path("runs").exists()
    return said.err


def written(suffix: str, folder: str = "runs/verify") -> str:
    (file,) = Path(folder).glob(f"*.{suffix}")
    return file.read_text()


def test_it_is_a_command() -> None:
    assert command.SUMMARIES["verify"] == HELP


def test_an_equivalent_model(capsys) -> None:
    assert verify("models.py:small", "--seeds", 3, "--threads", 1) == 0
    said = capsys.readouterr().out
    assert said.startswith(
        "models.py:small in float32, converted by scratchnn.convert, beside torch's layers and float64\n"
    )
    assert "inputs: 4x3x64x64; 3 draws, medians; allowed: 4 times torch's error" in said
    rows = {line.split()[0]: line for line in said.splitlines() if line}
    assert rows["0"].split()[1:3] == ["Conv2d", "4x4x62x62"]
    assert rows["0"].endswith("same")
    assert rows["0"].count("x ") == 2  # the speeds
    assert "equivalent: Sequential and Sequential in float32, 6 calls of layers" in said
    assert "5 layers converted: 1 Conv2d, 1 BatchNorm2d, 1 ReLU, 1 AdaptiveAvgPool2d, 1 Linear" in said
    assert "running statistics, the worst: 1.running_" in said
    assert "torch's time over ours: evaluation" in said
    content = json.loads(written("json"))
    assert content["comparison"]["passed"] is True
    assert content["mode"] == "convert"
    assert content["environment"]["torch"] == torch.__version__
    costs = {layer["layer"]: layer["cost"] for layer in content["comparison"]["layers"]}
    assert costs["0"]["saved_ours"] > 0
    assert costs["0"]["forward"]["median"] > 0
    assert costs["4"] is None  # flatten is torch's on both sides
    page = written("md")
    assert page.startswith("# models.py:small\n")
    assert "| 0 | Conv2d | 4x4x62x62 |" in page
    (picture,) = Path("runs/verify").glob("*.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_model_that_brings_its_inputs_and_a_layer_that_is_left(capsys) -> None:
    assert verify("models.py:rows", "--no-speed", "--out", "elsewhere") == 0
    said = capsys.readouterr().out
    assert "inputs: 3x6;" in said
    assert "1 left to torch: Own: its forward does not call super().forward()" in said
    assert "speed" not in said
    assert json.loads(written("json", "elsewhere"))["cost"] is None


def test_a_function_of_the_draw(capsys) -> None:
    assert verify("models.py:drawn", "--no-speed", "--no-train", "--seeds", 2) == 0
    said = capsys.readouterr().out
    assert "gradients" not in said
    assert "2 draws" in said


def test_a_module_by_its_name(capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    assert verify("models:rows", "--no-speed", "--seeds", 1) == 0
    monkeypatch.delitem(sys.modules, "models")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_types(capsys, dtype: str) -> None:
    assert verify("models.py:small", "--no-speed", "--dtype", dtype, "--input-size", 16, "--batch", 2) == 0
    assert "inputs: 2x3x16x16" in capsys.readouterr().out
    assert json.loads(written("json"))["comparison"]["dtype"] == dtype


def test_a_fault_is_found_and_named(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    true = scratchnn.nn.BatchNorm2d.forward
    monkeypatch.setattr(scratchnn.nn.BatchNorm2d, "forward", lambda self, x: true(self, x) * 1.001)
    assert verify("models.py:small", "--seeds", 1, "--input-size", 16) == 1
    said = capsys.readouterr().out
    assert "NOT equivalent: Sequential and Sequential" in said
    assert "  first forward: 1: output in evaluation: error 1.0e-03" in said
    rows = {line.split()[0]: line for line in said.splitlines() if line}
    assert rows["1"].endswith("forward DIFFERS")
    assert rows["2"].endswith("DIFFERS in the model")
    content = json.loads(written("json"))
    assert content["comparison"]["first_forward"]["layer"] == "1"
    assert content["comparison"]["first_backward"]["layer"] == "1"
    (picture,) = Path("runs/verify").glob("*.png")
    assert picture.stat().st_size > 0


def test_a_fault_that_ends_the_run_is_told_as_well(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("out of order")

    monkeypatch.setattr(scratchnn.nn.BatchNorm2d, "forward", forward)
    assert verify("models.py:small", "--seeds", 1, "--input-size", 16) == 1
    said = capsys.readouterr().out
    assert "first forward: 1: call in evaluation: raises RuntimeError: out of order" in said
    assert "torch's time over ours" not in said


def test_a_larger_factor_allows_more(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    true = scratchnn.nn.Linear.forward
    monkeypatch.setattr(scratchnn.nn.Linear, "forward", lambda self, x: true(self, x) * (1 + 1e-6))
    assert verify("models.py:small", "--seeds", 1, "--no-speed", "--no-train", "--out", "a") == 1
    assert verify("models.py:small", "--seeds", 1, "--no-speed", "--no-train", "--out", "b", "--factor", 1000) == 0


def test_override(capsys) -> None:
    """The model stays torch's, and its calls are counted."""
    assert verify("models.py:small", "--seeds", 1, "--mode", "override", "--input-size", 16) == 0
    said = capsys.readouterr().out
    assert "run under scratchnn.override" in said
    assert "5 calls rerouted in evaluation: 1 conv2d, 1 batch_norm, 1 relu, 1 adaptive_avg_pool2d, 1 linear" in said
    assert "left to torch" not in said
    rows = {line.split()[0]: line for line in said.splitlines() if line}
    assert rows["4"].count("x ") == 2  # every layer is timed
    assert json.loads(written("json"))["mode"] == "override"


def test_a_fault_under_override(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    route = REROUTED[nn.functional.relu]
    broken = route._replace(function=lambda *args, **kwargs: route.function(*args, **kwargs) * 1.001)
    monkeypatch.setitem(REROUTED, nn.functional.relu, broken)
    assert verify("models.py:small", "--seeds", 1, "--mode", "override", "--input-size", 16, "--no-speed") == 1
    assert "first forward: 2: output in evaluation" in capsys.readouterr().out


def test_a_call_that_override_leaves(capsys) -> None:
    assert verify("models.py:writing", "--seeds", 1, "--mode", "override", "--no-speed", "--no-train") == 0
    said = capsys.readouterr().out
    assert "1 calls rerouted in evaluation: 1 linear" in said
    assert "1 left to torch: sigmoid: writes to out=" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["resnet18"], "'resnet18' names no model: give torchvision:NAME, timm:NAME"),
        (["torchvision:"], "names no model"),
        ([":small"], "names no model"),
        (["torchvision:resnet"], "has no model 'resnet'; it has"),
        (["torchvision:quantized_resnet18"], "is quantised"),
        (["torchvision:resnet18", "--weights", "IMAGENET_21"], "torchvision refuses to build resnet18 with weights"),
        (["torchvision:r3d_18", "--input-size", "3,64,64"], "takes inputs of 4 sizes, as 3,8,64,64, not 3,64,64"),
        (["torchvision:alexnet", "--input-size", "3,16,16"], "torchvision:alexnet cannot be called with such inputs"),
        (["torchvision:all", "--batch", "2"], "torchvision:all chooses inputs itself"),
        (["nowhere.py:small"], "there is no file nowhere.py"),
        (["no.such:small"], "there is no module no to import for no.such"),
        (["models.py:large"], "models.py has no function large"),
        (["models.py:constant"], "models.py has no function constant"),
        (["models.py:number"], "must return a torch.nn.Module, or one and its inputs, not int"),
        (["models.py:failing"], "models.py:failing() raises RuntimeError: no such thing"),
        (["models.py:rows", "--batch", "3"], "brings its own inputs: leave --input-size and --batch out"),
        (["models.py:small", "--weights", "DEFAULT"], "--weights is for torchvision and timm"),
        (["models.py:small", "--input-size", "1,64,64"], "models.py:small cannot be called with such inputs"),
        (["models.py:stubborn"], "models.py:stubborn cannot be verified: compare_models(): the reference does not run"),
        (
            ["models.py:small", "--input-size", "3,a"],
            "--input-size must be whole numbers above 0, as 3,64,64, got '3,a'",
        ),
        (["models.py:small", "--input-size", "0"], "--input-size must be whole numbers above 0"),
        (["models.py:small", "--batch", "0"], "--batch must be 1 or more, got 0"),
        (["models.py:small", "--seeds", "0"], "--seeds must be 1 or more, got 0"),
        (["models.py:small", "--threads", "-1"], "--threads must be 1 or more, got -1"),
        (["models.py:small", "--factor", "nan"], "--factor must be above 0, got nan"),
        (["models.py:small", "--dtype", "float64"], "argument --dtype: invalid choice: 'float64'"),
        ([], "the following arguments are required: MODEL"),
    ],
)
def test_wrong_options(capsys, options: list[str], message: str) -> None:
    assert message in refused(capsys, verify(*options))


def test_a_file_that_does_not_run(capsys) -> None:
    Path("broken.py").write_text("import torch\nraise KeyError('x')\n")
    assert "broken.py raises KeyError: 'x'" in refused(capsys, verify("broken.py:model"))


def test_without_matplotlib(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "the optional dependency matplotlib is missing" in refused(capsys, verify("models.py:small"))


def test_timm(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert "timm:resnet18 needs timm, install it with: pip install timm" in refused(capsys, verify("timm:resnet18"))

    class Timm(ModuleType):
        __version__ = "1.0"

        @staticmethod
        def create_model(name: str, pretrained: bool) -> nn.Module:
            if name != "net":
                raise RuntimeError(f"Unknown model ({name})")
            model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
            model.pretrained_cfg = {"input_size": (3, 4, 4)}
            return model

    monkeypatch.setitem(sys.modules, "timm", Timm("timm"))
    assert "timm 1.0 cannot build other: Unknown model (other)" in refused(capsys, verify("timm:other"))
    target = load("timm:net", batch=5)
    assert target.inputs.evaluation(0).shape == (5, 3, 4, 4)
    assert target.model[1].bias.std() > 0


# torchvision's models.


def test_every_family_of_torchvision_has_a_representative() -> None:
    from torchvision import models

    modules = {name: models.get_model_builder(name).__module__ for name in models.list_models()}
    represented = {modules[name] for names in REPRESENTATIVES.values() for name in names}
    assert represented == {module for module in modules.values() if ".quantization." not in module}
    assert GROUPS["torchvision:all"] == [name for names in REPRESENTATIVES.values() for name in names]
    for task, names in REPRESENTATIVES.items():
        if task != "classification":
            assert all(f".{task}." in modules[name] for name in names)


@pytest.mark.parametrize(
    ("name", "evaluation", "training"),
    [
        ("squeezenet1_1", [(4, 3, 64, 64)], [(4, 3, 64, 64)]),
        ("lraspp_mobilenet_v3_large", [(4, 3, 64, 64)], [(4, 3, 64, 64)]),
        ("raft_small", [(1, 3, 128, 128)] * 2, [(1, 3, 128, 128)] * 2),
        ("mc3_18", [(2, 3, 8, 64, 64)], [(2, 3, 8, 64, 64)]),
        ("ssdlite320_mobilenet_v3_large", [(3, 320, 320)] * 2, [(3, 320, 320)] * 2 + [(3, 4), (3,)] * 2),
    ],
)
def test_what_models_are_called_with(name: str, evaluation: list[tuple], training: list[tuple]) -> None:
    _, inputs = zoo.load(name)
    for draw, shapes in ((inputs.evaluation, evaluation), (inputs.training, training)):
        first, again, other = (list(named_tensors(call_arguments(draw, seed), "").values()) for seed in (0, 0, 1))
        assert [tuple(tensor.shape) for tensor in first] == shapes
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert not torch.equal(first[0], other[0])


def test_targets_of_detection() -> None:
    for module, extra in (("detection.mask_rcnn", "masks"), ("detection.keypoint_rcnn", "keypoints")):
        inputs = zoo._inputs(module, (3, 40, 60), 2)
        images, targets = inputs.training(0)
        assert len(images) == len(targets) == 2
        for target in targets:
            left, top, right, bottom = target["boxes"].T
            assert (left < right).all()
            assert (top < bottom).all()
            assert right.max() <= 60
            assert bottom.max() <= 40
            assert extra in target
        masks, keypoints = targets[0].get("masks"), targets[0].get("keypoints")
        if masks is not None:
            assert masks.shape == (3, 40, 60)
            assert masks.flatten(1).sum(1).min() > 0
        if keypoints is not None:
            assert keypoints.shape == (3, 17, 3)
            x, y = keypoints[..., 0], keypoints[..., 1]
            boxes = targets[0]["boxes"][:, None]
            assert ((x >= boxes[..., 0]) & (x <= boxes[..., 2]) & (y >= boxes[..., 1]) & (y <= boxes[..., 3])).all()


def test_losses() -> None:
    scores = torch.randn(4, 7)
    plain = nn.functional.cross_entropy(scores, torch.tensor([0, 0, 0, 0]) + torch.arange(4) * 7 % 7)
    assert torch.equal(zoo._classification_loss(scores), plain)
    assert torch.allclose(zoo._classification_loss((scores, scores, None)), 1.4 * plain)
    pixels = torch.randn(2, 5, 3, 3)
    assert torch.allclose(
        zoo._segmentation_loss({"out": pixels, "aux": pixels}), 1.5 * zoo._segmentation_loss({"out": pixels})
    )


def test_new_weights_get_something_to_say() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.2), nn.Linear(6, 2)).eval()
    nn.init.zeros_(model[3].weight)
    kernel = model[0].weight.clone()
    x = torch.randn(2, 3, 8, 8) * 3
    prepare(model, lambda model: model(x))
    assert torch.equal(model[0].weight, kernel)  # was random already
    assert (model[1].weight.min() >= 0.5) & (model[1].weight.max() <= 1.5) & (model[1].weight.std() > 0)
    assert model[1].bias.std() > 0
    assert model[3].weight.std() > 0
    torch.testing.assert_close(model[1].running_mean, model[0](x).mean((0, 2, 3)))
    assert model[1].momentum == 0.1
    assert not any(module.training for module in model.modules())


# Costs.


def test_what_layers_cost() -> None:
    torch.manual_seed(0)
    theirs = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    ours = scratchnn.convert(nn.Sequential(*(layer for layer in theirs))).model
    theirs = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    x = torch.randn(2, 3, 8, 8)
    inputs = Inputs(lambda seed: x, lambda seed: x)
    whole, costs = measure_costs(ours, theirs, inputs, nullcontext, 0.0)
    assert [name.layer for name in costs] == ["0", "1", "2", "4"]  # flatten is the same on both sides
    named = {name.layer: cost for name, cost in costs.items()}
    assert named["1"] is named["2"]  # the same layer on the same shape is measured once
    # The convolution keeps its input for the gradient of the weight, a ReLU its output, nobody a parameter.
    assert named["0"].saved_ours == named["0"].saved_theirs == 4 * 2 * 3 * 8 * 8
    assert named["1"].saved_theirs == 4 * 2 * 4 * 6 * 6
    assert named["4"].saved_theirs == 4 * 2 * 144
    assert whole.saved_theirs == 4 * (2 * 3 * 64 + 2 * 144 * 2)
    assert whole.backward is not None


def test_many_models(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = {"good": nn.ReLU, "bad": nn.Tanh}

    def build(name: str, **options: object) -> SimpleNamespace:
        if name == "torchvision:worse":
            raise UserError("it does not fit")
        torch.manual_seed(0)
        x = torch.randn(3, 6)
        model = nn.Sequential(nn.Linear(6, 4), layers[name.removeprefix("torchvision:")](), nn.Linear(4, 2))
        return SimpleNamespace(name=name, model=model, inputs=Inputs(lambda seed: x, lambda seed: x))

    monkeypatch.setattr("scratchnn.verify.command.load", build)
    monkeypatch.setitem(GROUPS, "torchvision:all", ["good", "bad"])
    true = scratchnn.nn.Tanh.forward
    monkeypatch.setattr(scratchnn.nn.Tanh, "forward", lambda self, x: true(self, x) * 1.001)
    assert verify("torchvision:all", "--seeds", 1) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("model")
    assert said[1].split()[:4] == ["good", "same", "3", "0"]
    assert said[2].split()[:2] == ["bad", "DIFFERS"]
    assert said[3] == "2 models; not equivalent: bad"
    content = json.loads(written("json"))
    assert [model["comparison"]["passed"] for model in content] == [True, False]
    assert "layers" not in content[0]["comparison"]
    assert "| bad | DIFFERS | 3 |" in written("md")
    monkeypatch.setitem(GROUPS, "torchvision:all", ["worse", "good"])
    assert verify("torchvision:all", "--seeds", 1, "--no-speed", "--out", "again") == 1
    said = capsys.readouterr().out
    assert "worse: it does not fit" in said
    assert "2 models; not equivalent: worse" in said
    monkeypatch.setitem(GROUPS, "torchvision:all", ["good"])
    assert verify("torchvision:all", "--seeds", 1, "--no-speed", "--out", "third") == 0


def test_a_missing_model_is_a_users_mistake() -> None:
    with pytest.raises(UserError, match="has no model"):
        zoo.load("no_such_net")

"""Training runs: what they leave, and that interrupting one changes nothing."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pictures import split_tree, write_folder
from PIL import Image

from scratchnn import models
from scratchnn.__main__ import main
from scratchnn.errors import UserError
from scratchnn.train import checkpoint
from scratchnn.train.config import Config
from scratchnn.train.log import Table, read_table
from scratchnn.train.loop import Trainer, make_optimizer
from scratchnn.train.schedule import learning_rate

FILES = ["checkpoint.pt", "config.json", "curves.png", "epochs.csv", "steps.csv", "summary.json"]
STEPS_PER_EPOCH = 5  # 36 images in batches of 8; the last has 4

Train = Callable[..., int]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(split_tree(train=18, test=6), tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def options(pictures: Path) -> list[str]:
    """A run of 15 steps that takes a moment."""
    return [
        *("--data", str(pictures), "--image-size", "16", "--cache", str(pictures.parent / "cache")),
        *("--model", "resnet8", "--epochs", "3", "--batch-size", "8", "--threads", "1", "--no-keep-memory"),
    ]


@pytest.fixture(scope="module")
def train(options: list[str]) -> Train:
    def run(out: Path, *more: str, layers: str = "torch") -> int:
        return main(["train", *options, "--layers", layers, "--out", str(out), *more])

    return run


@pytest.fixture(scope="module")
def whole(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to, to compare others with."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert train(out) == 0
    return out


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, signal.Signals], None]:
    """Have this process get a signal in the middle of a step, counted from 1."""

    def arrange(step: int, number: signal.Signals = signal.SIGINT) -> None:
        whole = Trainer._step

        def interrupted(trainer: Trainer, *args: object) -> None:
            if trainer.progress.step == step - 1:
                os.kill(os.getpid(), number)
            whole(trainer, *args)

        monkeypatch.setattr(Trainer, "_step", interrupted)

    return arrange


def assert_same_run(a: Path, b: Path) -> None:
    """Weights, statistics of norms, momentum and tables agree bit for bit."""
    one, two = (checkpoint.load(out / "checkpoint.pt") for out in (a, b))
    assert one["model"].keys() == two["model"].keys()
    for name, value in one["model"].items():
        assert torch.equal(value, two["model"][name]), name
    momenta = [content["optimizer"]["state"] for content in (one, two)]
    assert momenta[0].keys() == momenta[1].keys()
    for number, state in momenta[0].items():
        assert torch.equal(state["momentum_buffer"], momenta[1][number]["momentum_buffer"])
    assert one["optimizer"]["param_groups"] == two["optimizer"]["param_groups"]
    assert torch.equal(one["random_state"], two["random_state"])
    for content in (one, two):
        del content["progress"]["seconds"]
    assert one["progress"] == two["progress"]
    for table in ("steps.csv", "epochs.csv"):
        assert (a / table).read_bytes() == (b / table).read_bytes()


# ---- what a run leaves


@pytest.mark.parametrize("layers", ["scratchnn", "torch"])
def test_a_run_and_its_files(train: Train, tmp_path: Path, capsys, layers: str) -> None:
    out = tmp_path / "out"
    assert train(out, layers=layers) == 0
    assert sorted(path.name for path in out.iterdir()) == FILES

    steps, epochs = read_table(out / "steps.csv"), read_table(out / "epochs.csv")
    assert [row["step"] for row in steps] == list(range(1, 16))
    assert [row["epoch"] for row in steps] == [1] * 5 + [2] * 5 + [3] * 5
    assert [row["lr"] for row in steps] == pytest.approx([learning_rate(s, 15, 0.1, "cosine", 0.15) for s in range(15)])
    assert [row["epoch"] for row in epochs] == [1, 2, 3]
    for row in epochs:
        own = [step["loss"] for step in steps if step["epoch"] == row["epoch"]]
        assert row["train_loss"] == pytest.approx((8 * sum(own[:4]) + 4 * own[4]) / 36, rel=1e-6)

    summary = json.loads((out / "summary.json").read_text())
    assert summary["test_accuracy"] == epochs[-1]["test_accuracy"]
    assert summary["parameters"] == 74_770  # two classes instead of ten
    assert summary["steps"] == 15
    config = json.loads((out / "config.json").read_text())
    assert config["config"]["batch_size"] == 8
    assert config["units"]["batch_size"] == "images"
    assert config["versions"]["torch"] == torch.__version__
    assert config["hardware"]["threads"] == 1
    assert config["data"]["classes"] == ["blue", "red"]
    with Image.open(out / "curves.png") as curves:
        assert curves.size == (1500, 600)

    said = capsys.readouterr()
    assert said.err == ""
    lines = said.out.splitlines()
    assert [line.split(":")[0] for line in lines if line.startswith("epoch ")] == [f"epoch {n}/3" for n in (1, 2, 3)]
    assert lines[-2] == f"test accuracy: {summary['test_accuracy']:.2%}"
    assert lines[-1].startswith(f"files: {out} (")


def test_checkpoint_is_a_model_one_can_use(whole: Path) -> None:
    content = torch.load(whole / "checkpoint.pt", weights_only=True)
    model = models.build(content["config"]["model"], num_classes=2, nn=torch.nn)
    model.load_state_dict(content["model"])


def test_it_learns(train: Train, tmp_path: Path) -> None:
    assert train(tmp_path / "out", "--epochs", "8", "--lr", "0.05") == 0
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["test_accuracy"] >= 0.9


def test_seed_decides_and_nothing_else(train: Train, tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert train(tmp_path / name, "--seed", seed) == 0
        torch.rand(3)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "steps.csv").read_bytes() != (tmp_path / "c" / "steps.csv").read_bytes()


@pytest.mark.parametrize(("steps", "rows"), [(3, [(1, 3)]), (5, [(1, 5)]), (7, [(1, 5), (2, 7)])])
def test_max_steps(train: Train, tmp_path: Path, steps: int, rows: list[tuple[int, int]]) -> None:
    assert train(tmp_path / "out", "--max-steps", str(steps)) == 0
    assert [(row["epoch"], row["step"]) for row in read_table(tmp_path / "out" / "epochs.csv")] == rows
    assert len(read_table(tmp_path / "out" / "steps.csv")) == steps
    assert (tmp_path / "out" / "curves.png").exists()


# ---- stopping and resuming


@pytest.mark.parametrize("layers", ["scratchnn", "torch"])
def test_interrupted_and_resumed_equals_uninterrupted(
    train: Train, tmp_path: Path, stop_at, capsys, monkeypatch, layers: str
) -> None:
    never, parts = tmp_path / "never", tmp_path / "parts"
    assert train(never, layers=layers) == 0
    stop_at(7)
    assert train(parts, layers=layers) == 130
    assert f"scratchnn train --out {parts} --resume" in capsys.readouterr().out.splitlines()[-1]
    assert checkpoint.load(parts / "checkpoint.pt")["progress"]["step"] == 7
    assert not (parts / "summary.json").exists()
    monkeypatch.undo()
    assert main(["train", "--out", str(parts), "--resume", "--no-keep-memory"]) == 0  # no other option needed
    assert_same_run(never, parts)
    assert sorted(path.name for path in parts.iterdir()) == FILES


@pytest.mark.parametrize(("step", "number"), [(1, signal.SIGINT), (5, signal.SIGTERM), (15, signal.SIGINT)])
def test_any_step_is_good_for_stopping(
    train: Train, whole: Path, tmp_path: Path, stop_at, monkeypatch, step: int, number: signal.Signals
) -> None:
    """The first step, the last of an epoch (which still has to be tested), and the last of all."""
    before = signal.getsignal(number)
    parts = tmp_path / "parts"
    stop_at(step, number)
    assert train(parts) == 130
    assert signal.getsignal(number) is before
    monkeypatch.undo()
    assert train(parts, "--resume") == 0
    assert_same_run(whole, parts)


def test_stopped_while_testing(train: Train, whole: Path, tmp_path: Path, monkeypatch) -> None:
    parts = tmp_path / "parts"
    test = Trainer._test

    def interrupted(trainer: Trainer, *args: object) -> tuple[float, float]:
        if trainer.progress.epoch == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return test(trainer, *args)

    monkeypatch.setattr(Trainer, "_test", interrupted)
    assert train(parts) == 130
    monkeypatch.undo()
    assert train(parts, "--resume") == 0
    assert_same_run(whole, parts)


def test_crashed_between_checkpoints(train: Train, whole: Path, tmp_path: Path, monkeypatch) -> None:
    """Rows that were written after the checkpoint are written again, once."""
    parts = tmp_path / "parts"
    save = checkpoint.save

    def failing(*args: object) -> None:
        if args[-1].epoch == 2:
            raise RuntimeError("the machine went down")
        save(*args)

    monkeypatch.setattr(checkpoint, "save", failing)
    with pytest.raises(RuntimeError, match="went down"):
        train(parts)
    assert len(read_table(parts / "epochs.csv")) == 2
    with open(parts / "steps.csv", "a") as file:
        file.write("3,11,0.")  # a row that did not make it to the disk
    monkeypatch.undo()
    assert train(parts, "--resume") == 0
    assert_same_run(whole, parts)


def test_killed_and_resumed_equals_uninterrupted(options: list[str], train: Train, tmp_path: Path) -> None:
    never, parts = tmp_path / "never", tmp_path / "parts"
    more = ("--epochs", "8")
    assert train(never, *more) == 0
    command = [
        sys.executable,
        "-m",
        "scratchnn",
        "train",
        *options,
        *more,
        "--layers",
        "torch",
        "--out",
        str(parts),
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            while not read_table(parts / "epochs.csv"):
                assert process.poll() is None
                time.sleep(0.002)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
    assert checkpoint.load(parts / "checkpoint.pt")["progress"]["epoch"] < 8
    assert not (parts / "summary.json").exists()
    assert train(parts, *more, "--resume") == 0
    assert_same_run(never, parts)
    assert sorted(path.name for path in parts.iterdir()) == FILES


def test_resuming_a_finished_run_changes_nothing(train: Train, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert train(out) == 0
    before = {name: (out / name).read_bytes() for name in FILES if name != "curves.png"}
    assert train(out, "--resume") == 0
    assert before == {name: (out / name).read_bytes() for name in before}


def test_data_may_have_moved(train: Train, tmp_path: Path, stop_at, monkeypatch) -> None:
    out = tmp_path / "out"
    stop_at(3)
    assert train(out, "--data", str(write_folder(split_tree(), tmp_path / "before"))) == 130
    monkeypatch.undo()
    (tmp_path / "before").rename(tmp_path / "after")
    assert train(out, "--data", str(tmp_path / "after"), "--resume") == 0


# ---- loss that is no number


@pytest.mark.parametrize("where", ["step", "test"])
def test_loss_that_is_not_finite_stops_the_run(train: Train, tmp_path: Path, capsys, monkeypatch, where: str) -> None:
    out = tmp_path / "out"
    loss = Trainer._loss

    def spoilt(trainer: Trainer, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        late = trainer.progress.epoch == 1 and trainer.model.training == (where == "step")
        return loss(trainer, scores, labels) * (math.nan if late else 1.0)

    monkeypatch.setattr(Trainer, "_loss", spoilt)
    assert train(out) == 2
    said = capsys.readouterr().err
    assert said.startswith("scratchnn: the loss became nan in epoch 2 after step ")
    assert said.count("\n") == 1
    assert "--lr" in said
    content = checkpoint.load(out / "checkpoint.pt")
    assert content["progress"]["step"] == STEPS_PER_EPOCH
    assert all(value.isfinite().all() for value in content["model"].values())
    monkeypatch.undo()
    assert train(out, "--resume") == 0


# ---- checkpoints that do not fit


def changed(path: Path, change: Callable[[dict], None]) -> None:
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


@pytest.mark.parametrize(
    ("option", "value", "stored"),
    [
        ("--model", "resnet20", "resnet8"),
        ("--layers", "scratchnn", "torch"),
        ("--epochs", "4", "3"),
        ("--lr", "1", "0.1"),
    ],
)
def test_resume_with_another_option(train: Train, whole: Path, capsys, option: str, value: str, stored: str) -> None:
    before = {path.name: path.read_bytes() for path in whole.iterdir()}
    assert train(whole, option, value, "--resume") == 2
    said = capsys.readouterr().err
    assert f"{option} {stored} and cannot be resumed with {value}" in said
    assert said.count("\n") == 1
    assert before == {path.name: path.read_bytes() for path in whole.iterdir()}


def test_resume_with_other_data(train: Train, whole: Path, tmp_path: Path, capsys) -> None:
    before = {path.name: path.read_bytes() for path in whole.iterdir()}
    other_images = write_folder(split_tree(train=9), tmp_path / "fewer")
    other_classes = write_folder(
        {name.replace("red", "green"): content for name, content in split_tree().items()}, tmp_path / "green"
    )
    assert train(whole, "--data", str(other_images), "--resume") == 2
    assert "was trained on other images" in capsys.readouterr().err
    assert train(whole, "--data", str(other_classes), "--resume") == 2
    assert "trained on other classes: blue, red, the data have blue, green" in capsys.readouterr().err
    assert before == {path.name: path.read_bytes() for path in whole.iterdir()}


def test_weights_of_another_model(train: Train, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert train(out) == 0
    changed(out / "checkpoint.pt", lambda content: content["config"].update(model="resnet20"))
    assert main(["train", "--out", str(out), "--resume", "--no-keep-memory"]) == 2
    assert "do not fit the model resnet20" in capsys.readouterr().err


@pytest.mark.parametrize(
    "damage", ["truncated", "flipped", "text", "empty", "other", "newer", "weights", "part", "missing"]
)
def test_damaged_checkpoint(train: Train, tmp_path: Path, capsys, damage: str) -> None:
    out = tmp_path / "out"
    assert train(out, "--max-steps", "1") == 0
    path = out / "checkpoint.pt"
    content = bytearray(path.read_bytes())
    weight = torch.load(path, weights_only=True)["model"]["head.2.weight"]
    content[content.index(weight.numpy().tobytes())] ^= 1  # a weight that is off by the smallest step
    damages: dict[str, Callable[[], object]] = {
        "truncated": lambda: path.write_bytes(content[:5000]),
        "flipped": lambda: path.write_bytes(content),
        "text": lambda: path.write_text("hello"),
        "empty": lambda: path.write_bytes(b""),
        "other": lambda: torch.save([1, 2, 3], path),
        "newer": lambda: changed(path, lambda c: c.update(format=99, version="9.9")),
        "weights": lambda: torch.save({"weight": torch.ones(3)}, path),
        "part": lambda: changed(path, lambda c: c.pop("progress")),
        "missing": path.unlink,
    }
    damages[damage]()
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    assert train(out, "--max-steps", "1", "--resume") == 2
    said = capsys.readouterr().err
    expected = {"newer": "scratchnn 9.9", "missing": "does not exist"}.get(damage, "is damaged or not a checkpoint")
    assert expected in said
    assert str(path) in said
    assert said.count("\n") == 1
    assert before == {file.name: file.read_bytes() for file in out.iterdir()}


@pytest.mark.parametrize("table", ["steps.csv", "epochs.csv"])
@pytest.mark.parametrize("damage", ["missing", "shortened", "garbled"])
def test_resume_without_its_tables(train: Train, tmp_path: Path, capsys, table: str, damage: str) -> None:
    out = tmp_path / "out"
    assert train(out, "--max-steps", "7") == 0
    path = out / table
    content = path.read_text()
    changes = {
        "missing": "",
        "shortened": content[: content.rindex("\n", 0, -1) + 1],
        "garbled": content + "x\n",
    }
    path.write_text(changes[damage])
    assert train(out, "--max-steps", "7", "--resume") == 2
    said = capsys.readouterr().err
    assert ("is damaged" if damage == "garbled" else "rows that the run has had so far") in said
    assert str(path) in said


def test_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (os.mkdir, (str(tmp_path / "trapped"),))

    torch.save({"format": 1, "model": Trap()}, tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match="is damaged or not a checkpoint"):
        checkpoint.load(tmp_path / "checkpoint.pt")
    assert not (tmp_path / "trapped").exists()


# ---- the parts


def test_learning_rates() -> None:
    rising = [learning_rate(step, 100, 1.0, "constant", 0.1) for step in range(12)]
    assert rising == pytest.approx([(step + 1) / 11 for step in range(10)] + [1.0, 1.0])
    cosine = [learning_rate(step, 100, 0.2) for step in range(100)]
    assert cosine[0] == 0.2
    assert cosine[50] == pytest.approx(0.1)
    assert cosine == sorted(cosine, reverse=True)
    assert 0 < cosine[-1] < 1e-4
    assert [learning_rate(s, 100, 1.0, "step") for s in (0, 49, 50, 74, 75, 99)] == [
        1,
        1,
        0.1,
        0.1,
        0.01,
        0.01,
    ]
    assert learning_rate(0, 1, 1.0, "cosine", 0.5) == 1.0


def test_norms_and_biases_do_not_decay() -> None:
    model = models.resnet8(nn=torch.nn)
    decaying, free = make_optimizer(model, Config(weight_decay=0.01)).param_groups
    assert decaying["weight_decay"] == 0.01
    assert free["weight_decay"] == 0
    ids = {id(parameter): name for name, parameter in model.named_parameters()}
    assert all("bn" not in ids[id(p)] and "bias" not in ids[id(p)] for p in decaying["params"])
    assert len(decaying["params"]) + len(free["params"]) == len(ids)


def test_table_keeps_float32_exactly(tmp_path: Path) -> None:
    values = torch.randn(50).tolist()
    with Table(tmp_path / "a.csv", ("step", "loss"), upto=("step", 0)) as table:
        for step, value in enumerate(values, start=1):
            table.add(step, value)
            assert read_table(tmp_path / "a.csv")[-1]["step"] == step  # at once
    with open(tmp_path / "a.csv", newline="") as file:
        read = [float(row["loss"]) for row in csv.DictReader(file)]
    assert torch.equal(torch.tensor(read), torch.tensor(values))


@pytest.mark.slow
@pytest.mark.skipif("SCRATCHNN_CIFAR10" not in os.environ, reason="SCRATCHNN_CIFAR10 names no data")
@pytest.mark.parametrize("layers", ["scratchnn", "torch"])
def test_resnet20_on_cifar10(tmp_path: Path, layers: str) -> None:
    """``SCRATCHNN_CIFAR10`` is a value for ``--data``: a folder or archive of CIFAR-10, or ``cifar10``."""
    command = ["train", "--data", os.environ["SCRATCHNN_CIFAR10"], "--layers", layers, "--epochs", "5"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["test_accuracy"] >= 0.75

"""The command line: what it says, with what status, and that a mistake overwrites nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pictures import split_tree, write_folder, write_tar

import scratchnn
from scratchnn import __main__ as command
from scratchnn.__main__ import main
from scratchnn.errors import UserError, require
from scratchnn.train.command import HELP
from scratchnn.train.config import Config


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here may depend on, or write to, the folder that the tests are started in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write_folder(split_tree(), tmp_path / "pictures")


def train(*options: object) -> int:
    fast = (
        "--layers",
        "torch",
        "--model",
        "resnet8",
        "--image-size",
        "16",
        "--max-steps",
        "1",
        "--no-keep-memory",
    )
    return main(["train", *fast, *map(str, options)])


def refused(capsys: pytest.CaptureFixture[str], status: int) -> str:
    """The one sentence that a mistake is answered with."""
    said = capsys.readouterr()
    assert status == 2
    assert said.err.startswith("scratchnn: ")
    assert said.err.count("\n") == 1
    assert "Traceback" not in said.err
    return said.err


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_help_lists_every_command(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for name, summary in command.SUMMARIES.items():
        assert f"  {name}" in said
        assert summary in said
    assert command.COMMANDS.keys() == command.SUMMARIES.keys()
    assert command.SUMMARIES["train"] == HELP


def test_help_of_train_has_every_hyper_parameter(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for name in Config.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in said


def test_version(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"scratchnn {scratchnn.__version__}\n"


def test_module_imports_no_command_that_is_not_asked_for() -> None:
    script = (
        "import runpy, sys; sys.argv = ['scratchnn', 'walk']\n"
        "try: runpy.run_module('scratchnn', run_name='__main__')\n"
        "except SystemExit as ended: print(ended.code)\n"
        "heavy = ('scratchnn.train', 'scratchnn.bench', 'matplotlib')\n"
        "print([name for name in sys.modules if name.startswith(heavy)])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "2\n[]\n"
    assert done.stderr.startswith("scratchnn: argument COMMAND: invalid choice: 'walk'")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epochs", "0"], "--epochs must be 1 or more, got 0"),
        (["--epochs", "many"], "argument --epochs: invalid int value: 'many'"),
        (["--batch-size", "-3"], "--batch-size must be 1 or more, got -3"),
        (["--max-steps", "0"], "--max-steps must be 1 or more, got 0"),
        (["--threads", "0"], "--threads must be 1 or more, got 0"),
        (["--lr", "0"], "--lr must be a number above 0, got 0.0"),
        (["--lr", "nan"], "--lr must be a number above 0, got nan"),
        (["--lr", "inf"], "--lr must be a number above 0, got inf"),
        (["--momentum", "1"], "--momentum must be from 0 on and below 1, got 1.0"),
        (["--warmup", "1.5"], "--warmup must be from 0 on and below 1, got 1.5"),
        (["--label-smoothing", "nan"], "--label-smoothing must be from 0 on and below 1, got nan"),
        (["--weight-decay", "-1"], "--weight-decay must be a number from 0 on, got -1.0"),
        (["--seed", "-1"], "--seed must be from 0 on and below 2^63, got -1"),
        (["--schedule", "sine"], "argument --schedule: invalid choice: 'sine'"),
        (["--model", "vgg"], "argument --model: invalid choice: 'vgg'"),
        (["--layers", "jax"], "argument --layers: invalid choice: 'jax'"),
        (["--memory-format", "rows"], "argument --memory-format: invalid choice: 'rows'"),
        (["--image-size", "4"], "the image size must be from 16 to 512, got 4"),
        (["--data", "nowhere"], "there is no data at nowhere"),
        (["--wat"], "unrecognized arguments: --wat"),
        (["--resume"], "there is nothing to resume"),
    ],
)
def test_wrong_options(capsys, tmp_path: Path, options: list[str], message: str) -> None:
    assert message in refused(capsys, train("--data", "digits", *options))
    assert files(tmp_path) == {}


def test_no_command(capsys) -> None:
    assert "required: COMMAND" in refused(capsys, main([]))


def test_a_reader_that_has_seen_enough_ends_the_command_quietly() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "scratchnn", "bench", "--list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()  # long before the command has imported what it needs
    assert process.wait() == 141
    assert process.stderr.read() == b""


def test_a_run_is_not_overwritten(capsys, tmp_path: Path, pictures: Path) -> None:
    out = tmp_path / "out"
    assert train("--data", pictures, "--out", out) == 0
    capsys.readouterr()
    before = files(out)
    assert "already holds a run: continue it with --resume" in refused(
        capsys, train("--data", pictures, "--out", out, "--seed", "5")
    )
    assert files(out) == before


@pytest.mark.parametrize(
    "name", ["config.json", "checkpoint.pt", "steps.csv", "epochs.csv", "summary.json", "curves.png"]
)
def test_not_even_a_part_of_a_run_is_overwritten(capsys, tmp_path: Path, pictures: Path, name: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("precious")
    assert "already holds a run" in refused(capsys, train("--data", pictures, "--out", out))
    assert files(out) == {name: b"precious"}


def test_out_that_is_a_file_or_below_one(capsys, tmp_path: Path, pictures: Path) -> None:
    (tmp_path / "file").write_text("precious")
    assert "is a file" in refused(capsys, train("--data", pictures, "--out", tmp_path / "file"))
    assert "cannot make the folder" in refused(capsys, train("--data", pictures, "--out", tmp_path / "file" / "a"))
    assert (tmp_path / "file").read_text() == "precious"


def test_corrupt_image_is_named_and_nothing_is_left(capsys, tmp_path: Path) -> None:
    tree = split_tree() | {"train/red/004.png": b"not an image"}
    archive = write_tar(tree, tmp_path / "bad.tar")
    assert "the image train/red/004.png of" in refused(capsys, train("--data", archive, "--out", tmp_path / "out"))
    assert list(files(tmp_path)) == ["bad.tar"]


def test_unreadable_file(capsys, tmp_path: Path, pictures: Path) -> None:
    (pictures / "train" / "red" / "gone.png").symlink_to(tmp_path / "nowhere")
    assert "gone.png: No such file or directory" in refused(capsys, train("--data", pictures))


def test_default_folder_and_data(capsys, tmp_path: Path) -> None:
    assert train("--batch-size", "8") == 0
    said = capsys.readouterr().out
    assert said.startswith("data: digits of scikit-learn")
    stored = json.loads((tmp_path / "runs" / "resnet8-auto" / "config.json").read_text())
    assert stored["config"]["data"] == "digits"  # what auto stood for, so that a resumed run finds the same
    assert "already holds a run" in refused(capsys, train("--batch-size", "8"))
    assert train("--batch-size", "8", "--resume") == 0


@pytest.mark.parametrize("module", ["tqdm", "matplotlib"])
def test_missing_optional_dependency(capsys, tmp_path: Path, pictures: Path, monkeypatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    said = refused(capsys, train("--data", pictures, "--out", tmp_path / "out"))
    assert f"the optional dependency {module} is missing, install it with: pip install 'scratchnn[train]'" in said
    assert not (tmp_path / "out").exists()


def test_digits_without_scikit_learn(capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert "the optional dependency sklearn is missing" in refused(capsys, train("--data", "digits"))


def test_require_accepts_what_is_there() -> None:
    require("json", extra="train")
    with pytest.raises(UserError, match="no_such_module is missing"):
        require("no_such_module", extra="train")


def test_interrupted_before_there_is_a_run(capsys, monkeypatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("scratchnn.train.command.load", interrupted)
    assert train("--data", "digits") == 130
    assert capsys.readouterr().err == "scratchnn: interrupted\n"

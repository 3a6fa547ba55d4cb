"""The notebooks: as they are stored they are whole and up to date, and they run from top to bottom."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SECTIONS = [
    "01_fully_connected",
    "02_convolution",
    "03_activation",
    "04_pooling",
    "05_normalization",
    "06_resnet_on_cifar10",
    "07_equivalence_and_speed",
]
LARGEST = 1_000_000  # bytes

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def text(path: Path, kind: str) -> str:
    return "\n".join("".join(cell["source"]) for cell in cells(path, kind))


def shown(path: Path, *types: str) -> str:
    """What the cells of a notebook put out, of these types."""
    parts = []
    for cell in cells(path, "code"):
        for output in cell["outputs"]:
            content = {"text/plain": output.get("text", ""), **output.get("data", {})}
            parts += ["".join(content[kind]) for kind in types if kind in content]
    return "\n".join(parts)


def test_there_is_one_for_each_section() -> None:
    assert [path.stem for path in NOTEBOOKS] == SECTIONS


@each
def test_it_is_stored_as_it_ran(path: Path) -> None:
    """All cells in order, none with an error or a warning, and small enough for a repository."""
    code = cells(path, "code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    for cell in code:
        for output in cell["outputs"]:
            assert output["output_type"] != "error", output["evalue"]
            assert output.get("name") != "stderr", output["text"]
    assert any("image/png" in output.get("data", {}) for cell in code for output in cell["outputs"])
    assert path.stat().st_size < LARGEST


@each
def test_its_pictures_are_described(path: Path) -> None:
    """In words, for those who cannot see them."""
    for cell in cells(path, "code"):
        for output in cell["outputs"]:
            if "image/png" in output.get("data", {}):
                assert output["metadata"]["image/png"]["alt"], cell["source"]


@each
def test_it_has_all_its_parts(path: Path) -> None:
    prose, code = text(path, "markdown"), text(path, "code")
    assert prose.startswith(f"# {int(path.stem[:2])}. ")
    assert "tiny example" in prose
    assert "gradcheck" in code
    exercises = prose.partition("## Exercises")[2].partition("## Papers")[0]
    answers = exercises.count("<details><summary>Answer</summary>")
    assert answers >= 4
    assert answers == exercises.count("</details>") == len(re.findall(r"^\*\*\d\.\*\*", exercises, re.MULTILINE))
    assert len(re.findall(r"^- ", prose.partition("## Papers")[2], re.MULTILINE)) >= 2


@each
def test_source_code_in_its_outputs_is_that_of_the_files(path: Path) -> None:
    """Whoever changes a kernel that a notebook shows runs the notebook again."""
    blocks = re.findall(r"^`(\S+)`\n```\w+\n(.*?)\n```$", shown(path, "text/markdown"), re.MULTILINE | re.DOTALL)
    for file, block in blocks:
        lines = "\n".join(line.strip() for line in (ROOT / file).read_text().splitlines())
        assert "\n".join(line.strip() for line in block.splitlines()) in lines, file
    expected = 0 if path.stem.startswith("07") else 1
    assert len(blocks) >= expected


@each
def test_nothing_of_the_machine_it_ran_on_is_stored(path: Path) -> None:
    everything = shown(path, "text/plain", "text/markdown", "text/html") + text(path, "code")
    assert not re.search(r"(?<![\w.])/(home|root|work|Users|mnt|data)/", everything)


@each
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text(path, "markdown")):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_definitions_are_cut_out_of_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("IPython", reason="the notebooks' helpers need Jupyter: pip install 'scratchnn[notebooks]'")
    monkeypatch.syspath_prepend(str(ROOT / "notebooks"))
    monkeypatch.delitem(sys.modules, "helpers", raising=False)
    import helpers

    source = """
int area(int w);

// The area
// of a square.
template <class T>
T area(T w) {
  if (w < 0) {
    return area(-w);
  }
  return w * w;
}

struct Side {
  int length;
};
"""
    area = helpers.cpp_definition(source, "area").splitlines()
    assert (area[0], area[2], area[-1], len(area)) == ("// The area", "template <class T>", "}", 9)
    assert helpers.cpp_definition(source, "Side") == "struct Side {\n  int length;\n};"
    with pytest.raises(ValueError, match="no definition of volume"):
        helpers.cpp_definition(source, "volume")


@pytest.mark.slow
@each
def test_it_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From top to bottom, on the handwritten digits, which need neither a network nor a download."""
    pytest.importorskip("nbclient", reason="pip install 'scratchnn[notebooks]'")
    monkeypatch.setenv("DATA", "digits")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.syspath_prepend(str(ROOT / "notebooks"))
    import rerun

    after, before = rerun.run(path), json.loads(path.read_text())
    assert after.metadata == before["metadata"]
    for cell, stored in zip(after.cells, before["cells"], strict=True):
        assert cell.metadata == stored["metadata"]
        assert bool(cell.get("outputs")) == bool(stored.get("outputs"))

"""The documentation: its Python runs, its links lead somewhere, and every page is in the navigation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from scratchnn.__main__ import COMMANDS
from scratchnn.ops._elementwise import ROWS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*") if path.suffix in (".md", ".rst"))
MARKDOWN = [page for page in PAGES if page.suffix == ".md"]
WITH_EXAMPLES = [page for page in MARKDOWN if page.parent.name in ("how-to", "layers")] + [DOCS / "index.md"]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    """As the navigation has it."""
    return page.relative_to(DOCS if DOCS in page.parents else ROOT).with_suffix("").as_posix()


def of(pages: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", pages, ids=name_of)


def test_there_are_pages() -> None:
    names = set(map(name_of, PAGES))
    assert {f"layers/{family}" for family in ("conv", "pool", "norm", "linear", "activation")} <= names
    assert {"how-to/convert", "reference/nn", "reference/functional", "benchmarks", "accuracy"} <= names


@of(WITH_EXAMPLES)
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one namespace, in a folder of their own; a failure is shown at its line of the page."""
    monkeypatch.chdir(tmp_path)
    text = page.read_text()
    namespace: dict[str, Any] = {"__name__": page.stem}
    blocks = list(BLOCK.finditer(text))
    assert blocks
    for block in blocks:
        above = "\n" * text.count("\n", 0, block.start(1))
        exec(compile(above + block[1], str(page), "exec"), namespace)


def targets(page: Path) -> list[str]:
    """What a page links to and includes, as it is written there."""
    text = page.read_text()
    code = re.compile(r"^```(?!\{).*?^```$|`[^`\n]*`(?!\])", re.MULTILINE | re.DOTALL)
    return re.findall(r"\]\(([^)\s]+)\)", code.sub("", text)) + re.findall(
        r"^```\{include\} (\S+)$", text, re.MULTILINE
    )


def anchor_of(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@of([*MARKDOWN, *sorted(ROOT.glob("*.md"))])
def test_links_lead_somewhere(page: Path) -> None:
    """To a file, sources included, and to a heading where one is named."""
    for target in targets(page):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        assert file.is_file() or DOCS not in page.parents, f"the site has no page for the folder {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert anchor in map(anchor_of, headings), target


@of([page for page in MARKDOWN if page.parent.name == "layers"])
def test_layer_pages_lead_to_the_source(page: Path) -> None:
    """To the loops, the fast kernels, the derivatives and a notebook."""
    linked = targets(page)
    for start in (f"../../csrc/{page.stem}/", "../../scratchnn/ops/", "../../notebooks/"):
        assert any(target.startswith(start) for target in linked), start
    for heading in ("Formula|Element by element", "Gradients|Along a dimension", "Cost", "Algorithms", "Numerics"):
        assert re.search(rf"^## ({heading})$", page.read_text(), re.MULTILINE), heading


def test_every_elementwise_activation_is_described() -> None:
    """With what it saves for the backward pass."""
    text = (DOCS / "layers" / "activation.md").read_text()
    saved = {}
    for names, cell in re.findall(r"^\| (`.*?`) \|.*\| \$([xy])\$ \|$", text, re.MULTILINE):
        saved |= {name: cell for name in re.findall(r"`(\w+)`", names)}
    assert saved.pop("relu6") == saved["hardtanh"]
    assert saved == {row.name: "y" if row.saves_output else "x" for row in ROWS}


def test_every_command_is_described() -> None:
    """Its options are shown from its parser."""
    page = (DOCS / "reference" / "command.rst").read_text()
    assert sorted(re.findall(r"^   :func: (\w+)$", page, re.MULTILINE)) == sorted(COMMANDS)
    assert sorted(re.findall(r"^scratchnn (\w+)\n-+$", page, re.MULTILINE)) == sorted(COMMANDS)


def test_every_page_is_in_the_navigation() -> None:
    """Once. And the navigation has no page that is not there."""
    trees = re.findall(r"^```\{toctree\}\n(.*?)^```$", (DOCS / "index.md").read_text(), re.MULTILINE | re.DOTALL)
    listed = [line for tree in trees for line in tree.splitlines() if line and not line.startswith(":")]
    assert sorted(listed) == sorted(name_of(page) for page in PAGES if page.name != "index.md")

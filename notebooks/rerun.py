"""Run notebooks from top to bottom and store them with their outputs: ``make rerun-notebooks``.

``python notebooks/rerun.py 05 07`` runs those whose names begin so, without names all of them. Only what the cells put
out is stored: no times, and nothing of the machine but what a cell prints.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent


def run(path: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of its cells, run in its folder; an error in a cell is raised."""
    notebook = nbformat.read(path, as_version=4)
    metadata = dict(notebook.metadata)
    client = NotebookClient(
        notebook,
        timeout=1200,  # seconds a cell
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute()
    notebook.metadata = nbformat.from_dict(metadata)  # without the version of the kernel's Python
    return notebook


def main(names: list[str]) -> None:
    """Run and store the notebooks whose names begin with one of ``names``, or all."""
    chosen = [path for path in sorted(HERE.glob("*.ipynb")) if path.name.startswith(tuple(names or [""]))]
    if not chosen:
        sys.exit(f"no notebook's name begins with {' or '.join(names)}")
    for path in chosen:
        print(f"running {path.stem}", flush=True)
        nbformat.write(run(path), path)


if __name__ == "__main__":
    main(sys.argv[1:])

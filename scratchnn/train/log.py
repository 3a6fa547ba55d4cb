"""What a run leaves behind beside its weights: tables to plot, and where the numbers come from.

``steps.csv`` and ``epochs.csv`` hold nothing that depends on the clock, so that two runs with the same
weights have the same tables, however often one of them was interrupted. Times are in ``summary.json``.
"""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from scratchnn.data import Dataset
from scratchnn.data.atomic import replace_text
from scratchnn.errors import UserError

STEP_COLUMNS = ("epoch", "step", "loss", "lr")
EPOCH_COLUMNS = ("epoch", "step", "train_loss", "train_accuracy", "test_loss", "test_accuracy")


class Table:
    """A CSV file that grows by a row at a time, each of which is in the file at once.

    Args:
        path: the file.
        columns: its header.
        upto: a column that counts the rows from 1 on, and its last value to keep. Later rows were written
            after the checkpoint that a run continues from, and will be written again.
    """

    def __init__(self, path: Path, columns: tuple[str, ...], upto: tuple[str, int]) -> None:
        column, last = upto
        kept = [row for row in read_table(path) if row[column] <= last]
        if len(kept) != last:
            raise UserError(f"{path} has {len(kept)} of the {last} rows that the run has had so far")
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_plain(row[name]) for name in columns] for row in kept)
        replace_text(path, text.getvalue())
        self._file = open(path, "a", buffering=1, newline="")  # noqa: SIM115 (closed by __exit__)
        self._writer = csv.writer(self._file, lineterminator="\n")

    def add(self, *values: int | float) -> None:
        """Append a row."""
        self._writer.writerow([_plain(value) for value in values])

    def sync(self) -> None:
        """Have the rows so far on the disk; called before the checkpoint that counts on them is written."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Table:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def read_table(path: Path) -> list[dict[str, int | float]]:
    """The rows of a table, without one that a killed process left unfinished.

    Args:
        path: the file.

    Returns:
        each row as numbers by their column; no rows where there is no such file.

    Raises:
        UserError: when the file is not such a table.
    """
    if not path.is_file():
        return []
    try:
        with open(path, newline="") as file:
            rows = list(csv.DictReader(line for line in file if line.endswith("\n")))
        return [
            {name: int(text) if name in ("epoch", "step") else float(text) for name, text in row.items()}
            for row in rows
        ]
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}") from error


def _plain(value: int | float) -> str:
    """Nine digits give back every float32 exactly."""
    return str(value) if isinstance(value, int) else f"{value:.9g}"


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write an object as JSON, indented for reading, in place of what was there.

    Args:
        path: the file.
        content: the object.
    """
    replace_text(path, json.dumps(content, indent=2) + "\n")


def describe_data(dataset: Dataset) -> dict[str, Any]:
    """What identifies a data set, and the constants computed from it.

    Args:
        dataset: the images.

    Returns:
        its name, its classes, how many images it has, their mean and deviation, and a hash of all of them.
    """
    mean, std = dataset.mean_and_std()
    return {
        "name": dataset.name,
        "classes": list(dataset.classes),
        "train_images": len(dataset.train),
        "test_images": len(dataset.test),
        "mean": mean.tolist(),
        "std": std.tolist(),
        "sha256": dataset.digest(),
    }

"""Write a file so that whoever reads it sees the old one or the new one, never half of one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from scratchnn.errors import UserError


@contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the place of ``path`` when the block ends without an exception.

    The bytes go to a hidden file beside ``path``, reach the disk, and only then take the name: a process
    killed at any moment leaves the previous ``path`` whole. Two processes may replace the same file; the
    later one wins.

    Raises:
        UserError: when the file cannot be written, with the system's reason.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_directory(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def replace_text(path: Path, text: str) -> None:
    """Replace ``path`` by a UTF-8 file with this text, see :func:`replace_file`."""
    with replace_file(path) as file:
        file.write(text.encode())


def remove_leftovers(directory: Path) -> None:
    """Delete what a killed process left of an unfinished :func:`replace_file` in ``directory``."""
    for leftover in directory.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    """Make the new name itself survive a power failure."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

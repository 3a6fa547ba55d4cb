"""Telling a part of torch about us without importing it: those that are slow to import wait until somebody does."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["when_imported"]


def when_imported(name: str, then: Callable[[], None]) -> None:
    """Calls ``then`` when the module has been imported: now, if it has, or else as soon as somebody imports it."""
    if name in sys.modules:
        then()
    else:
        sys.meta_path.insert(0, _OnceImported(name, then))


class _OnceImported(MetaPathFinder):
    """Sees the import of a module, and leaves finding it to the others."""

    def __init__(self, name: str, then: Callable[[], None]) -> None:
        self.name, self.then = name, then

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def run_then(module: ModuleType) -> None:
            run(module)
            self.then()

        spec.loader.exec_module = run_then
        return spec

"""The register of checks: a function under ``@check`` is one, and its name is the check's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from scratchnn.testing.experiment import Trial
from scratchnn.testing.report import Finding

__all__ = ["CHECKS", "Check", "check"]

CheckFunction = Callable[[Trial], Iterator[Finding]]


@dataclass(frozen=True)
class Check:
    """A check and when it applies.

    Attributes:
        function: makes it.
        every_dtype: whether it is made in every dtype, or only in the first that the reference accepts.
        modules: whether it needs modules on both sides.
        wish: the option that must be set to have it made; empty where it always is.
    """

    function: CheckFunction
    every_dtype: bool
    modules: bool
    wish: str

    @property
    def name(self) -> str:
        """The name it is chosen by."""
        return self.function.__name__

    @property
    def description(self) -> str:
        """What it checks, in a sentence or two."""
        return " ".join((self.function.__doc__ or "").split("\n\n")[0].split())


CHECKS: dict[str, Check] = {}


def check(
    *, every_dtype: bool = False, modules: bool = False, wish: str = ""
) -> Callable[[CheckFunction], CheckFunction]:
    """Register a function as a check; see :class:`Check`."""

    def register(function: CheckFunction) -> CheckFunction:
        CHECKS[function.__name__] = Check(function, every_dtype, modules, wish)
        return function

    return register

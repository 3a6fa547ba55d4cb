"""What the functions that change a model tell of it afterwards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["Left", "summary"]


class Left(NamedTuple):
    """A layer that stayed as it was.

    Attributes:
        type: the name of its class.
        reason: why.
    """

    type: str
    reason: str


def summary(what: str, done: Mapping[str, str], left: Mapping[str, Left]) -> str:
    """How many layers of each class were changed, and which were not.

    Args:
        what: was done.
        done: the name of each layer that was changed, and of its class.
        left: the name of each layer that was not.
    """
    lines = [f"{len(done)} of {len(done) + len(left)} layers {what}"]
    lines += [f"  {count} {name}" for name, count in Counter(done.values()).most_common()]
    if left:
        lines.append(f"{len(left)} left as they were")
    for same, count in Counter(left.values()).most_common():
        names = [name or "the model itself" for name, other in left.items() if other == same]
        some = ", ".join(names[:3]) + (", ..." if count > 3 else "")
        lines.append(f"  {count} {same.type}: {same.reason} ({some})")
    return "\n".join(lines)

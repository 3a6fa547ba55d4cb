"""What every number of a tensor sees of the inputs: the receptive fields, and the dimensions along which they move."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from scratchnn.summary.reach import Reach

__all__ = ["Axis", "Field", "Place", "joined"]


class Axis(NamedTuple):
    """A dimension of an input of the model that has positions: height or width, say."""

    input: int
    dim: int


class Place(NamedTuple):
    """Where positions are in a tensor: index i of dimension ``dim`` is position ``(i // stride) % size``.

    So positions are found again where a dimension was made of several, as N x H x W x C seen as rows of C numbers.
    """

    dim: int
    stride: int
    size: int


@dataclass(frozen=True)
class Field:
    """What the numbers of one tensor see.

    Attributes:
        reaches: the pixels along each axis of the inputs that the tensor depends on.
        places: where the positions are. An axis without one looks the same from all numbers of the tensor.
    """

    reaches: Mapping[Axis, Reach] = field(default_factory=dict)
    places: Mapping[Axis, Place] = field(default_factory=dict)

    def mixed(self, axes: Iterable[Axis]) -> Field:
        """Every number now sees what all positions along the axes saw."""
        chosen = [axis for axis in axes if axis in self.places]
        if not chosen:
            return self
        reaches = {axis: self.reaches[axis].over(self.places[axis].size) for axis in chosen}
        places = {axis: place for axis, place in self.places.items() if axis not in reaches}
        return Field({**self.reaches, **reaches}, places)

    def mixed_along(self, dims: Iterable[int]) -> Field:
        """The same for all positions along some dimensions."""
        chosen = set(dims)
        return self.mixed(axis for axis, place in self.places.items() if place.dim in chosen)

    def everywhere(self) -> Field:
        """The same for all positions: what is known of an operation that nothing is known of."""
        return self.mixed(self.places)

    def moved(self, to: Callable[[int], int | None]) -> Field:
        """The dimensions have other numbers; those without one are gone."""
        kept = self.mixed_along({place.dim for place in self.places.values() if to(place.dim) is None})
        return Field(kept.reaches, {axis: place._replace(dim=to(place.dim)) for axis, place in kept.places.items()})

    def viewed(self, before: Sequence[int], after: Sequence[int]) -> Field:
        """The same numbers in the same order, in a tensor of another shape."""
        if tuple(before) == tuple(after):
            return self
        places = {axis: _viewed(place, before, after) for axis, place in self.places.items()}
        kept = self.mixed(axis for axis, place in places.items() if place is None)
        return Field(kept.reaches, {axis: places[axis] for axis in kept.places})

    def through(self, dim: int, sizes: tuple[int, int], windows: Mapping[str, Callable[[int], int] | int]) -> Field:
        """Of a layer that moves windows over one dimension.

        Args:
            dim: the dimension.
            sizes: of it, before and after.
            windows: as :meth:`Reach.through` takes them.
        """
        whole = Place(dim, 1, sizes[0])
        kept = self.mixed(axis for axis, place in self.places.items() if place.dim == dim and place != whole)
        moving = [axis for axis, place in kept.places.items() if place == whole]
        return Field(
            {**kept.reaches, **{axis: kept.reaches[axis].through(**windows) for axis in moving}},
            {**kept.places, **{axis: Place(dim, 1, sizes[1]) for axis in moving}},
        )


def _viewed(place: Place, before: Sequence[int], after: Sequence[int]) -> Place | None:
    """Where positions are after a view; None where no single dimension holds all of them."""
    stride = place.stride * math.prod(before[place.dim + 1 :])  # in the whole tensor, flat
    for dim in reversed(range(len(after))):
        inner = math.prod(after[dim + 1 :])
        span = stride // max(inner, 1) * place.size
        if inner and stride % inner == 0 and span <= after[dim] and after[dim] % max(span, 1) == 0:
            return Place(dim, stride // inner, place.size)
    return None


def joined(fields: Sequence[Field]) -> Field:
    """Of a tensor whose every number is made of the numbers at the same place of several tensors."""
    places: dict[Axis, Place] = {}
    torn = set()  # axes whose positions lie in different places, or are still in one of the tensors
    for each in fields:
        for axis in each.reaches:
            place = each.places.get(axis)
            if place is None or places.setdefault(axis, place) != place:
                torn.add(axis)
    reaches: dict[Axis, Reach] = {}
    for axis in {axis: None for each in fields for axis in each.reaches}:
        found = [each.reaches[axis] for each in fields if axis in each.reaches]
        both = found[0]
        for reach in found[1:]:
            both = both.joined(reach) if both is not None and axis not in torn else None
        if both is None or axis in torn:
            torn.add(axis)
            still = [each.mixed([axis]).reaches[axis] for each in fields if axis in each.reaches]
            both = Reach(0, (min(reach.low(0) for reach in still),), (max(reach.high(0) for reach in still),))
        reaches[axis] = both
    return Field(reaches, {axis: place for axis, place in places.items() if axis not in torn})

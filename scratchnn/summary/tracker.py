"""The receptive field of every tensor of a forward pass, operator by operator."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import Module

from scratchnn.summary.field import Axis, Field, Place, joined
from scratchnn.summary.operators import Call, fields_of_outputs, tensors_in
from scratchnn.summary.reach import Reach

__all__ = ["Tracker"]


class _View(NamedTuple):
    """A tensor's part of its storage."""

    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Tracker:
    """Knows what each tensor sees of the inputs.

    Tensors are told apart by their memory, real or not: autograd makes new tensors of those that operators give.
    """

    def __init__(self) -> None:
        self._known: dict[int, dict[_View, Field]] = {}

    def begin(self, number: int, tensor: Tensor) -> None:
        """An input of the model: its dimensions behind batch and channels have positions, each sees itself."""
        axes = [Axis(number, dim) for dim in range(2, tensor.dim())]
        places = {axis: Place(axis.dim, 1, tensor.shape[axis.dim]) for axis in axes}
        self._put(tensor, Field({axis: Reach() for axis in axes}, places))

    def field(self, tensor: Tensor) -> Field:
        """What a tensor sees; nothing, where it is no function of the inputs."""
        views = self._known.get(_storage(tensor), {})
        return views.get(_view(tensor)) or _everywhere(views)

    def follow(self, func: Any, args: tuple, kwargs: dict[str, Any], result: Any, layer: Module | None) -> None:
        """An operator has run: its outputs see what the rule says."""
        outputs = list(tensors_in(result))
        if not outputs:
            return
        schema = func._schema
        arguments = {argument.name: argument.default_value for argument in schema.arguments}
        arguments |= dict(zip(arguments, args, strict=False)) | kwargs
        name = schema.name.partition("::")[2]
        if schema.is_mutable:
            name = name.removesuffix("_")
        fields = fields_of_outputs(Call(name, arguments, outputs, self.field, layer), func)
        given = {_storage(tensor) for value in arguments.values() for tensor in tensors_in(value)}
        for output, field in zip(outputs, fields, strict=True):
            if _storage(output) not in given:
                self._known.pop(_storage(output), None)  # what was there before is gone
                self._put(output, field)
            elif schema.is_mutable:
                self._overwrite(output, field)
            else:
                self._put(output, field)

    def _put(self, tensor: Tensor, field: Field) -> None:
        self._known.setdefault(_storage(tensor), {})[_view(tensor)] = field

    def _overwrite(self, tensor: Tensor, field: Field) -> None:
        """Other views of the memory that was written see it as well, somewhere."""
        views = self._known.setdefault(_storage(tensor), {})
        if views.get(_view(tensor)) != field:
            for view in views:
                views[view] = joined([views[view], field.everywhere()])
        views[_view(tensor)] = field


def _everywhere(views: dict[_View, Field]) -> Field:
    """Of memory that is looked at in a new way, without an operator to tell how."""
    return joined([field.everywhere() for field in views.values()])


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _view(tensor: Tensor) -> _View:
    return _View(tensor.storage_offset(), tuple(tensor.shape), tensor.stride())

"""Which of a list of file names is for training, which for testing, and of what class each is.

The layout is torchvision's ``ImageFolder``: ``train/<class>/<file>`` with ``test/<class>/<file>`` (or
``val``), or ``<class>/<file>`` alone, which is then split here. Folders around that are passed over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from scratchnn.errors import UserError

TEST_SHARE = 0.2

_TRAIN = "train"
_TEST = ("test", "val", "valid", "validation")  # the first that is there is used


@dataclass(frozen=True)
class Layout:
    """Indices into the list of names, ``int64 [N]``, with the label of each, and what should be said."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    notes: tuple[str, ...]


def arrange(names: Sequence[str], source: Path) -> Layout:
    """Work out the layout of the files of ``source``.

    The result depends on the set of names alone, not on their order.

    Raises:
        UserError: when the names do not make two or more classes.
    """
    if not names:
        raise UserError(f"{source} holds no images")
    order = sorted(range(len(names)), key=names.__getitem__)
    paths = _strip_wrapper([PurePosixPath(names[index]).parts for index in order])
    tops = {parts[0] for parts in paths}
    if _TRAIN in tops and all(len(parts) >= 3 for parts in paths if parts[0] == _TRAIN):
        return _presplit(paths, order, tops, source)
    return _split(paths, order, source, ())


def stratified_split(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Set every fifth image of each class apart for testing, at random but always the same ones.

    The choice does not depend on the seed of a run: runs with different seeds are judged by the same images.

    Args:
        labels: ``int64 [N]``.

    Returns:
        Two sorted ``int64`` lists of indices, for training and for testing. A class of two or more images
        is in both.
    """
    generator = torch.Generator().manual_seed(0)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        count = max(round(len(members) * TEST_SHARE), 1) if len(members) > 1 else 0
        held_out[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()


def _strip_wrapper(paths: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Take off folders that hold everything else, such as the one that an archive was made of."""
    while len({parts[0] for parts in paths}) == 1 and min(len(parts) for parts in paths) > 2:
        if paths[0][0] == _TRAIN:
            break
        paths = [parts[1:] for parts in paths]
    return paths


def _presplit(paths: list[tuple[str, ...]], order: list[int], tops: set[str], source: Path) -> Layout:
    test_name = next((name for name in _TEST if name in tops), None)
    inside = [(index, parts) for index, parts in zip(order, paths, strict=True) if parts[0] == _TRAIN]
    if test_name is None:
        notes = _unused(tops - {_TRAIN}, source)
        return _split([parts[1:] for _, parts in inside], [index for index, _ in inside], source, notes)
    held_out = [(index, parts) for index, parts in zip(order, paths, strict=True) if parts[0] == test_name]
    for _, parts in held_out:
        if len(parts) < 3:
            raise UserError(f"{source} has the image {'/'.join(parts)}, which is in no class's folder")
    classes = _classes((parts[1] for _, parts in inside), source)
    unknown = sorted({parts[1] for _, parts in held_out} - set(classes))
    if unknown:
        raise UserError(f"{source} has the class {unknown[0]} in {test_name}/ but not in {_TRAIN}/")
    train, train_labels = _indices([(index, parts[1]) for index, parts in inside], classes)
    test, test_labels = _indices([(index, parts[1]) for index, parts in held_out], classes)
    notes = _unused(tops - {_TRAIN, test_name}, source)
    return Layout(train, train_labels, test, test_labels, classes, notes)


def _split(paths: list[tuple[str, ...]], order: list[int], source: Path, notes: tuple[str, ...]) -> Layout:
    for parts in paths:
        if len(parts) < 2:
            raise UserError(f"{source} has the image {'/'.join(parts)}, which is in no class's folder")
    classes = _classes((parts[0] for parts in paths), source)
    images, labels = _indices([(index, parts[0]) for index, parts in zip(order, paths, strict=True)], classes)
    train, test = stratified_split(labels)
    if len(test) == 0:
        raise UserError(f"{source} has one image a class, too few to train and to test")
    said = (
        f"{source} has no test images of its own: {len(test)} of its {len(labels)} images, "
        f"{TEST_SHARE:.0%} of each class and always the same ones, are set apart for testing"
    )
    return Layout(images[train], labels[train], images[test], labels[test], classes, (*notes, said))


def _classes(names: Sequence[str], source: Path) -> tuple[str, ...]:
    classes = tuple(sorted(set(names)))
    if len(classes) < 2:
        raise UserError(f"{source} has the class {classes[0]} only, training needs two or more")
    return classes


def _indices(files: list[tuple[int, str]], classes: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    label = {name: number for number, name in enumerate(classes)}
    return (
        torch.tensor([index for index, _ in files], dtype=torch.int64),
        torch.tensor([label[name] for _, name in files], dtype=torch.int64),
    )


def _unused(tops: set[str], source: Path) -> tuple[str, ...]:
    return (f"{source}: not used: {', '.join(sorted(tops))}",) if tops else ()

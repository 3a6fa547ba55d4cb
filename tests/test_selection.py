"""Which layers `include` and `exclude` stand for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import BatchNorm2d, Conv2d, Dropout, Linear, Module, ReLU, Sequential

import scratchnn
from scratchnn.selection import selector


class Block(Sequential):
    """A user's own container."""


def model() -> Sequential:
    shared = ReLU()
    return Sequential(
        Sequential(Conv2d(3, 4, 3), BatchNorm2d(4), shared),
        Block(Conv2d(4, 4, 3), Sequential(Linear(4, 4), Dropout())),
        shared,
        Linear(4, 2),
    )


LAYERS = {"0.0", "0.1", "0.2", "1.0", "1.1.0", "3"}

CHOICES: list[tuple[Any, set[str]]] = [
    ("3", {"3"}),
    ("1", {"1.0", "1.1.0"}),  # and all within
    ("*.0", {"0.0", "1.0", "1.1.0"}),
    ("0.[01]", {"0.0", "0.1"}),
    ("2", {"0.2"}),  # a shared layer, by its other name
    ("", LAYERS),  # the model itself
    (Conv2d, {"0.0", "1.0"}),
    (scratchnn.nn.Conv2d, {"0.0", "1.0"}),
    (Block, {"1.0", "1.1.0"}),
    (torch.nn.Module, LAYERS),
    (torch.nn.LSTM, set()),
    (lambda name, module: name.endswith(".0"), {"0.0", "1.0", "1.1.0"}),
    (lambda name, module: getattr(module, "out_features", 0) == 2, {"3"}),
    (["3", BatchNorm2d, lambda name, module: name == "1.0"], {"0.1", "1.0", "3"}),
    ({"3", "0"}, {"0.0", "0.1", "0.2", "3"}),
    ([], set()),
]


@pytest.mark.parametrize(("choice", "names"), CHOICES, ids=str)
def test_choices(choice: Any, names: set[str]) -> None:
    included = scratchnn.convert(model(), include=choice)
    assert set(included.converted) == names
    assert {name for name, left in included.left.items() if left.reason == "not included"} == LAYERS - names
    excluded = scratchnn.convert(model(), exclude=choice)
    assert set(excluded.converted) == LAYERS - names
    assert {name for name, left in excluded.left.items() if left.reason == "excluded"} == names
    assert not included.missed
    assert not excluded.missed
    restored = scratchnn.restore(scratchnn.convert(model()).model, include=choice)
    assert set(restored.restored) == names
    restored = scratchnn.restore(scratchnn.convert(model()).model, exclude=choice)
    assert set(restored.restored) == LAYERS - names


def test_what_is_excluded_is_not_included() -> None:
    conversion = scratchnn.convert(model(), include=["0", "1"], exclude=[Linear, "0.1"])
    assert set(conversion.converted) == {"0.0", "0.2", "1.0"}
    assert conversion.left["0.1"].reason == "excluded"
    assert conversion.left["3"].reason == "not included"
    assert conversion.left["1.1.1"].reason == "scratchnn has no such layer"


@pytest.mark.parametrize("change", [scratchnn.convert, scratchnn.restore])
@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_what_is_refused(change: Any, argument: str) -> None:
    layers = model()
    for wrong in (3, b"3", [None], int, Conv2d(1, 1, 1), {"3": True}, ["3", 3]):
        with pytest.raises(TypeError, match=f"{change.__name__}\\(\\): argument '{argument}'"):
            change(layers, **{argument: wrong})
    for wrong in ("fc", "layer*", ["3", "4"]):
        with pytest.raises(ValueError, match=f"argument '{argument}': the model has no layer '.+'"):
            change(layers, **{argument: wrong})
    assert [type(layer) for layer in layers[0]] == [Conv2d, BatchNorm2d, ReLU]  # nothing was changed before


@pytest.mark.parametrize("change", [scratchnn.convert, scratchnn.restore])
def test_a_function_that_fails_changes_nothing(change: Any) -> None:
    layers = model() if change is scratchnn.convert else scratchnn.convert(model()).model
    types = [type(layer) for layer in layers.modules()]
    with pytest.raises(AttributeError, match="out_features"):
        change(layers, include=lambda name, module: name == "0.0" or module.out_features)
    assert [type(layer) for layer in layers.modules()] == types


def test_functions_are_asked_about_layers_alone() -> None:
    """Not about containers, which may have nothing of what is asked for."""
    asked: list[str] = []

    def predicate(name: str, module: Module) -> bool:
        asked.append(name)
        return hasattr(module, "weight")

    scratchnn.convert(model(), include=predicate)
    assert set(asked) == LAYERS


def test_a_selector_answers_for_any_module() -> None:
    layers = model()
    chosen = selector(layers, ["0", lambda name, module: name == "3"], "call")
    assert [name for name, module in layers.named_modules() if chosen(name, module)] == ["0", "0.0", "0.1", "0.2", "3"]

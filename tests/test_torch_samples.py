"""Every sample and error input that PyTorch tests itself with, on our layers: same results, same errors."""

from __future__ import annotations

import pytest
import torch
from torch_samples import (
    FAMILIES,
    REASON_TO_SKIP,
    Entry,
    compare,
    dtypes_of,
    error_samples,
    functions,
    modules,
    run,
    samples,
)

pytestmark = pytest.mark.skipif(REASON_TO_SKIP is not None, reason=str(REASON_TO_SKIP))

ENTRIES = [] if REASON_TO_SKIP else [*functions(), *modules()]
BY_DTYPE = [(entry, dtype) for entry in ENTRIES for dtype in dtypes_of(entry)]
WITH_ERRORS = [entry for entry in ENTRIES if next(error_samples(entry), None) is not None]


def names(argument: object) -> str:
    return str(argument).removeprefix("torch.").replace(" ", "_")


@pytest.mark.parametrize(("entry", "dtype"), BY_DTYPE, ids=names)
def test_results(entry: Entry, dtype: torch.dtype) -> None:
    """Outputs, gradients and, in double precision, gradients of gradients."""
    twice = dtype in (torch.float64, torch.complex128) and entry.info.supports_gradgrad
    every = list(samples(entry, dtype))
    assert every
    for sample in every:
        compare(entry, sample, dtype, order=2 if twice else 1)


@pytest.mark.parametrize("entry", WITH_ERRORS, ids=names)
def test_errors(entry: Entry) -> None:
    raised = 0
    for sample in error_samples(entry):
        theirs, ours = (run(side, sample, torch.float32).get("error") for side in (entry.theirs, entry.ours))
        assert type(ours) is type(theirs), f"{sample}: torch {theirs!r}, scratchnn {ours!r}"
        raised += theirs is not None
    assert raised > 0


def test_every_family_is_in_the_database() -> None:
    assert {entry.family for entry in ENTRIES} == set(FAMILIES)

"""Fixtures shared by all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

# pytester runs pytest within a test; the equivalence fixture is there without an installation, too.
pytest_plugins = ["pytester", "scratchnn.testing.plugin"]


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    """Each test draws the same random numbers, alone or among others, and leaves torch's settings as it found them."""
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)

"""What the pytest plugin does once a test asks for it, and tests made from a layer: one for each check and dtype.

The plugin itself is ``scratchnn_pytest``: an installed scratchnn brings it along; ``-p scratchnn.testing.plugin`` loads
it from a source tree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch

from scratchnn.testing.equivalence import DTYPES, ReferenceRefusesError, check_equivalence, select
from scratchnn.testing.report import NotEquivalentError, Report

if TYPE_CHECKING:
    import pytest

__all__ = ["Equivalence", "equivalence_tests"]

pytest_plugins = ("scratchnn_pytest",)


class Equivalence:
    """What the fixture ``equivalence`` gives: :func:`~scratchnn.testing.assert_equivalent` with a session's options.

    Args:
        config: of the session; its options are the defaults.
        options: that come before those.
        record: gets each report as a dictionary.
    """

    def __init__(self, config: pytest.Config, options: dict[str, Any], record: Callable[[dict], None]) -> None:
        self._options, self._record = _configured(config) | options, record

    def __call__(self, module: Any, reference: Any, inputs: Any, **options: Any) -> Report:
        """Compare, and raise where the two are not equivalent; skip the test where nothing could be compared."""
        __tracebackhide__ = True
        report = check_equivalence(module, reference, inputs, **{**self._options, **options})
        self._record(report.to_dict())
        if report.failures:
            raise NotEquivalentError(report)
        if not report.compared:
            import pytest

            pytest.skip("; ".join(dict.fromkeys(finding.skipped for finding in report.findings)) or "no check is left")
        return report


def _configured(config: pytest.Config) -> dict[str, Any]:
    """The options of the command line and the ini file, those that were given."""
    options: dict[str, Any] = {}
    if config.getoption("equivalence_seed") is not None:
        options["seed"] = config.getoption("equivalence_seed")
    if config.getini("equivalence_factor"):
        options["factor"] = float(config.getini("equivalence_factor"))
    if config.getini("equivalence_dtypes"):
        options["dtypes"] = [_dtype(name) for name in config.getini("equivalence_dtypes")]
    if config.getini("equivalence_skip"):
        options["skip"] = config.getini("equivalence_skip")
    return options


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"equivalence_dtypes: torch has no dtype {name!r}")
    return dtype


def equivalence_tests(
    module: Any,
    reference: Any,
    inputs: Any,
    *,
    checks: Iterable[str] | None = None,
    skip: Iterable[str] = (),
    dtypes: Iterable[torch.dtype] = DTYPES,
    reproducible: bool = False,
    representation: bool = False,
    **options: Any,
) -> Callable[..., None]:
    """Tests for pytest of one layer: an item for each check and dtype. Assign it to a name that begins with ``test``.

    ::

        test_my_norm = equivalence_tests(lambda: MyNorm(8), lambda: torch.nn.BatchNorm2d(8), torch.randn(4, 8, 5, 5))

    Args:
        module, reference, inputs, checks, skip, dtypes, reproducible, representation, options: as in
            :func:`~scratchnn.testing.check_equivalence`.

    Returns:
        a parametrized test function, which uses the fixture ``equivalence``.

    Raises:
        TypeError, ValueError: as :func:`~scratchnn.testing.check_equivalence`.
    """
    import pytest

    dtypes = tuple(dtypes)
    items = []
    for check in select(checks, skip, reproducible=reproducible, representation=representation):
        if check.every_dtype:
            names = [str(dtype).removeprefix("torch.") for dtype in dtypes]
            items += [
                pytest.param(check.name, (dtype,), id=f"{check.name}-{name}")
                for dtype, name in zip(dtypes, names, strict=True)
            ]
        else:
            items.append(pytest.param(check.name, dtypes, id=check.name))

    @pytest.mark.parametrize(("check", "in_dtypes"), items)
    def test(equivalence: Equivalence, check: str, in_dtypes: tuple[torch.dtype, ...]) -> None:
        __tracebackhide__ = True
        try:
            equivalence(module, reference, inputs, checks=[check], dtypes=in_dtypes, **options)
        except ReferenceRefusesError as error:
            if in_dtypes == dtypes:
                raise
            pytest.skip(str(error))

    return test

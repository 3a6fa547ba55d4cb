"""The equivalence toolkit: prove that a layer or a model computes what another one does.

:func:`assert_equivalent` holds a layer, anybody's, against a reference under every check of
:mod:`~scratchnn.testing.checks`; :func:`check_equivalence` gives the report without raising. With pytest,
:func:`equivalence_tests` makes a test of each check and dtype.
"""

from scratchnn.testing.checks import CHECKS
from scratchnn.testing.equivalence import DTYPES, assert_equivalent, check_equivalence
from scratchnn.testing.errors import Comparison, Error, Tolerance, relative_error
from scratchnn.testing.plugin import equivalence_tests
from scratchnn.testing.report import Finding, NotEquivalentError, Report

__all__ = [
    "CHECKS",
    "DTYPES",
    "Comparison",
    "Error",
    "Finding",
    "NotEquivalentError",
    "Report",
    "Tolerance",
    "assert_equivalent",
    "check_equivalence",
    "equivalence_tests",
    "relative_error",
]

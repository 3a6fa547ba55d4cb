"""The equivalence toolkit: prove that a layer or a model computes what another one does.

:func:`assert_equivalent` holds a layer, anybody's, against a reference under every check of
:mod:`~scratchnn.testing.checks`; :func:`check_equivalence` gives the report without raising. With pytest,
:func:`equivalence_tests` makes a test of each check and dtype. :func:`compare_models` holds whole models against each
other and names the first layer where they part.
"""

from scratchnn.testing.checks import CHECKS
from scratchnn.testing.equivalence import DTYPES, assert_equivalent, check_equivalence
from scratchnn.testing.errors import Comparison, Error, Tolerance, relative_error
from scratchnn.testing.model_report import ModelReport
from scratchnn.testing.models import compare_models
from scratchnn.testing.plugin import equivalence_tests
from scratchnn.testing.report import Finding, NotEquivalentError, Report

__all__ = [
    "CHECKS",
    "DTYPES",
    "Comparison",
    "Error",
    "Finding",
    "ModelReport",
    "NotEquivalentError",
    "Report",
    "Tolerance",
    "assert_equivalent",
    "check_equivalence",
    "compare_models",
    "equivalence_tests",
    "relative_error",
]

"""The equivalence toolkit: prove that a layer or a model computes what another one does."""

from scratchnn.testing.model_report import ModelReport
from scratchnn.testing.models import compare_models

__all__ = ["ModelReport", "compare_models"]

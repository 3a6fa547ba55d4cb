"""``scratchnn.summary``: a model as a tree of layers, with what each of them is, costs and sees.

:mod:`~scratchnn.summary.trace` watches a step of training, by default without numbers.
:mod:`~scratchnn.summary.tracker` follows the receptive fields through it: :mod:`~scratchnn.summary.operators` has the
rules, :mod:`~scratchnn.summary.field` and :mod:`~scratchnn.summary.reach` the arithmetic.
:mod:`~scratchnn.summary.layer` and :mod:`~scratchnn.summary.report` are what comes out.

The function hides the module of the same name: it is ``scratchnn.summary(model, size)``, and whatever else is here is
imported with ``from scratchnn.summary import Summary``.
"""

from scratchnn.summary.layer import Extent, Layer
from scratchnn.summary.report import Summary
from scratchnn.summary.summarize import summary

__all__ = ["Extent", "Layer", "Summary", "summary"]

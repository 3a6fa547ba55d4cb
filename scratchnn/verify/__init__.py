"""``scratchnn verify``: a whole model on scratchnn's layers, proved equivalent to the same model on torch's.

:mod:`~scratchnn.verify.target` loads the model that was named (:mod:`scratchnn.targets` finds it),
:mod:`~scratchnn.verify.prepare` gives new weights something to say, :mod:`~scratchnn.verify.measure` times and weighs,
and :mod:`~scratchnn.verify.report` and :mod:`~scratchnn.verify.chart` show what came out.
"""

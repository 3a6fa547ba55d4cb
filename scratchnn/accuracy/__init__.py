"""How exact the layers are: ours and torch's, side by side, against float64.

:mod:`~scratchnn.accuracy.layers` has an example of every layer, :mod:`~scratchnn.accuracy.measure` computes the errors,
:mod:`~scratchnn.accuracy.command` is ``scratchnn accuracy``.
"""

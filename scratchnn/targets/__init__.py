"""The models that commands take by name, and what to call them with.

:mod:`~scratchnn.targets.target` finds the model that was named, :mod:`~scratchnn.targets.zoo` knows torchvision's.
"""

"""The operators: fake kernels, derivatives and functional entries, one module per family.

Importing this package loads the compiled library, which registers the kernels as ``torch.ops.scratchnn``.

Names in every derivation: ``x``, ``w``, ``b`` and ``y`` are input, weight, bias and output; ``dy`` is the gradient that
arrives at ``y`` (``g`` where it is long in the formulas; ``grad`` in signatures, as in torch), and ``dx``, ``dw``,
``db`` are the gradients that leave. Where a gradient is differentiated once more, ``u`` is what arrives at it, and
``d_grad`` what leaves for ``dy``.
"""

try:
    from scratchnn import _C as _C
except ImportError as error:
    raise ImportError(
        f"scratchnn's compiled kernels could not be loaded: {error}. Build them against the installed torch "
        "with `pip install --no-build-isolation -e .` in the source tree (again after torch was upgraded)."
    ) from error

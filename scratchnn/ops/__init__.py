"""The operators: fake kernels, derivatives and functional entries, one module per family.

Importing this package loads the compiled library, which registers the kernels as ``torch.ops.scratchnn``.
"""

try:
    from scratchnn import _C as _C
except ImportError as error:
    raise ImportError(
        f"scratchnn's compiled kernels could not be loaded: {error}. Build them against the installed torch "
        "with `pip install --no-build-isolation -e .` in the source tree (again after torch was upgraded)."
    ) from error

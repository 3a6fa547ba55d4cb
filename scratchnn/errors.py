"""What a command says when the person using it, not the program, has to act."""

from __future__ import annotations

import importlib


class UserError(Exception):
    """A mistake in options, paths or files, told in one sentence.

    The ``scratchnn`` command prints it as ``scratchnn: <sentence>`` and exits with status 2, without a
    traceback. Anything that is not a :class:`UserError` is a fault of the program and keeps its traceback.
    """


def require(*modules: str, extra: str) -> None:
    """Import ``modules`` now, so that a missing one is reported before work starts and not after it.

    Args:
        modules: names of optional dependencies.
        extra: the extra of this package that installs them.

    Raises:
        UserError: naming the first missing module and the command that installs it.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise UserError(
                f"the optional dependency {error.name or module} is missing, install it with: "
                f"pip install 'scratchnn[{extra}]'"
            ) from error

"""The ``scratchnn`` command, also ``python -m scratchnn``.

Each subcommand is a module with ``HELP``, ``configure(parser)`` and ``run(args) -> int``. It is imported only
when it is the one that was asked for, so that none waits for what another needs.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from scratchnn._version import __version__
from scratchnn.errors import UserError

COMMANDS = {
    "train": "scratchnn.train.command",
    "bench": "scratchnn.bench.command",
    "accuracy": "scratchnn.accuracy.command",
    "verify": "scratchnn.verify.command",
    "summary": "scratchnn.summary.command",
}

# Told here as well, so that `scratchnn --help` imports none of them.
SUMMARIES = {
    "train": "train a network on images and leave its weights, tables and curves in a folder",
    "bench": "time the layers of scratchnn and torch side by side",
    "accuracy": "measure the rounding errors of scratchnn's layers and torch's against float64",
    "verify": "prove that a model computes on scratchnn's layers what it computes on torch's",
    "summary": "show a model as a tree of layers, with what each of them is, costs and sees",
}

USER_ERROR = 2
INTERRUPTED = 130
BROKEN_PIPE = 141


class _Parser(argparse.ArgumentParser):
    """Reports a wrong option like every other mistake of a user, in one sentence."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (that of the process unless given) and return the exit status.

    0 for success, 2 for a mistake of the user (told in one sentence on stderr), 130 after an interruption, 141
    where nobody reads on.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(arguments)
    except UserError as error:
        _say(str(error))
        return USER_ERROR
    except BrokenPipeError:  # whoever read the output has seen enough, as in `scratchnn ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it exits
        return BROKEN_PIPE
    except OSError as error:
        if error.filename is None:
            raise
        _say(f"{error.filename}: {error.strerror}")
        return USER_ERROR
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED


def _run(arguments: list[str]) -> int:
    name = _choose(arguments)
    command = importlib.import_module(COMMANDS[name])
    return command.run(parser_of(name).parse_args(arguments[1:]))


def parser_of(name: str) -> argparse.ArgumentParser:
    """What reads the options of a subcommand, and tells of them."""
    command = importlib.import_module(COMMANDS[name])
    parser = _Parser(prog=f"scratchnn {name}", description=command.HELP)
    command.configure(parser)
    return parser


def _choose(arguments: list[str]) -> str:
    """The subcommand asked for; ``--help`` and ``--version`` end the process here."""
    listing = "\n".join(f"  {name:<10}{summary}" for name, summary in SUMMARIES.items())
    parser = _Parser(
        prog="scratchnn",
        description="The layers of convolutional networks, from scratch.",
        epilog=f"commands:\n{listing}\n\n'scratchnn COMMAND --help' lists the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"scratchnn {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="what to do, one of those below")
    return parser.parse_args(arguments[:1]).command


def _say(sentence: str) -> None:
    print(f"scratchnn: {' '.join(sentence.split())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

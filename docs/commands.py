"""The options of each command, as the page of the command line shows them."""

from __future__ import annotations

import argparse
import re

from scratchnn import __main__ as command


def parser_of(name: str) -> argparse.ArgumentParser:
    """That of the command, with the options that its texts name set as code."""
    parser = command.parser_of(name)
    for action in parser._actions:
        action.help = re.sub(r"--[\w-]+", r"``\g<0>``", action.help)
    return parser


accuracy = parser_of("accuracy")
bench = parser_of("bench")
summary = parser_of("summary")
train = parser_of("train")
verify = parser_of("verify")

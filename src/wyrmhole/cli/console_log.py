"""Log records of the library as lines on stderr, for the commands that open a tunnel in their own process."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import TypeVar

import click

from wyrmhole.cli.log_lines import RateLimit

AnyCommand = TypeVar("AnyCommand", bound=Callable[..., object])
OPENING = "wyrmhole.library.opening"


class OneLine(logging.Formatter):
    """Formats a record as one line.

    Control characters are escaped, because part of the text comes from remote parties.
    """

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if not text.isprintable():
            text = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
        return f"wyrmhole: {text}"


def is_shown_by_default(record: logging.LogRecord) -> bool:
    """Report whether a record is shown by default.

    The choice of the engine is not: the first line must be the address.
    """
    return record.levelno > logging.INFO or record.name != OPENING


def set_up_console(verbose: bool, quiet: bool, default: int = logging.INFO) -> None:
    """Log failures and the state of peers; with `verbose` each step, with `quiet` only errors."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine())
    handler.addFilter(RateLimit())
    if not verbose:
        handler.addFilter(is_shown_by_default)
    logger = logging.getLogger("wyrmhole")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.DEBUG if verbose else logging.ERROR if quiet else default)


def log_options(command: AnyCommand) -> AnyCommand:
    """Add the options `-v` and `-q`, which are passed as `verbose` and `quiet`."""
    command = click.option("-q", "--quiet", is_flag=True, help="Print only errors.")(command)
    return click.option("-v", "--verbose", is_flag=True, help="Print each handshake and connection.")(command)

"""What the library logs, as lines on stderr: for commands that carry a tunnel themselves."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from wyrmhole.cli.log_lines import RateLimit

AnyCommand = TypeVar("AnyCommand", bound=Callable[..., Any])
OPENING = "wyrmhole.library.opening"


class OneLine(logging.Formatter):
    """A record is one line; bytes of others that a terminal would act on are escaped."""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if not text.isprintable():
            text = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
        return f"wyrmhole: {text}"


def is_news(record: logging.LogRecord) -> bool:
    """Not which engine was chosen: the first line of a command is where it listens."""
    return record.levelno > logging.INFO or record.name != OPENING


def set_up_console(verbose: bool, quiet: bool, default: int = logging.INFO) -> None:
    """Failures and what became of peers by default; each step with `verbose`; errors only with `quiet`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine())
    handler.addFilter(RateLimit())
    if not verbose:
        handler.addFilter(is_news)
    logger = logging.getLogger("wyrmhole")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.DEBUG if verbose else logging.ERROR if quiet else default)


def log_options(command: AnyCommand) -> AnyCommand:
    """`-v` and `-q`, as arguments `verbose` and `quiet`."""
    command = click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")(command)
    return click.option("-v", "--verbose", is_flag=True, help="Print each handshake and connection.")(command)

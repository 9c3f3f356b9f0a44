"""Log lines in wireguard-go's form: `DEBUG: (wg0) 2026/01/02 15:04:05 message`. One record is one line.

A record that a remote party can provoke at will carries `extra={"rate_class": "kind subject"}`. One line per second is
written for each class, and the next line gives the number that were left out. An attacker with many subjects (source
addresses, peers) still causes at most `KIND_LINES` lines per second of one kind.
"""

from __future__ import annotations

import logging
import select
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

MAX_MESSAGE = 1000
MAX_ESCAPED = 3000
"""Limits in characters. An escaped message with its prefix fits in the 4,096 bytes that a writable pipe accepts
without blocking."""
MAX_CLASSES = 256
RATE_SECONDS = 1.0
KIND_LINES = 10
FRAMES = 6
"""Innermost stack frames that a line with an exception lists."""
WRITE_SECONDS = 0.1
"""How long to wait until the reader can accept a line."""

SILENT = logging.CRITICAL + 1
LEVELS = {"verbose": logging.DEBUG, "debug": logging.DEBUG, "error": logging.WARNING, "silent": SILENT}
"""Values of LOG_LEVEL; any other value means `error`."""


def set_up_logging(name: str, level: int) -> logging.Logger:
    """Write every log record of this process to stdout. Returns the daemon's logger."""
    # By default, logging prints a traceback to stderr for each line that it cannot write.
    logging.raiseExceptions = False
    handler = BoundedHandler(sys.stdout)
    handler.setFormatter(LineFormatter(name))
    handler.addFilter(RateLimit())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(level, logging.ERROR))
    logger = logging.getLogger("wyrmhole")
    logger.setLevel(level)
    return logger


class BoundedHandler(logging.StreamHandler[TextIO]):
    """Drops a line if the pipe or terminal does not accept it, because a stalled reader must not stall the daemon.

    A writable pipe accepts a whole line of MAX_MESSAGE characters without blocking.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        if not self._is_writable():
            self._dropped += 1
            return
        if self._dropped:
            record.msg, record.args = f"{record.getMessage()} (lines lost: {self._dropped})", None
            self._dropped = 0
        super().emit(record)

    def _is_writable(self) -> bool:
        try:
            poll = select.poll()
            poll.register(self.stream, select.POLLOUT)
            # After a lost line, do not wait for the reader again until it catches up.
            return bool(poll.poll(0 if self._dropped else WRITE_SECONDS * 1000))
        except (OSError, ValueError):
            # The stream has no descriptor (in tests) or a closed one: the write itself reports the error.
            return True


class LineFormatter(logging.Formatter):
    """Formats records with wireguard-go's two levels, and WARNING for what an operator must see by default.

    Control characters are escaped, and the length is limited.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def format(self, record: logging.LogRecord) -> str:
        level = "ERROR" if record.levelno >= logging.ERROR else "DEBUG"
        if record.levelno == logging.WARNING:
            level = "WARNING"
        when = time.strftime("%Y/%m/%d %H:%M:%S", time.localtime(record.created))
        message = record.getMessage()
        if record.exc_info is not None and record.exc_info[1] is not None:
            message += f": {_describe(record.exc_info[1])}"
        return f"{level}: ({self._name}) {when} {_clean(message)}"


def _describe(error: BaseException) -> str:
    """Return the exception and its innermost frames on one line, without values of variables."""
    frames = traceback.extract_tb(error.__traceback__)[-FRAMES:]
    frames_text = " > ".join(f"{frame.name} {frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in frames)
    return f"{type(error).__name__}: {error} [{frames_text}]"


def _clean(text: str) -> str:
    text = text if len(text) <= MAX_MESSAGE else text[:MAX_MESSAGE] + "..."
    if text.isprintable():
        return text
    escaped = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return escaped if len(escaped) <= MAX_ESCAPED else escaped[:MAX_ESCAPED] + "..."


@dataclass(slots=True)
class _Second:
    """The lines of one kind in the current second."""

    begin: float = -RATE_SECONDS
    lines: int = 0
    withheld: int = 0

    def admits(self, now: float) -> bool:
        if now - self.begin >= RATE_SECONDS:
            self.begin, self.lines = now, 0
        self.lines += 1
        return self.lines <= KIND_LINES

    def take_withheld(self) -> int:
        withheld, self.withheld = self.withheld, 0
        return withheld


class RateLimit(logging.Filter):
    """Passes one line per second of each class, and `KIND_LINES` of each kind.

    A class is named "kind" or "kind subject".
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._last: dict[str, float] = {}
        self._withheld: dict[str, int] = {}
        self._kinds: dict[str, _Second] = {}
        self._swept = -RATE_SECONDS

    def filter(self, record: logging.LogRecord) -> bool:
        rate_class = getattr(record, "rate_class", None)
        if rate_class is None:
            return True
        now = self._clock()
        if rate_class not in self._last and not self._has_room(now):
            rate_class = "all others"
        if now - self._last.get(rate_class, -RATE_SECONDS) < RATE_SECONDS:
            self._withheld[rate_class] = self._withheld.get(rate_class, 0) + 1
            return False
        kind = self._kind_of(rate_class)
        if not kind.admits(now):
            kind.withheld += 1
            return False
        self._last[rate_class] = now
        withheld = self._withheld.pop(rate_class, 0) + kind.take_withheld()
        if withheld:
            record.msg, record.args = f"{record.getMessage()} (similar lines omitted: {withheld})", None
        return True

    def _kind_of(self, rate_class: str) -> _Second:
        return self._kinds.setdefault(rate_class.partition(" ")[0], _Second())

    def _has_room(self, now: float) -> bool:
        """Report whether another class fits.

        Classes that were quiet for a second are forgotten, at most once per second.
        """
        if len(self._last) >= MAX_CLASSES and now - self._swept >= RATE_SECONDS:
            self._swept = now
            for quiet in [name for name, last in self._last.items() if now - last >= RATE_SECONDS]:
                del self._last[quiet]
                self._kind_of(quiet).withheld += self._withheld.pop(quiet, 0)
        return len(self._last) < MAX_CLASSES

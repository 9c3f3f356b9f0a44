"""Log lines in wireguard-go's form: `DEBUG: (wg0) 2026/01/02 15:04:05 message`. One record is one line.

A record whose cause others can repeat at will carries `extra={"rate_class": "kind subject"}`: of each class one line a
second is written, and the next one tells how many were not. Whoever has many subjects (source addresses, peers) still
gets no more than `KIND_LINES` lines a second of one kind.
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
"""Characters of a line. With its prefix it fits in the 4,096 bytes that a writable pipe takes without waiting."""
MAX_CLASSES = 256
RATE_SECONDS = 1.0
KIND_LINES = 10
FRAMES = 6
PATIENCE_SECONDS = 0.1
"""How long one line may wait for its reader."""

SILENT = logging.CRITICAL + 1
LEVELS = {"verbose": logging.DEBUG, "debug": logging.DEBUG, "error": logging.WARNING, "silent": SILENT}
"""What LOG_LEVEL may say; anything else is as `error`."""


def set_up_logging(name: str, level: int) -> logging.Logger:
    """Make stdout the place of all log lines of this process. Returns the logger of the daemon."""
    # A reader that went away must not make every log call print a traceback somewhere else.
    logging.raiseExceptions = False
    handler = PatientHandler(sys.stdout)
    handler.setFormatter(LineFormatter(name))
    handler.addFilter(RateLimit())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(level, logging.ERROR))
    logger = logging.getLogger("wyrmhole")
    logger.setLevel(level)
    return logger


class PatientHandler(logging.StreamHandler[TextIO]):
    """Drops lines that nobody takes: a reader that stopped, of a pipe or a terminal, must not stop the daemon.

    A pipe that is writable takes a line of MAX_MESSAGE at once.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        if not self._is_taken():
            self._dropped += 1
            return
        if self._dropped:
            record.msg, record.args = f"{record.getMessage()} ({self._dropped} lines lost before)", None
            self._dropped = 0
        super().emit(record)

    def _is_taken(self) -> bool:
        try:
            poll = select.poll()
            poll.register(self.stream, select.POLLOUT)
            # A reader that lost a line already is not waited for again.
            return bool(poll.poll(0 if self._dropped else PATIENCE_SECONDS * 1000))
        except (OSError, ValueError):
            # Not a descriptor, as in tests, or a closed one: writing tells.
            return True


class LineFormatter(logging.Formatter):
    """Write wireguard-go's two levels, and WARNING for what an operator should know without asking.

    Bytes that a terminal would act on are escaped, length is capped."""

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
    """The exception and where it came from, on one line and without values of variables."""
    frames = traceback.extract_tb(error.__traceback__)[-FRAMES:]
    places = " > ".join(f"{frame.name} {frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in frames)
    return f"{type(error).__name__}: {error} [{places}]"


def _clean(text: str) -> str:
    text = text if len(text) <= MAX_MESSAGE else text[:MAX_MESSAGE] + "..."
    if text.isprintable():
        return text
    escaped = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return escaped if len(escaped) <= MAX_ESCAPED else escaped[:MAX_ESCAPED] + "..."


@dataclass(slots=True)
class _Second:
    """Lines of one kind in the present second."""

    begin: float = -RATE_SECONDS
    lines: int = 0
    withheld: int = 0

    def takes(self, now: float) -> bool:
        if now - self.begin >= RATE_SECONDS:
            self.begin, self.lines = now, 0
        self.lines += 1
        return self.lines <= KIND_LINES

    def take_withheld(self) -> int:
        withheld, self.withheld = self.withheld, 0
        return withheld


class RateLimit(logging.Filter):
    """One line a second of each class, `KIND_LINES` of each kind. Classes are few, or named "kind subject"."""

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
        if not kind.takes(now):
            kind.withheld += 1
            return False
        self._last[rate_class] = now
        withheld = self._withheld.pop(rate_class, 0) + kind.take_withheld()
        if withheld:
            record.msg, record.args = f"{record.getMessage()} ({withheld} more before)", None
        return True

    def _kind_of(self, rate_class: str) -> _Second:
        return self._kinds.setdefault(rate_class.partition(" ")[0], _Second())

    def _has_room(self, now: float) -> bool:
        """Whether another class fits. Those that were quiet for a second are forgotten, at most once a second."""
        if len(self._last) >= MAX_CLASSES and now - self._swept >= RATE_SECONDS:
            self._swept = now
            for quiet in [each for each, last in self._last.items() if now - last >= RATE_SECONDS]:
                del self._last[quiet]
                self._kind_of(quiet).withheld += self._withheld.pop(quiet, 0)
        return len(self._last) < MAX_CLASSES

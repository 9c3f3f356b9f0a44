"""Which engine, and why."""

from __future__ import annotations

from collections.abc import Callable

from wyrmhole.engine.contract import Engine
from wyrmhole.engine.portable import PortableEngine

KINDS = ("auto", "portable", "native")


class EngineUnavailable(Exception):
    """The engine that was asked for is not in this installation; the message says what to do."""


def select_engine(kind: str = "auto", *, clock: Callable[[], int]) -> tuple[Engine, str]:
    """The engine for `auto`, `portable` or `native`, and the reason in one sentence for the log.
    Raises EngineUnavailable. `clock` gives boottime nanoseconds."""
    if kind not in KINDS:
        raise EngineUnavailable(f"there is no engine {kind!r}: use auto, portable or native")
    if kind == "native":
        raise EngineUnavailable("the native engine is not in this installation: use --engine portable")
    reason = "the portable engine was asked for" if kind == "portable" else "no native engine is installed"
    return PortableEngine(clock), f"Portable engine: {reason}"

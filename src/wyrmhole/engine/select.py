"""The choice of an engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wyrmhole.engine.contract import Engine

if TYPE_CHECKING:
    from wyrmhole.engine.native import NativeEngine

KINDS = ("auto", "portable", "native")

HOW_TO_BUILD = "install Rust 1.85 or newer, then reinstall wyrmhole from source"


class EngineUnavailable(Exception):
    """The requested engine is not in this installation; the message has the remedy."""


@dataclass(frozen=True, slots=True)
class NativeOptions:
    """Options that only the native engine uses.

    There are `workers` threads, each with its own TUN queue and sockets. `aead` is auto, aws-lc or vector
    (libIPSec_MB). With `spins`, a worker spins briefly before it sleeps.
    """

    workers: int = 1
    aead: str = "auto"
    spins: bool = True


def select_engine(
    kind: str = "auto", *, clock: Callable[[], int], options: NativeOptions | None = None
) -> tuple[Engine, str]:
    """Create the engine for `auto`, `portable` or `native`. Return it with the reason for the choice, for the log.

    `clock` returns boottime nanoseconds. Raises EngineUnavailable.
    """
    if kind not in KINDS:
        raise EngineUnavailable(f"unknown engine {kind!r}: use auto, portable or native")
    if kind == "portable":
        return _portable(clock), "Portable engine: requested"
    try:
        engine = _native(clock, options or NativeOptions())
    except ImportError as error:
        if kind == "native":
            raise EngineUnavailable(f"the native engine is not available ({error}): {HOW_TO_BUILD}") from error
        return _portable(clock), f"Portable engine: the native engine is not available ({error}); {HOW_TO_BUILD}"
    except ValueError as error:
        raise EngineUnavailable(str(error)) from error
    reason = "requested" if kind == "native" else "installed"
    return engine, f"Native engine with {engine.aead}: {reason}"


def has_native() -> bool:
    """Whether the native engine was built."""
    try:
        _native_class()
    except ImportError:
        return False
    return True


# Imported only when needed: the time to start is a visible part of `wg-quick up`.


def _portable(clock: Callable[[], int]) -> Engine:
    from wyrmhole.engine.portable import PortableEngine

    return PortableEngine(clock)


def _native(clock: Callable[[], int], options: NativeOptions) -> NativeEngine:
    return _native_class()(clock, workers=options.workers, aead=options.aead, spins=options.spins)


def _native_class() -> type[NativeEngine]:
    from wyrmhole.engine.native import NativeEngine

    return NativeEngine

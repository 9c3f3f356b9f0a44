"""Which engine, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wyrmhole.engine.contract import Engine

if TYPE_CHECKING:
    from wyrmhole.engine.native import NativeEngine

KINDS = ("auto", "portable", "native")

HOW_TO_GET_IT = "to have it, install Rust 1.85 or newer and install wyrmhole again from its sources"


class EngineUnavailable(Exception):
    """The engine that was asked for is not in this installation; the message says what to do."""


@dataclass(frozen=True, slots=True)
class NativeOptions:
    """What only the native engine heeds. `workers` threads, each with a TUN queue and sockets of its own; `aead` is
    auto, aws-lc or vector (libIPSec_MB); `spins`: a worker looks for more for a moment before it sleeps."""

    workers: int = 1
    aead: str = "auto"
    spins: bool = True


def select_engine(
    kind: str = "auto", *, clock: Callable[[], int], options: NativeOptions | None = None
) -> tuple[Engine, str]:
    """The engine for `auto`, `portable` or `native`, and the reason in one sentence for the log.
    Raises EngineUnavailable. `clock` gives boottime nanoseconds."""
    if kind not in KINDS:
        raise EngineUnavailable(f"there is no engine {kind!r}: use auto, portable or native")
    if kind == "portable":
        return _portable(clock), "Portable engine: it was asked for"
    try:
        engine = _native(clock, options or NativeOptions())
    except ImportError as error:
        if kind == "native":
            raise EngineUnavailable(f"there is no native engine ({error}): {HOW_TO_GET_IT}") from error
        return _portable(clock), f"Portable engine: there is no native one ({error}); {HOW_TO_GET_IT}"
    except ValueError as error:
        raise EngineUnavailable(str(error)) from error
    why = "it was asked for" if kind == "native" else "it is installed"
    return engine, f"Native engine with {engine.aead}: {why}"


def has_native() -> bool:
    """Whether the native engine was built."""
    try:
        _native_class()
    except ImportError:
        return False
    return True


# Imported when asked for: starting is a visible wait of `wg-quick up`.


def _portable(clock: Callable[[], int]) -> Engine:
    from wyrmhole.engine.portable import PortableEngine

    return PortableEngine(clock)


def _native(clock: Callable[[], int], options: NativeOptions) -> NativeEngine:
    return _native_class()(clock, workers=options.workers, aead=options.aead, spins=options.spins)


def _native_class() -> type[NativeEngine]:
    from wyrmhole.engine.native import NativeEngine

    return NativeEngine

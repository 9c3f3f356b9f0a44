"""One line of `doctor`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Verdict:
    level: str
    """good, poor or bad."""
    what: str
    found: str
    advice: str = ""


def reason(error: Exception) -> str:
    """The cause in words, without the number of an errno."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__

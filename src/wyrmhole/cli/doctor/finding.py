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
    """Return the cause of an error as text, without the errno number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__

"""One line of a diagnosis: what was looked at, what was found, and what to do if it is not good."""

from __future__ import annotations

from dataclasses import dataclass

GOOD, POOR, BAD, NOTE = "good", "poor", "bad", "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """`level`: good, poor (works, but), bad (does not work) or note (could not be tried)."""

    step: str
    level: str
    found: str
    advice: str = ""
    peer: str = ""

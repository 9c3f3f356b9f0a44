"""One line of a diagnosis: the step, what was found, and what to do if it is not good."""

from __future__ import annotations

from dataclasses import dataclass

GOOD, POOR, BAD, NOTE = "good", "poor", "bad", "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """`level` is good, poor (works, with a drawback), bad (does not work) or note (could not be tested)."""

    step: str
    level: str
    found: str
    advice: str = ""
    peer: str = ""

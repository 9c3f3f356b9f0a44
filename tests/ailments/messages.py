"""The messages in the first column of a document's tables, as patterns for real output."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_QUOTED = re.compile(r"`([^`]+)`")
_VARIABLE = re.compile(r"…|\d+(?:\\?\.\d+)*")
"""The variable parts of a message: an omission, and numbers, including addresses and ports."""


@dataclass(frozen=True)
class Message:
    text: str

    @property
    def pattern(self) -> str:
        parts = []
        end = 0
        for match in _VARIABLE.finditer(self.text):
            parts += [re.escape(self.text[end : match.start()]), ".*?" if match[0] == "…" else r"[\d.]+"]
            end = match.end()
        return "".join([*parts, re.escape(self.text[end:])])


def messages(document: str) -> list[Message]:
    """Return the messages in order, without duplicates."""
    return list(dict.fromkeys(map(Message, _quoted(document))))


def _quoted(document: str) -> Iterator[str]:
    """Yield the quotes of the tables whose first column is headed `what you see`."""
    is_table = False
    for line in document.splitlines():
        if line.startswith("| what you see"):
            is_table = True
        elif not line.startswith("|"):
            is_table = False
        elif is_table and not line.startswith("|---"):
            yield from _QUOTED.findall(line.split("|")[1])

"""The lines of a configuration file's sections: read values from them, and edit them when values change.

`find_edits` compares a value with its lines, key by key. Lines whose value did not change are kept byte for byte; only
a changed key is written again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from wyrmhole.control.config.values import INTERFACE_KEYS, NAME_KEY, PEER_KEYS, WgKey, remove_blanks

KEYS: dict[str, dict[str, WgKey]] = {
    "interface": {key.name.lower(): key for key in INTERFACE_KEYS},
    "peer": {key.name.lower(): key for key in PEER_KEYS},
    "": {},
}
HEADERS = {"[interface]": "interface", "[peer]": "peer"}
TITLES = {"interface": "[Interface]", "peer": "[Peer]"}


@dataclass(slots=True)
class Line:
    number: int
    raw: str = field(repr=False)
    key: str = ""
    """In lower case; empty for a comment, a blank line or a header."""
    value: str = field(default="", repr=False)


@dataclass(slots=True)
class SectionLines:
    """The lines of one section, including its header."""

    kind: str
    number: int
    lines: list[Line] = field(default_factory=list)
    owner: Any = None


@dataclass(slots=True)
class Edits:
    replaced: dict[int, list[str]] = field(default_factory=dict)
    """New lines by the number of the line that they replace."""
    added: list[str] = field(default_factory=list)


def find_edits(kind: str, owner: object, lines_of: Mapping[str, list[Line]], ending: str) -> Edits:
    """Compare a value with its lines, given by key. The new lines of a changed key replace its first line."""
    edits = Edits()
    for name, key in KEYS[kind].items():
        lines, value = lines_of.get(name, []), getattr(owner, key.attribute)
        if _is_unchanged(key, lines, value):
            continue
        texts = [_emit_line(key, text) + ending for text in key.write(value)]
        edits.replaced |= {line.number: [] for line in lines}
        if lines:
            edits.replaced[lines[0].number] = texts
        else:
            edits.added += texts
    return edits


def by_key(sections: Iterable[SectionLines]) -> dict[str, list[Line]]:
    """Map each key, in lower case, to its lines in all sections of one value."""
    found: dict[str, list[Line]] = {}
    for section in sections:
        for line in section.lines:
            if line.key:
                found.setdefault(line.key, []).append(line)
    return found


def emit_new(kind: str, owner: object, ending: str) -> list[str]:
    """Emit a section that was not read from a file."""
    texts = [_emit_line(key, text) for key in KEYS[kind].values() for text in key.write(getattr(owner, key.attribute))]
    return [text + ending for text in (TITLES[kind], *texts)]


def emit_section(section: SectionLines, edits: Edits) -> list[str]:
    """Emit a section with its edits. The first of several sections of one value gets the added lines."""
    replaced, added, edits.added = edits.replaced, edits.added, []
    out: list[str] = []
    last_key = max(index for index, line in enumerate(section.lines) if line.key or line.number == section.number)
    for index, line in enumerate(section.lines):
        out += replaced.get(line.number, [line.raw])
        out += added if index == last_key else []
    return out


def _is_unchanged(key: WgKey, lines: list[Line], value: object) -> bool:
    """Report whether the lines already have this value. Lines that cannot be parsed count as unchanged."""
    try:
        return bool(_normalise(_value_of(key, lines)) == _normalise(value))
    except ValueError:
        return True


def _normalise(value: object) -> object:
    """Map False and an empty list to None: a missing key reads like them. An explicit 0 is kept."""
    return None if value is False or value == [] else value


def _value_of(key: WgKey, lines: list[Line]) -> Any:
    """Return the value of a key, or None if it has no lines or an empty list."""
    values = [key.read(line.value) for line in lines]
    if key.many:
        return [item for value in values for item in value] or None
    return values[-1] if values else None


def _emit_line(key: WgKey, text: str) -> str:
    ends_at_comment = key is not NAME_KEY and not key.is_hook
    if "\n" in text or "\r" in text or "\0" in text or (ends_at_comment and "#" in text):
        raise ValueError(f"{key.name} cannot be written: a line break or a '#' would end its value")
    return f"{key.name} = {text}"


def find_key(kind: str, name: str) -> WgKey | None:
    """Find a key by its name in lower case. wg(8) accepts blanks within a name, wg-quick(8) does not."""
    key = KEYS[kind].get(remove_blanks(name))
    return None if key is None or (key.is_quick and key.name.lower() != name) else key


def read_values(kind: str, sections: Iterable[SectionLines]) -> dict[str, Any]:
    """Return the values in the sections of one value, by attribute."""
    keys = KEYS[kind]
    values = {keys[name].attribute: _value_of(keys[name], ls) for name, ls in by_key(sections).items() if name in keys}
    return {attribute: value for attribute, value in values.items() if value is not None}


def cut_comment_block(lines: list[Line]) -> list[Line]:
    """Remove the comments directly above a header from the section before it, and return them."""
    start = len(lines)
    while start and lines[start - 1].raw.lstrip().startswith("#"):
        start -= 1
    if start and lines[start - 1].raw.strip():
        return []
    block = lines[start:]
    del lines[start:]
    return block

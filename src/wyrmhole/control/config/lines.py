"""The lines of a configuration file's sections: what they say of a value, and how they change with it.

`edits` compares a value with its lines key by key. A line whose value did not change is left as it came, and only a
changed key gets its lines anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from wyrmhole.control.config.values import INTERFACE_KEYS, NAME_KEY, PEER_KEYS, Key, remove_blanks

KEYS: dict[str, dict[str, Key]] = {
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
    """The lines of one section, its header among them."""

    kind: str
    number: int
    lines: list[Line] = field(default_factory=list)
    owner: Any = None


@dataclass(slots=True)
class Edits:
    replaced: dict[int, list[str]] = field(default_factory=dict)
    """By line number."""
    added: list[str] = field(default_factory=list)


def find_edits(kind: str, owner: object, lines_of: Mapping[str, list[Line]], ending: str) -> Edits:
    """What has to change in the lines of a value, given by key. The first line of a changed key gets its lines."""
    edits = Edits()
    for name, key in KEYS[kind].items():
        lines, value = lines_of.get(name, []), getattr(owner, key.attribute)
        if _says(key, lines, value):
            continue
        texts = [_emit_line(key, text) + ending for text in key.write(value)]
        edits.replaced |= {line.number: [] for line in lines}
        if lines:
            edits.replaced[lines[0].number] = texts
        else:
            edits.added += texts
    return edits


def by_key(sections: Iterable[SectionLines]) -> dict[str, list[Line]]:
    """By key, in lower case, the lines of all sections that say something of one value."""
    found: dict[str, list[Line]] = {}
    for section in sections:
        for line in section.lines:
            if line.key:
                found.setdefault(line.key, []).append(line)
    return found


def emit_new(kind: str, owner: object, ending: str) -> list[str]:
    """A section that came from no file."""
    texts = [_emit_line(key, text) for key in KEYS[kind].values() for text in key.write(getattr(owner, key.attribute))]
    return [text + ending for text in (TITLES[kind], *texts)]


def emit_section(section: SectionLines, edits: Edits) -> list[str]:
    """Uses up the lines to add: of several sections of one value the first gets them."""
    replaced, added, edits.added = edits.replaced, edits.added, []
    out: list[str] = []
    place = max(index for index, line in enumerate(section.lines) if line.key or line.number == section.number)
    for index, line in enumerate(section.lines):
        out += replaced.get(line.number, [line.raw])
        out += added if index == place else []
    return out


def _says(key: Key, lines: list[Line], value: object) -> bool:
    """Whether the lines have that value already. Lines that cannot be read are left as they are."""
    try:
        return bool(_unsaid(_value_of(key, lines)) == _unsaid(value))
    except ValueError:
        return True


def _unsaid(value: object) -> object:
    """False and an empty list are what a file says that does not have the key; 0 is not."""
    return None if value is False or value == [] else value


def _value_of(key: Key, lines: list[Line]) -> Any:
    """None when the lines say nothing."""
    values = [key.read(line.value) for line in lines]
    if key.many:
        return [item for value in values for item in value] or None
    return values[-1] if values else None


def _emit_line(key: Key, text: str) -> str:
    ends_at_comment = key is not NAME_KEY and not key.is_hook
    if "\n" in text or "\r" in text or "\0" in text or (ends_at_comment and "#" in text):
        raise ValueError(f"{key.name} cannot be written: a line break or a '#' would end its value")
    return f"{key.name} = {text}"


def find_key(kind: str, name: str) -> Key | None:
    """By its name in lower case. wg(8) finds its keys with blanks in them too, wg-quick(8) does not."""
    key = KEYS[kind].get(remove_blanks(name))
    return None if key is None or (key.is_quick and key.name.lower() != name) else key


def read_values(kind: str, sections: Iterable[SectionLines]) -> dict[str, Any]:
    """What the sections say of one value, by attribute."""
    keys = KEYS[kind]
    values = {keys[name].attribute: _value_of(keys[name], ls) for name, ls in by_key(sections).items() if name in keys}
    return {attribute: value for attribute, value in values.items() if value is not None}


def cut_comment_block(lines: list[Line]) -> list[Line]:
    """Take the comments that stand right above a header off the section before it."""
    start = len(lines)
    while start and lines[start - 1].raw.lstrip().startswith("#"):
        start -= 1
    if start and lines[start - 1].raw.strip():
        return []
    block = lines[start:]
    del lines[start:]
    return block

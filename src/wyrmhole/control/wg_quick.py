"""The configuration file of wg(8) and wg-quick(8): read into values and written back without losing anything.

    config = Config.load("/etc/wireguard/wg0.conf")
    config.interface.listen_port = 51820
    config.peers.append(ConfigPeer(public_key, allowed_ips=[Prefix.parse("10.0.0.9/32")], name="laptop"))
    text = config.emit()

Theory of operation. A file is kept as its lines, grouped in sections; `interface` and `peers` are values read from
them. `emit` reads each key's lines once more and compares with the value of now: a line whose value did not change is
written as it came, comment, blanks and order included, and only a changed key gets its lines anew. So nobody keeps
account of edits, and text that was not edited comes back byte for byte.

A comment block belongs to the section below it when a blank line or the file's start is above it.

Sizes: a file of at most MAX_SIZE bytes and MAX_PEERS peers; within these no list is limited further.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import stat
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from wyrmhole.control.wg_values import (
    IGNORED_KEYS,
    INTERFACE_KEYS,
    NAME_KEY,
    OBFUSCATION_KEYS,
    PEER_KEYS,
    Address,
    ConfigEndpoint,
    DnsEntry,
    Key,
)
from wyrmhole.errors import ConfigFileError
from wyrmhole.protocol.keys import PresharedKey, PrivateKey, PublicKey
from wyrmhole.wire.prefix import Prefix

MAX_SIZE = 64 << 20
"""Bytes of a file: as much as one operation of the UAPI, into which a file goes."""

MAX_PEERS = 1 << 16
"""More than any published use of one interface; 65,536 sections with every key fit in MAX_SIZE."""

MAX_ERRORS = 100
"""More are not collected: nobody reads them."""

_NAME_COMMENT = re.compile(r"\s*#\s*(?:friendly_name|name)\s*=\s*([^\r\0]*?)\s*", re.IGNORECASE)
"""A comment with what no line can hold is no name, or the name could not be written again."""
_KEY_MATERIAL = re.compile(r"[A-Za-z0-9+/]{40}")
_INTERFACE_NAME = re.compile(r"(?:.*/)?([a-zA-Z0-9_=+.-]{1,15})\.conf", re.DOTALL)


class ExposedFileWarning(UserWarning):
    """Others on this machine may read a file with keys."""


@dataclass(slots=True)
class ConfigInterface:
    """The [Interface] section. None: the file does not say."""

    private_key: PrivateKey | None = None
    listen_port: int | None = None
    """0 to 65535; 0: any."""
    fwmark: int | None = None
    """32 bits; 0: off."""
    addresses: list[Address] = field(default_factory=list)
    dns: list[DnsEntry] = field(default_factory=list)
    mtu: int | None = None
    table: int | str | None = None
    """A number, `auto`, `off`, or a name of /etc/iproute2/rt_tables; None means `auto`."""
    save_config: bool = False
    pre_up: list[str] = field(default_factory=list, repr=False)
    post_up: list[str] = field(default_factory=list, repr=False)
    pre_down: list[str] = field(default_factory=list, repr=False)
    post_down: list[str] = field(default_factory=list, repr=False)

    @property
    def dns_servers(self) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
        return [entry for entry in self.dns if not isinstance(entry, str)]

    @property
    def dns_search(self) -> list[str]:
        return [entry for entry in self.dns if isinstance(entry, str)]


@dataclass(slots=True)
class ConfigPeer:
    """A [Peer] section. None: the file does not say."""

    public_key: PublicKey
    preshared_key: PresharedKey | None = None
    endpoint: ConfigEndpoint | None = None
    allowed_ips: list[Prefix] = field(default_factory=list)
    persistent_keepalive: int | None = None
    """Seconds; 0: off."""
    name: str | None = None
    """Of `# friendly_name = `."""


Section = ConfigInterface | ConfigPeer


@dataclass(slots=True)
class _Line:
    number: int
    raw: str = field(repr=False)
    key: str = ""
    """In lower case; empty for a comment, a blank line or a header."""
    value: str = field(default="", repr=False)


@dataclass(slots=True)
class _Lines:
    """The lines of one section, its header among them."""

    kind: str
    number: int
    lines: list[_Line] = field(default_factory=list)
    owner: Section | None = None


_KEYS: dict[str, dict[str, Key]] = {
    "interface": {key.name.lower(): key for key in INTERFACE_KEYS},
    "peer": {key.name.lower(): key for key in PEER_KEYS},
    "": {},
}
_HEADERS = {"[interface]": "interface", "[peer]": "peer"}
_TITLES = {"interface": "[Interface]", "peer": "[Peer]"}


class Config:
    """One file. `interface` and the list `peers` may be changed; `emit` gives the text."""

    def __init__(
        self, interface: ConfigInterface | None = None, peers: Iterable[ConfigPeer] = (), *, source: str = "<config>"
    ) -> None:
        self.interface = ConfigInterface() if interface is None else interface
        self.peers = list(peers)
        self.source = source
        """The file's name, for messages."""
        self._sections: list[_Lines] = []
        self._ends_with_newline = True

    @classmethod
    def parse(cls, text: str, *, source: str = "<config>") -> Config:
        """Raises ConfigFileError, which says file, line and what was expected, for the first thing wrong."""
        config, errors = cls.parse_all(text, source=source)
        if errors:
            raise errors[0]
        return config

    @classmethod
    def parse_all(cls, text: str, *, source: str = "<config>") -> tuple[Config, list[ConfigFileError]]:
        """What could be read, and everything that was wrong, in the order of lines: for a linter."""
        reader = _Reader(source)
        return reader.read(text), sorted(reader.errors, key=lambda error: error.line)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Config:
        """Read a file; a pipe does too. Raises OSError and ConfigFileError; warns with ExposedFileWarning."""
        text, exposure = read_file(path)
        if exposure:
            warnings.warn(exposure, ExposedFileWarning, stacklevel=2)
        return cls.parse(text, source=os.fspath(path))

    def emit(self) -> str:
        """The text. Raises ValueError for a value that no line can hold: a line break, a command with a `#`."""
        lines = self._emit_lines()
        count = sum(len(section.lines) for section in self._sections)
        is_open = not self._ends_with_newline and len(lines) <= count
        return "\n".join(lines) + ("" if is_open or not lines else "\n")

    def line_of(self, section: Section, key: str = "") -> int:
        """The number of the line that last said `key` of a section, else of its header; 0: it came from no file."""
        for lines in self._sections:
            if lines.owner is section:
                numbers = [line.number for line in lines.lines if key and line.key == key.lower()]
                return numbers[-1] if numbers else lines.number
        return 0

    def repeated_keys(self) -> Iterator[tuple[int, str]]:
        """Line and name of each key that a later line of its section makes void."""
        for section in self._sections:
            for key in _KEYS[section.kind].values():
                found = [line for line in section.lines if line.key == key.name.lower()]
                if not key.many and key is not NAME_KEY:
                    yield from ((line.number, key.name) for line in found[:-1])

    def values_of(self, key: str) -> Iterator[tuple[int, str]]:
        """Line and text of every readable value of a key, in the order of the file."""
        for section in self._sections:
            yield from ((line.number, line.value) for line in section.lines if line.key == key.lower())

    def commented_hooks(self) -> Iterator[tuple[int, str, str]]:
        """Line, key and comment of each command that a `#` cuts off, as it does for wg-quick(8)."""
        hooks = {key.name.lower(): key.name for key in INTERFACE_KEYS if key.is_hook}
        for section in self._sections:
            for line in section.lines:
                if line.key in hooks and "#" in line.raw:
                    yield line.number, hooks[line.key], line.raw[line.raw.index("#") :].strip()

    def __eq__(self, other: object) -> bool:
        """By what the files say, not by how they are written."""
        if not isinstance(other, Config):
            return NotImplemented
        return (self.interface, self.peers) == (other.interface, other.peers)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Config({self.source!r}, {len(self.peers)} peers)"

    # Writing

    def _emit_lines(self) -> list[str]:
        ending = "\r" if self._has_carriage_returns else ""
        known = {id(lines.owner) for lines in self._sections if lines.owner is not None}
        kept = {id(self.interface), *map(id, self.peers)}
        out: list[str] = []
        if id(self.interface) not in known and self.interface != ConfigInterface():
            out += _emit_section(_Lines("interface", 0, owner=self.interface), ending)
        for lines in self._sections:
            if lines.owner is None or id(lines.owner) in kept:
                out += _emit_section(lines, ending)
        for peer in self.peers:
            if id(peer) not in known:
                out += [ending] if out and out[-1].strip() else []
                out += _emit_section(_Lines("peer", 0, owner=peer), ending)
        return out

    @property
    def _has_carriage_returns(self) -> bool:
        return any(line.raw.endswith("\r") for section in self._sections for line in section.lines[:1])


def _emit_section(section: _Lines, ending: str) -> list[str]:
    if section.owner is None:
        return [line.raw for line in section.lines]
    replaced: dict[int, list[str]] = {}
    added: list[str] = [] if section.lines else [_TITLES[section.kind] + ending]
    for name, key in _KEYS[section.kind].items():
        lines = [line for line in section.lines if line.key == name]
        value = getattr(section.owner, key.attribute)
        if _says(key, lines, value):
            continue
        texts = [_emit_line(key, text) + ending for text in key.write(value)]
        replaced |= {line.number: [] for line in lines}
        if lines:
            replaced[lines[0].number] = texts
        else:
            added += texts
    out: list[str] = []
    place = max(
        (index for index, line in enumerate(section.lines) if line.key or line.number == section.number), default=-1
    )
    for index, line in enumerate(section.lines):
        out += replaced.get(line.number, [line.raw])
        out += added if index == place else []
    return out if place >= 0 else out + added


def _says(key: Key, lines: list[_Line], value: object) -> bool:
    """Whether the lines have that value already. Lines that cannot be read are left as they are."""
    try:
        return bool(_unsaid(_value_of(key, lines)) == _unsaid(value))
    except ValueError:
        return True


def _unsaid(value: object) -> object:
    """False and an empty list are what a file says that does not have the key; 0 is not."""
    return None if value is False or value == [] else value


def _value_of(key: Key, lines: list[_Line]) -> Any:
    """None when the lines say nothing."""
    values = [key.read(line.value) for line in lines]
    if key.many:
        return [item for value in values for item in value] or None
    return values[-1] if values else None


def _emit_line(key: Key, text: str) -> str:
    if "\n" in text or "\r" in text or "\0" in text or (key is not NAME_KEY and "#" in text):
        raise ValueError(f"{key.name} cannot be written: a line break or a '#' would end its value")
    return f"{key.name} = {text}"


# Reading


class _Reader:
    """Reads one file. What is wrong is collected in `errors`, at most MAX_ERRORS of them."""

    def __init__(self, source: str) -> None:
        self.errors: list[ConfigFileError] = []
        self._source = source
        self._sections = [_Lines("", 0)]

    def read(self, text: str) -> Config:
        config = Config(source=self._source)
        if text.startswith("\ufeff"):
            self._complain(1, "the file begins with a byte order mark: save it as UTF-8 without one")
            text = text[1:]
        for number, raw in enumerate(text.removesuffix("\n").split("\n") if text else (), 1):
            self._take(number, raw)
        config._sections = self._sections
        config._ends_with_newline = not text or text.endswith("\n")
        self._make_values(config)
        return config

    def _complain(self, line: int, message: str) -> None:
        if len(self.errors) < MAX_ERRORS:
            self.errors.append(ConfigFileError(self._source, line, message))

    def _take(self, number: int, raw: str) -> None:
        content = raw.partition("#")[0].strip()
        line = _Line(number, raw)
        if content.startswith("["):
            self._begin_section(line, content)
            return
        self._sections[-1].lines.append(line)
        if content:
            self._take_key(line, content)
        elif (comment := _NAME_COMMENT.fullmatch(raw)) is not None:
            line.key, line.value = NAME_KEY.name.lower(), comment[1]

    def _begin_section(self, line: _Line, content: str) -> None:
        kind = _HEADERS.get("".join(content.split()).lower(), "")
        if not kind:
            self._complain(line.number, "expected [Interface] or [Peer] as the header of a section")
        if kind == "interface" and any(section.kind == kind for section in self._sections):
            self._complain(line.number, "a second [Interface] section: a file has one")
        above = self._sections[-1].lines
        self._sections.append(_Lines(kind, line.number, [*_cut_comment_block(above), line]))

    def _take_key(self, line: _Line, content: str) -> None:
        name, separator, value = content.partition("=")
        name, line.value = name.strip().lower(), value.strip()
        kind = self._sections[-1].kind
        if not separator:
            self._complain(line.number, "expected `Key = value`")
        elif name in _KEYS[kind]:
            line.key = name
            self._check(_KEYS[kind][name], line)
        elif name not in IGNORED_KEYS and (kind or len(self._sections) == 1):
            self._complain(line.number, _explain_unknown(name, kind))

    def _check(self, key: Key, line: _Line) -> None:
        try:
            if "\0" in line.value:
                raise ValueError("text without NUL bytes")
            key.read(line.value)
        except ValueError as error:
            said = "" if key.is_secret or key.attribute == "public_key" else f", not {_quote(line.value)}"
            self._complain(line.number, f"{key.name}: expected {error}{said}")
            line.key = ""

    # Values

    def _make_values(self, config: Config) -> None:
        for section in self._sections:
            if section.kind == "interface":
                section.owner = config.interface
                _fill(section, _values(section))
            elif section.kind == "peer":
                self._make_peer(config, section)

    def _make_peer(self, config: Config, section: _Lines) -> None:
        values = _values(section)
        if "public_key" not in values:
            if not any(error.line in {line.number for line in section.lines} for error in self.errors):
                self._complain(section.number, "a [Peer] section needs a PublicKey")
        elif len(config.peers) == MAX_PEERS:
            self._complain(section.number, f"more than {MAX_PEERS} peers")
        else:
            section.owner = ConfigPeer(values["public_key"])
            _fill(section, values)
            config.peers.append(section.owner)


def _values(section: _Lines) -> dict[str, Any]:
    found: dict[str, list[_Line]] = {}
    for line in section.lines:
        if line.key:
            found.setdefault(line.key, []).append(line)
    keys = _KEYS[section.kind]
    values = {keys[name].attribute: _value_of(keys[name], lines) for name, lines in found.items() if name in keys}
    return {attribute: value for attribute, value in values.items() if value is not None}


def _fill(section: _Lines, values: dict[str, Any]) -> None:
    for attribute, value in values.items():
        setattr(section.owner, attribute, value)


def _cut_comment_block(lines: list[_Line]) -> list[_Line]:
    """Take the comments that stand right above a header off the section before it."""
    start = len(lines)
    while start and lines[start - 1].raw.lstrip().startswith("#"):
        start -= 1
    if start and lines[start - 1].raw.strip():
        return []
    block = lines[start:]
    del lines[start:]
    return block


def _explain_unknown(name: str, kind: str) -> str:
    if name in OBFUSCATION_KEYS and kind == "interface":
        return f"{name} is of AmneziaWG, whose messages differ: use a peer and a file without its keys"
    if not kind:
        return "expected [Interface] or [Peer] before the first key"
    other = "peer" if kind == "interface" else "interface"
    if name in _KEYS[other]:
        return f"{_KEYS[other][name].name} belongs in {_TITLES[other]}, not in {_TITLES[kind]}"
    known = [key.name for key in _KEYS[kind].values() if key is not NAME_KEY]
    close = difflib.get_close_matches(name, [key.lower() for key in known], 1)
    meant = f", did you mean {_KEYS[kind][close[0]].name}?" if close else f": {', '.join(known)} are"
    return f"{_quote(name)} is not a key of {_TITLES[kind]}{meant}"


def _quote(text: str) -> str:
    """For a message. What may be a key in a wrong place is not repeated."""
    if _KEY_MATERIAL.search(text):
        return "what is there (it looks like a key)"
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


# Files


def read_file(path: str | os.PathLike[str]) -> tuple[str, str | None]:
    """The text of a file or pipe and, if others may read it, a sentence that says so.

    Raises OSError, and ConfigFileError for a file too large or not UTF-8.
    """
    name = os.fspath(path)
    with open(path, "rb") as file:
        exposure = _exposure(name, os.fstat(file.fileno()))
        data = file.read(MAX_SIZE + 1)
    if len(data) > MAX_SIZE:
        raise ConfigFileError(name, 0, f"larger than {MAX_SIZE >> 20} MiB, which no configuration is")
    try:
        return data.decode(), exposure
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigFileError(name, line, "expected text in UTF-8") from None


def _exposure(path: str, status: os.stat_result) -> str | None:
    """As wg-quick(8) looks at it: the rights of others on the file, unless its folder keeps them out."""
    if not stat.S_ISREG(status.st_mode):
        return None
    folder = os.stat(os.path.dirname(os.path.realpath(path)))
    if not status.st_mode & folder.st_mode & 0o007:
        return None
    return f"{path} is accessible to everyone on this machine and may hold keys: chmod 600 {path}"


def interface_name(path: str | os.PathLike[str]) -> str:
    """The interface that wg-quick(8) names after a file. Raises ValueError."""
    match = _INTERFACE_NAME.fullmatch(os.fspath(path))
    if match is None:
        raise ValueError(f"{os.fspath(path)}: expected the name of an interface, up to 15 characters, and .conf")
    return match[1]

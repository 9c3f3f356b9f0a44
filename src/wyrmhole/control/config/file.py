"""The configuration file of wg(8) and wg-quick(8), which is read into values and written back without loss.

    config = Config.load("/etc/wireguard/wg0.conf")
    config.interface.listen_port = 51820
    config.peers.append(ConfigPeer(public_key, allowed_ips=[Prefix.parse("10.0.0.9/32")], name="laptop"))
    text = config.emit()

Theory of operation: a file is kept as its lines, grouped in sections; `interface` and `peers` are values read from
them. `emit` reads each key's lines again and compares the result with the present value. Lines whose value did not
change are written unchanged, with comment, blanks and order; only a changed key is written again. So edits need no
bookkeeping, and text that was not edited comes back byte for byte.

A comment block belongs to the section below it if a blank line or the start of the file is above it.

Only values are checked. Bytes that are not UTF-8 become lone surrogates (`surrogateescape`), so that a comment in any
encoding is written back unchanged. Several [Interface] sections are merged, like in wg(8).

Limits: MAX_SIZE bytes and MAX_PEERS peers per file. Lists are not limited further.
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

from wyrmhole.control.config.lines import (
    HEADERS,
    KEYS,
    TITLES,
    Edits,
    Line,
    SectionLines,
    by_key,
    cut_comment_block,
    emit_new,
    emit_section,
    find_edits,
    find_key,
    read_values,
)
from wyrmhole.control.config.values import (
    BLANKS,
    IGNORED_KEYS,
    INTERFACE_KEYS,
    NAME_KEY,
    OBFUSCATION_KEYS,
    Address,
    ConfigEndpoint,
    DnsEntry,
    WgKey,
    remove_blanks,
)
from wyrmhole.errors import ConfigFileError
from wyrmhole.protocol.keys import PresharedKey, PrivateKey, PublicKey
from wyrmhole.wire.prefix import Prefix

MAX_SIZE = 64 << 20
"""Limit in bytes for a file: the limit of a UAPI operation, which must hold its configuration."""

MAX_PEERS = 1 << 16
"""More than in any published use of one interface. 65,536 sections with every key fit in MAX_SIZE."""

BOM_SENTENCE = "begins with a byte order mark, which wg refuses: save it as UTF-8 without one"

MAX_ERRORS = 100
"""Upper limit of collected errors."""

_NAME_COMMENT = re.compile(r"\s*#\s*(?:friendly_name|name)\s*=\s*([^\r\0]*?)\s*", re.IGNORECASE)
"""A comment that contains CR or NUL is not a name, because such a name could not be written back."""
_INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff\u00ad"
_BOM = "\ufeff"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
_KEY_MATERIAL = re.compile(r"[A-Za-z0-9+/]{40}")
_INTERFACE_NAME = re.compile(r"(?:.*/)?([a-zA-Z0-9_=+.-]{1,15})\.conf", re.DOTALL)


class ConfigFileWarning(UserWarning):
    """A problem of a file that does not prevent its use."""


class ExposedFileWarning(ConfigFileWarning):
    """Other users of this machine may read a file with keys."""


@dataclass(slots=True)
class ConfigInterface:
    """The [Interface] section. None stands for a missing key."""

    private_key: PrivateKey | None = None
    listen_port: int | None = None
    """0 to 65535; 0 means any free port."""
    fwmark: int | None = None
    """A 32-bit number; 0 means no mark."""
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
    def dns_domains(self) -> list[str]:
        """Search domains, and routing-only domains with their `~`."""
        return [entry for entry in self.dns if isinstance(entry, str)]

    @property
    def dns_search(self) -> list[str]:
        """The domains that are appended to short names."""
        return [entry for entry in self.dns_domains if not entry.startswith("~")]


@dataclass(slots=True)
class ConfigPeer:
    """A [Peer] section. None stands for a missing key."""

    public_key: PublicKey
    preshared_key: PresharedKey | None = None
    endpoint: ConfigEndpoint | None = None
    allowed_ips: list[Prefix] = field(default_factory=list)
    persistent_keepalive: int | None = None
    """Seconds; 0 means off."""
    name: str | None = None
    """The value of `# friendly_name = `."""


Section = ConfigInterface | ConfigPeer


class Config:
    """One configuration file. `interface` and the list `peers` may be changed; `emit` returns the text."""

    def __init__(
        self, interface: ConfigInterface | None = None, peers: Iterable[ConfigPeer] = (), *, source: str = "<config>"
    ) -> None:
        self.interface = ConfigInterface() if interface is None else interface
        self.peers = list(peers)
        self.source = source
        """The name of the file, for messages."""
        self._sections: list[SectionLines] = []
        self._index: dict[int, list[SectionLines]] = {}
        """An index for `line_of`, built on its first call."""
        self._ends_with_newline = True
        self.has_byte_order_mark = False
        """Whether the file begins with a byte order mark, which is kept and otherwise ignored."""

    @classmethod
    def parse(cls, text: str, *, source: str = "<config>") -> Config:
        """Parse a file. Raises ConfigFileError for the first error, with file, line and the expected text."""
        config, errors = cls.parse_all(text, source=source)
        if errors:
            raise errors[0]
        return config

    @classmethod
    def parse_all(cls, text: str, *, source: str = "<config>") -> tuple[Config, list[ConfigFileError]]:
        """Parse a file and return the readable part with all errors in the order of lines, for a linter."""
        reader = _Reader(source)
        return reader.read(text), sorted(reader.errors, key=lambda error: error.line)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Config:
        """Read a file or a pipe. Raises OSError and ConfigFileError; warns with ConfigFileWarning."""
        text, exposure = read_file(path)
        if exposure:
            warnings.warn(exposure, ExposedFileWarning, stacklevel=2)
        config = cls.parse(text, source=os.fspath(path))
        if config.has_byte_order_mark:
            warnings.warn(f"{os.fspath(path)} {BOM_SENTENCE}", ConfigFileWarning, stacklevel=2)
        return config

    def emit(self) -> str:
        """Return the text, to be encoded with `surrogateescape`.

        Raises ValueError for a value that a line cannot hold.
        """
        lines = self._emit_lines()
        count = sum(len(section.lines) for section in self._sections)
        is_open = not self._ends_with_newline and len(lines) <= count
        start = _BOM if self.has_byte_order_mark else ""
        return start + "\n".join(lines) + ("" if is_open or not lines else "\n")

    def line_of(self, section: Section, key: str = "") -> int:
        """Return the number of the last line with `key`, otherwise of the header, or 0 if the section has no lines."""
        own = self._index.get(id(section), [])
        if not own or own[0].owner is not section:
            # The index is missing or outdated, or the section was not read from a file.
            self._index = self._owned()
            own = self._index.get(id(section), [])
        lines = by_key(own).get(key.lower(), []) if key else []
        return lines[-1].number if lines else own[0].number if own else 0

    def repeated_keys(self) -> Iterator[tuple[int, str]]:
        """Yield line and name of each key that a later line of its section overrides."""
        for sections in self._owned().values():
            for name, lines in by_key(sections).items():
                key = KEYS[sections[0].kind].get(name, NAME_KEY)
                if not key.many and key is not NAME_KEY:
                    yield from ((line.number, key.name) for line in lines[:-1])

    def repeated_interfaces(self) -> list[int]:
        """Return the header lines of all [Interface] sections after the first."""
        return [section.number for section in self._sections if section.kind == "interface"][1:]

    def _owned(self) -> dict[int, list[SectionLines]]:
        """Return the sections of each value, by its id."""
        found: dict[int, list[SectionLines]] = {}
        for section in self._sections:
            if section.owner is not None:
                found.setdefault(id(section.owner), []).append(section)
        return found

    def values_of(self, key: str) -> Iterator[tuple[int, str]]:
        """Yield line and text of every readable value of a key, in the order of the file."""
        for section in self._sections:
            yield from ((line.number, line.value) for line in section.lines if line.key == key.lower())

    def commented_hooks(self) -> Iterator[tuple[int, str]]:
        """Yield line and key of each hook with a `#`, where wg-quick(8) before 1.0.20260223 ends the command."""
        hooks = {key.name.lower(): key.name for key in INTERFACE_KEYS if key.is_hook}
        for section in self._sections:
            for line in section.lines:
                if line.key in hooks and "#" in line.value:
                    yield line.number, hooks[line.key]

    def __eq__(self, other: object) -> bool:
        """Compare values, not the text of the files."""
        if not isinstance(other, Config):
            return NotImplemented
        return (self.interface, self.peers) == (other.interface, other.peers)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Config({self.source!r}, {len(self.peers)} peers)"

    # Writing

    def _emit_lines(self) -> list[str]:
        ending = "\r" if self._has_carriage_returns else ""
        known = self._owned()
        kept = {id(self.interface), *map(id, self.peers)}
        out: list[str] = []
        if id(self.interface) not in known and self.interface != ConfigInterface():
            out += emit_new("interface", self.interface, ending)
        edits: dict[int, Edits] = {}
        for section in self._sections:
            owner = section.owner
            if owner is None:
                out += [line.raw for line in section.lines]
            elif id(owner) in kept:
                if id(owner) not in edits:
                    edits[id(owner)] = find_edits(section.kind, owner, by_key(known[id(owner)]), ending)
                out += emit_section(section, edits[id(owner)])
        for peer in self.peers:
            if id(peer) not in known:
                out += [ending] if out and out[-1].strip() else []
                out += emit_new("peer", peer, ending)
        return out

    @property
    def _has_carriage_returns(self) -> bool:
        return any(line.raw.endswith("\r") for section in self._sections for line in section.lines[:1])


# Reading


class _Reader:
    """Reads one file, and collects at most MAX_ERRORS errors."""

    def __init__(self, source: str) -> None:
        self.errors: list[ConfigFileError] = []
        self._source = source
        self._sections = [SectionLines("", 0)]

    def read(self, text: str) -> Config:
        config = Config(source=self._source)
        config.has_byte_order_mark = text.startswith(_BOM)
        text = text.removeprefix(_BOM)
        for number, raw in enumerate(text.removesuffix("\n").split("\n") if text else (), 1):
            self._read_line(number, raw)
        config._sections = self._sections
        config._ends_with_newline = not text or text.endswith("\n")
        self._make_values(config)
        return config

    def _add_error(self, line: int, message: str) -> None:
        if len(self.errors) < MAX_ERRORS:
            self.errors.append(ConfigFileError(self._source, line, message))

    def _read_line(self, number: int, raw: str) -> None:
        content = raw.partition("#")[0].strip(BLANKS)
        line = Line(number, raw)
        if content.startswith("["):
            self._begin_section(line, content)
            return
        self._sections[-1].lines.append(line)
        if content:
            self._read_key_line(line, content)
        elif (comment := _NAME_COMMENT.fullmatch(raw)) is not None:
            line.key, line.value = NAME_KEY.name.lower(), comment[1]

    def _begin_section(self, line: Line, content: str) -> None:
        kind = HEADERS.get(remove_blanks(content).lower(), "")
        if not kind:
            self._add_error(line.number, "expected the section header [Interface] or [Peer]")
        above = self._sections[-1].lines
        self._sections.append(SectionLines(kind, line.number, [*cut_comment_block(above), line]))

    def _read_key_line(self, line: Line, content: str) -> None:
        name, separator, value = content.partition("=")
        name, line.value = name.strip(BLANKS).lower(), value.strip(BLANKS)
        kind = self._sections[-1].kind
        key = find_key(kind, name)
        if not separator:
            self._add_error(line.number, "expected `Key = value`")
        elif key is not None:
            line.key = key.name.lower()
            if key.is_hook:
                # In a hook, `#` does not begin a comment (wireguard-tools 1.0.20260223).
                line.value = line.raw.partition("=")[2].strip(BLANKS)
            self._check(key, line)
        elif name in IGNORED_KEYS:
            line.key = name
        elif kind or len(self._sections) == 1:
            self._add_error(line.number, _explain_unknown(name, kind))

    def _check(self, key: WgKey, line: Line) -> None:
        try:
            if "\0" in line.value:
                raise ValueError("text without NUL bytes")
            key.read(line.value)
        except ValueError as error:
            found = "" if key.is_secret or key.attribute == "public_key" else f", not {_quote(line.value)}"
            self._add_error(line.number, f"{key.name}: expected {error}{found}{_explain_blank(line.value)}")
            line.key = ""

    # Values

    def _make_values(self, config: Config) -> None:
        interfaces = [section for section in self._sections if section.kind == "interface"]
        for section in interfaces:
            section.owner = config.interface
        _fill(config.interface, read_values("interface", interfaces))
        for section in self._sections:
            if section.kind == "peer":
                self._make_peer(config, section)

    def _make_peer(self, config: Config, section: SectionLines) -> None:
        values = read_values("peer", [section])
        if "public_key" not in values:
            if not any(error.line in {line.number for line in section.lines} for error in self.errors):
                self._add_error(section.number, "a [Peer] section needs a PublicKey")
        elif len(config.peers) == MAX_PEERS:
            self._add_error(section.number, f"too many peers: the limit is {MAX_PEERS}")
        else:
            section.owner = ConfigPeer(values["public_key"])
            _fill(section.owner, values)
            config.peers.append(section.owner)


def _fill(owner: Section, values: dict[str, Any]) -> None:
    for attribute, value in values.items():
        setattr(owner, attribute, value)


def _explain_unknown(name: str, kind: str) -> str:
    if name in OBFUSCATION_KEYS and kind == "interface":
        return f"{name} is a key of AmneziaWG, which is incompatible with WireGuard: use a peer and a file without it"
    if not kind:
        return "expected [Interface] or [Peer] before the first key"
    other = "peer" if kind == "interface" else "interface"
    if name in KEYS[other]:
        return f"{KEYS[other][name].name} belongs in {TITLES[other]}, not in {TITLES[kind]}"
    known = [key.name for key in KEYS[kind].values() if key is not NAME_KEY]
    close = difflib.get_close_matches(name, [key.lower() for key in known], 1)
    meant = f", did you mean {KEYS[kind][close[0]].name}?" if close else f"; expected one of {', '.join(known)}"
    return f"{_quote(name)} is not a key of {TITLES[kind]}{_explain_blank(name) or meant}"


def _explain_blank(text: str) -> str:
    """Explain an error that is not visible: a character that looks like a blank, or is invisible."""
    odd = next((char for char in text if char not in BLANKS and (char.isspace() or char in _INVISIBLE)), None)
    return "" if odd is None else f" (U+{ord(odd):04X} does not count as a blank: replace it with a space)"


def _quote(text: str) -> str:
    """Quote text for a message, except text that may be a key in the wrong place."""
    if _KEY_MATERIAL.search(text):
        return "the present text (it looks like a key)"
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


# Files


def read_file(path: str | os.PathLike[str]) -> tuple[str, str | None]:
    """Return the text of a file or pipe and, if other users may read it, a warning.

    Bytes that are not UTF-8 become lone surrogates. Raises OSError, or ConfigFileError if the file is too large or in
    UTF-16.
    """
    name = os.fspath(path)
    with open(path, "rb") as file:
        exposure = _exposure(name, os.fstat(file.fileno()))
        data = file.read(MAX_SIZE + 1)
    if len(data) > MAX_SIZE:
        raise ConfigFileError(name, 0, f"the file is larger than {MAX_SIZE >> 20} MiB")
    if data.startswith(_UTF16_BOMS):
        raise ConfigFileError(name, 1, "the file is in UTF-16: save it as UTF-8")
    return data.decode("utf-8", "surrogateescape"), exposure


def _exposure(path: str, status: os.stat_result) -> str | None:
    """Return a warning if other users may read the file. Like wg-quick(8), consider the folder's mode too."""
    if not stat.S_ISREG(status.st_mode):
        return None
    folder = os.stat(os.path.dirname(os.path.realpath(path)))
    if not status.st_mode & folder.st_mode & 0o007:
        return None
    return f"{path} is accessible to every user of this machine and may hold keys: chmod 600 {path}"


def interface_name(path: str | os.PathLike[str]) -> str:
    """Return the interface name that wg-quick(8) derives from the name of a file. Raises ValueError."""
    match = _INTERFACE_NAME.fullmatch(os.fspath(path))
    if match is None:
        raise ValueError(f"{os.fspath(path)}: expected a file name of up to 15 letters, digits or _=+.-, then .conf")
    return match[1]

"""The text format of the cross-platform UAPI: parse operations, emit replies. No I/O.

An operation is a line `get=1`, `set=1` or our own `drops=1`, then `key=value` lines, then a blank line. A set is parsed
into a `DeviceChange` and returned when its blank line arrives, so a set that is cut off changes nothing. A bad line
invalidates only its own operation. The parser skips the rest of that operation up to its blank line, so that a client
that writes everything before it reads, like wg(8), still finds its answer. If the framing itself is lost (an endless
line or operation, or an unknown first line), nothing after it can be trusted, and the refusal is final.

Within a peer section, the order of lines matters only where it does for wireguard-go: `replace_allowed_ips` discards
the allowed ips that came before it in the section, and the last value of a repeated key wins.

`drops=1` asks for the number of dropped packets. Only this daemon has the operation; wg(8) never sends it. The reply is
the interface's lines `drop=REASON COUNT`, then for each peer with drops a line `public_key=HEX` and its own lines, then
`errno=0`. REASON is the name of a `DropReason`. Counts start at 0 when the daemon starts. wireguard-go closes the
connection on an unknown operation; other daemons answer with an errno.

Error messages name the key and never repeat a value, which may be secret.

Source: https://www.wireguard.com/xplatform/, and the replies of wireguard-go.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

from wyrmhole.device.config import AllowedIPChange, DeviceChange, PeerChange
from wyrmhole.device.status import DeviceStatus, DropCounts, PeerStatus
from wyrmhole.errors import UapiError
from wyrmhole.protocol.keys import Key, PresharedKey, PrivateKey, PublicKey
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.prefix import Prefix

MAX_LINE = 4096
"""Limit in bytes for one line. The longest line that we know has 78 bytes: a key of 64 digits after its name. The rest
leaves room for keys of other versions."""

MAX_OPERATION = 64 << 20
"""Limit in bytes for one operation. 65,536 peers with every key and ten allowed ips each fit in it."""

PEERS_PER_CHUNK = 64
"""Peers in one piece of a `get` reply, about 20 kB. Formatting a piece blocks the event loop."""

_ADDRESS_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}

ScopeResolver = Callable[[str], int]
"""Returns the index of an interface name, or raises OSError. wg(8) writes link-local scopes as names."""


def no_scope_names(name: str) -> int:
    raise OSError(errno.ENODEV, "interface names are not resolved here")


# Values. Each parser raises ValueError or OSError for an invalid value.


def _parse_number(text: str, limit: int) -> int:
    """Parse decimal digits and nothing else, like strconv.ParseUint."""
    if not (text.isascii() and text.isdigit()) or (number := int(text)) > limit:
        raise ValueError(f"not a decimal number from 0 to {limit}")
    return number


def _parse_true(text: str) -> bool:
    if text != "true":
        raise ValueError("must be true")
    return True


def parse_prefix(text: str) -> Prefix:
    """Parse `address/length` like wireguard-go: a length has no leading zeros.

    It is several times faster than `Prefix.parse`, because there may be hundreds of thousands of allowed ips.
    """
    address, slash, length_text = text.partition("/")
    if not slash or (length_text.startswith("0") and length_text != "0"):
        raise ValueError("not address/length")
    version = 6 if ":" in address else 4
    network = int.from_bytes(socket.inet_pton(_ADDRESS_FAMILIES[version], address), "big")
    bits = 128 if version == 6 else 32
    host_bits = bits - _parse_number(length_text, bits)
    return Prefix(version, network >> host_bits << host_bits, bits - host_bits)


def emit_prefix(prefix: Prefix) -> str:
    """Format a prefix like `Prefix.emit`, several times faster."""
    version, network, length = prefix
    size = 16 if version == 6 else 4
    return f"{socket.inet_ntop(_ADDRESS_FAMILIES[version], network.to_bytes(size, 'big'))}/{length}"


def parse_endpoint(text: str, resolve_scope: ScopeResolver) -> Endpoint:
    """Parse a numeric `ip:port` or `[ip6]:port`. Its scope may be the name of an interface."""
    host, _, rest = text.partition("%")
    scope, bracket, port = rest.rpartition("]")
    if bracket:
        index = _parse_number(scope, 0xFFFFFFFF) if scope.isdigit() else resolve_scope(scope)
        text = f"{host}%{index}]{port}"
    return Endpoint.parse(text)


# The operation `set`


@dataclass(slots=True)
class _PeerSection:
    public_key: PublicKey
    remove: bool = False
    update_only: bool = False
    preshared_key: PresharedKey | None = None
    endpoint: Endpoint | None = None
    persistent_keepalive: int | None = None
    replace_allowed_ips: bool = False
    allowed_ips: list[AllowedIPChange] = field(default_factory=list)

    def freeze(self) -> PeerChange:
        return PeerChange(
            public_key=self.public_key,
            remove=self.remove,
            update_only=self.update_only,
            preshared_key=self.preshared_key,
            endpoint=self.endpoint,
            persistent_keepalive=self.persistent_keepalive,
            replace_allowed_ips=self.replace_allowed_ips,
            allowed_ips=tuple(self.allowed_ips),
        )


class SetBuilder:
    """Builds a `DeviceChange` from the lines of one set."""

    def __init__(self, resolve_scope: ScopeResolver = no_scope_names) -> None:
        self._resolve_scope = resolve_scope
        self._private_key: PrivateKey | None = None
        self._listen_port: int | None = None
        self._fwmark: int | None = None
        self._replace_peers = False
        self._peers: list[PeerChange] = []
        self._section: _PeerSection | None = None

    def add_line(self, line: str) -> None:
        """Add one line, without its newline. Raises UapiError: EPROTO for a line without `=`, otherwise EINVAL."""
        key, separator, value = line.partition("=")
        if not separator:
            raise UapiError(errno.EPROTO, "a line has no '='")
        add = (_DEVICE_KEYS if self._section is None else _PEER_KEYS).get(key)
        if add is None:
            raise UapiError(errno.EINVAL, self._explain_unknown(key))
        try:
            add(self, value)
        except (ValueError, OSError):
            raise UapiError(errno.EINVAL, f"{key} has a bad value") from None

    def finish(self) -> DeviceChange:
        self._finish_section()
        return DeviceChange(
            private_key=self._private_key,
            listen_port=self._listen_port,
            fwmark=self._fwmark,
            replace_peers=self._replace_peers,
            peers=tuple(self._peers),
        )

    def _explain_unknown(self, key: str) -> str:
        if self._section is not None and key in _DEVICE_KEYS:
            return f"{key} is a key of the interface and must come before the first public_key"
        if key in _PEER_KEYS:
            return f"{key} is a key of a peer and must come after a public_key"
        return "unknown key"

    def _finish_section(self) -> None:
        if self._section is not None:
            self._peers.append(self._section.freeze())

    def _begin_section(self, value: str) -> None:
        public_key = PublicKey.from_hex(value)
        self._finish_section()
        self._section = _PeerSection(public_key)

    def _set_private_key(self, value: str) -> None:
        self._private_key = PrivateKey.from_hex(value)

    def _set_listen_port(self, value: str) -> None:
        self._listen_port = _parse_number(value, 0xFFFF)

    def _set_fwmark(self, value: str) -> None:
        self._fwmark = _parse_number(value, 0xFFFFFFFF)

    def _set_replace_peers(self, value: str) -> None:
        self._replace_peers = _parse_true(value)

    @property
    def _peer(self) -> _PeerSection:
        assert self._section is not None
        return self._section

    def _set_remove(self, value: str) -> None:
        self._peer.remove = _parse_true(value)

    def _set_update_only(self, value: str) -> None:
        self._peer.update_only = _parse_true(value)

    def _set_preshared_key(self, value: str) -> None:
        self._peer.preshared_key = PresharedKey.from_hex(value)

    def _set_endpoint(self, value: str) -> None:
        self._peer.endpoint = parse_endpoint(value, self._resolve_scope)

    def _set_keepalive(self, value: str) -> None:
        self._peer.persistent_keepalive = _parse_number(value, 0xFFFF)

    def _set_replace_allowed_ips(self, value: str) -> None:
        self._peer.replace_allowed_ips = _parse_true(value)
        self._peer.allowed_ips.clear()

    def _add_allowed_ip(self, value: str) -> None:
        remove = value.startswith("-")
        self._peer.allowed_ips.append(AllowedIPChange(parse_prefix(value[1:] if remove else value), remove))

    def _check_protocol_version(self, value: str) -> None:
        if value != "1":
            raise ValueError("must be 1")


_DEVICE_KEYS: dict[str, Callable[[SetBuilder, str], None]] = {
    "private_key": SetBuilder._set_private_key,
    "listen_port": SetBuilder._set_listen_port,
    "fwmark": SetBuilder._set_fwmark,
    "replace_peers": SetBuilder._set_replace_peers,
    "public_key": SetBuilder._begin_section,
}

_PEER_KEYS: dict[str, Callable[[SetBuilder, str], None]] = {
    "public_key": SetBuilder._begin_section,
    "update_only": SetBuilder._set_update_only,
    "remove": SetBuilder._set_remove,
    "preshared_key": SetBuilder._set_preshared_key,
    "endpoint": SetBuilder._set_endpoint,
    "persistent_keepalive_interval": SetBuilder._set_keepalive,
    "replace_allowed_ips": SetBuilder._set_replace_allowed_ips,
    "allowed_ip": SetBuilder._add_allowed_ip,
    "protocol_version": SetBuilder._check_protocol_version,
}


def parse_set(lines: Iterable[str], resolve_scope: ScopeResolver = no_scope_names) -> DeviceChange:
    """Parse the lines between `set=1` and the blank line. Raises UapiError."""
    builder = SetBuilder(resolve_scope)
    for line in lines:
        builder.add_line(line)
    return builder.finish()


# A connection


@dataclass(frozen=True, slots=True)
class GetOperation:
    pass


@dataclass(frozen=True, slots=True)
class DropsOperation:
    pass


@dataclass(frozen=True, slots=True)
class SetOperation:
    change: DeviceChange


@dataclass(frozen=True, slots=True)
class Refusal:
    """An operation to answer with an error. If `final`, the connection ends and no later bytes are read."""

    error: UapiError
    final: bool


Operation = GetOperation | DropsOperation | SetOperation | Refusal


class _Reading(Enum):
    NOTHING = "between operations"
    GET = "get"
    DROPS = "drops"
    SET = "set"
    REFUSED = "rest of a refused operation"
    ENDED = "after a final refusal"


_QUERIES = (_Reading.GET, _Reading.DROPS)


class UapiParser:
    """Turns the bytes of one connection into operations, in order. Memory is bounded by `MAX_OPERATION`."""

    def __init__(self, resolve_scope: ScopeResolver = no_scope_names) -> None:
        self._resolve_scope = resolve_scope
        self._partial = b""
        self._reading = _Reading.NOTHING
        self._size = 0
        self._builder = SetBuilder()
        self._error = UapiError(errno.EINVAL, "")

    @property
    def is_between_operations(self) -> bool:
        return self._reading is _Reading.NOTHING and not self._partial

    def feed(self, data: bytes) -> list[Operation]:
        """Return the operations that these bytes complete. Bytes after a final refusal are ignored."""
        *lines, partial = (self._partial + data).split(b"\n")
        operations: list[Operation] = []
        for line in lines:
            operation = self._feed_line(line)
            if operation is not None:
                operations.append(operation)
        if len(partial) > MAX_LINE and self._reading is not _Reading.ENDED:
            operations.append(self._end(errno.EPROTO, f"a line is longer than {MAX_LINE} bytes"))
        self._partial = b"" if self._reading is _Reading.ENDED else partial
        return operations

    def finish(self) -> Refusal | None:
        """Handle the end of the connection: an operation without its blank line is refused, not applied."""
        if self._reading is _Reading.ENDED or self.is_between_operations:
            return None
        return self._end(errno.EPROTO, "the connection ended before the operation's blank line")

    def _feed_line(self, line: bytes) -> Operation | None:
        if self._reading is _Reading.ENDED:
            return None
        self._size += len(line) + 1
        if len(line) > MAX_LINE:
            return self._end(errno.EPROTO, f"a line is longer than {MAX_LINE} bytes")
        if self._size > MAX_OPERATION:
            return self._end(errno.EMSGSIZE, f"an operation is longer than {MAX_OPERATION} bytes")
        if self._reading is _Reading.NOTHING:
            return self._begin(line)
        if self._reading not in _QUERIES:
            # In a set, wireguard-go accepts CRLF as the end of a line.
            line = line.removesuffix(b"\r")
        if not line:
            return self._complete()
        self._add_line(line)
        return None

    def _begin(self, line: bytes) -> Refusal | None:
        if line == b"set=1":
            self._reading, self._builder = _Reading.SET, SetBuilder(self._resolve_scope)
        elif line == b"get=1":
            self._reading = _Reading.GET
        elif line == b"drops=1":
            self._reading = _Reading.DROPS
        else:
            return self._end(errno.EPROTO, "expected get=1 or set=1")
        return None

    def _add_line(self, line: bytes) -> None:
        try:
            if self._reading is _Reading.SET:
                # A line without '=' is a syntax error, even if it is not UTF-8.
                self._builder.add_line(line.decode("utf-8", "strict" if b"=" in line else "replace"))
            elif self._reading in _QUERIES:
                raise UapiError(errno.EINVAL, f"expected a blank line after {self._reading.value}=1")
        except UnicodeDecodeError:
            self._refuse(UapiError(errno.EINVAL, "a line is not UTF-8"))
        except UapiError as error:
            self._refuse(error)

    def _refuse(self, error: UapiError) -> None:
        """Keep the first error, and skip to the blank line."""
        self._reading, self._error = _Reading.REFUSED, error
        self._builder = SetBuilder()

    def _complete(self) -> Operation:
        reading, self._reading, self._size = self._reading, _Reading.NOTHING, 0
        if reading is _Reading.REFUSED:
            return Refusal(self._error, final=False)
        if reading is _Reading.GET:
            return GetOperation()
        if reading is _Reading.DROPS:
            return DropsOperation()
        builder, self._builder = self._builder, SetBuilder()
        return SetOperation(builder.finish())

    def _end(self, errno_value: int, message: str) -> Refusal:
        self._reading, self._partial, self._builder = _Reading.ENDED, b"", SetBuilder()
        return Refusal(UapiError(errno_value, message), final=True)


# Replies


def emit_errno(errno_value: int) -> bytes:
    """Emit the end of a reply. `errno_value` is positive or 0; the line has the negative value, which wg(8) expects."""
    return b"errno=%d\n\n" % -errno_value


def emit_get(status: DeviceStatus) -> bytes:
    """Emit the reply to `get=1` without its errno line. Keys come in the order of wireguard-go."""
    return b"".join(iter_get(status))


def iter_get(status: DeviceStatus) -> Iterator[bytes]:
    """Yield the output of `emit_get` in pieces, so that a writer on an event loop can pause between them."""
    yield _emit_device(status)
    peers = status.peers
    for start in range(0, len(peers), PEERS_PER_CHUNK):
        yield "".join(map(_emit_peer, peers[start : start + PEERS_PER_CHUNK])).encode()


def _emit_device(status: DeviceStatus) -> bytes:
    lines = []
    if status.private_key is not None and not status.private_key.is_zero:
        lines.append(f"private_key={status.private_key.hex()}\n")
    if status.listen_port:
        lines.append(f"listen_port={status.listen_port}\n")
    if status.fwmark:
        lines.append(f"fwmark={status.fwmark}\n")
    return "".join(lines).encode()


def _emit_peer(peer: PeerStatus) -> str:
    seconds, nanoseconds = peer.last_handshake
    endpoint = "" if peer.endpoint is None else f"endpoint={peer.endpoint.emit()}\n"
    return (
        f"public_key={peer.public_key.hex()}\n"
        f"preshared_key={peer.preshared_key.hex()}\n"
        f"protocol_version=1\n"
        f"{endpoint}"
        f"last_handshake_time_sec={seconds}\n"
        f"last_handshake_time_nsec={nanoseconds}\n"
        f"tx_bytes={peer.tx_bytes}\n"
        f"rx_bytes={peer.rx_bytes}\n"
        f"persistent_keepalive_interval={peer.persistent_keepalive}\n"
        + "".join([f"allowed_ip={emit_prefix(prefix)}\n" for prefix in peer.allowed_ips])
    )


def iter_drops(counts: DropCounts) -> Iterator[bytes]:
    """Yield the reply to `drops=1` in pieces, without its errno line."""
    yield _emit_drops(counts.total).encode()
    peers = list(counts.peers.items())
    for start in range(0, len(peers), PEERS_PER_CHUNK):
        chunk = peers[start : start + PEERS_PER_CHUNK]
        yield "".join([f"public_key={key.hex()}\n{_emit_drops(drops)}" for key, drops in chunk]).encode()


def _emit_drops(drops: Mapping[str, int]) -> str:
    return "".join([f"drop={name} {count}\n" for name, count in sorted(drops.items())])


# Requests of a client


def emit_set(change: DeviceChange) -> bytes:
    """Emit a complete operation, from `set=1` to its blank line: the inverse of `parse_set`."""
    return "".join(f"{line}\n" for line in ["set=1", *_device_lines(change), ""]).encode()


def _device_lines(change: DeviceChange) -> Iterator[str]:
    yield from _key_line("private_key", change.private_key)
    if change.listen_port is not None:
        yield f"listen_port={change.listen_port}"
    if change.fwmark is not None:
        yield f"fwmark={change.fwmark}"
    if change.replace_peers:
        yield "replace_peers=true"
    for peer in change.peers:
        yield from _peer_lines(peer)


def _peer_lines(peer: PeerChange) -> Iterator[str]:
    yield from _key_line("public_key", peer.public_key)
    flags = {"remove": peer.remove, "update_only": peer.update_only, "replace_allowed_ips": peer.replace_allowed_ips}
    yield from (f"{name}=true" for name, is_set in flags.items() if is_set)
    yield from _key_line("preshared_key", peer.preshared_key)
    if peer.endpoint is not None:
        yield f"endpoint={peer.endpoint.emit()}"
    if peer.persistent_keepalive is not None:
        yield f"persistent_keepalive_interval={peer.persistent_keepalive}"
    for allowed_ip in peer.allowed_ips:
        yield f"allowed_ip={'-' if allowed_ip.remove else ''}{emit_prefix(allowed_ip.prefix)}"


def _key_line(name: str, key: Key | None) -> Iterator[str]:
    if key is not None:
        yield f"{name}={key.hex()}"

"""Parse the replies to `get=1` and `drops=1` of the UAPI. No I/O.

Unknown keys are ignored, because other implementations and later versions have more of them. Source:
https://www.wireguard.com/xplatform/
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from wyrmhole.control.uapi.format import ScopeResolver, no_scope_names, parse_endpoint, parse_prefix
from wyrmhole.device.status import DeviceStatus, DropCounts, PeerStatus
from wyrmhole.errors import UapiError
from wyrmhole.protocol.keys import KEY_SIZE, PresharedKey, PrivateKey, PublicKey
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.prefix import Prefix


@dataclass(slots=True)
class _Peer:
    public_key: PublicKey
    preshared_key: PresharedKey = field(default_factory=lambda: PresharedKey(bytes(KEY_SIZE)))
    endpoint: Endpoint | None = None
    numbers: dict[str, int] = field(default_factory=dict)
    allowed_ips: list[Prefix] = field(default_factory=list)

    def freeze(self) -> PeerStatus:
        number = self.numbers.get
        return PeerStatus(
            public_key=self.public_key,
            preshared_key=self.preshared_key,
            endpoint=self.endpoint,
            last_handshake=(number("last_handshake_time_sec", 0), number("last_handshake_time_nsec", 0)),
            tx_bytes=number("tx_bytes", 0),
            rx_bytes=number("rx_bytes", 0),
            persistent_keepalive=number("persistent_keepalive_interval", 0),
            allowed_ips=tuple(self.allowed_ips),
        )


class StatusReader:
    """Builds a `DeviceStatus` from the lines of a reply to `get=1`.

    wireguard-go reports scopes as interface names; a name that `resolve_scope` does not know is left out.
    """

    def __init__(self, name: str, resolve_scope: ScopeResolver = no_scope_names) -> None:
        self._name = name
        self._resolve_scope = resolve_scope
        self._private_key: PrivateKey | None = None
        self._numbers: dict[str, int] = {}
        self._peers: list[_Peer] = []

    def add_line(self, line: str) -> None:
        """Add one line. Raises UapiError for an invalid value."""
        key, _, value = line.partition("=")
        read = _PEER_KEYS.get(key) if self._peers else _DEVICE_KEYS.get(key)
        try:
            if key == "public_key":
                self._peers.append(_Peer(PublicKey.from_hex(value)))
            elif read is not None:
                read(self, value)
            elif key in _NUMBERS:
                numbers = self._peers[-1].numbers if self._peers else self._numbers
                numbers[key] = _number(value)
        except (ValueError, OSError):
            raise UapiError(errno.EPROTO, f"the reply of {self._name} has an invalid value for {key}") from None

    def finish(self) -> DeviceStatus:
        return DeviceStatus(
            name=self._name,
            private_key=self._private_key,
            listen_port=self._numbers.get("listen_port", 0),
            fwmark=self._numbers.get("fwmark", 0),
            mtu=0,
            peers=tuple(peer.freeze() for peer in self._peers),
        )

    def _read_private_key(self, value: str) -> None:
        key = PrivateKey.from_hex(value)
        self._private_key = None if key.is_zero else key

    def _read_preshared_key(self, value: str) -> None:
        self._peers[-1].preshared_key = PresharedKey.from_hex(value)

    def _read_endpoint(self, value: str) -> None:
        self._peers[-1].endpoint = parse_endpoint(value, self._scope)

    def _scope(self, name: str) -> int:
        try:
            return self._resolve_scope(name)
        except OSError:
            return 0

    def _read_allowed_ip(self, value: str) -> None:
        self._peers[-1].allowed_ips.append(parse_prefix(value))


_DEVICE_KEYS: dict[str, Callable[[StatusReader, str], None]] = {"private_key": StatusReader._read_private_key}
_PEER_KEYS: dict[str, Callable[[StatusReader, str], None]] = {
    "preshared_key": StatusReader._read_preshared_key,
    "endpoint": StatusReader._read_endpoint,
    "allowed_ip": StatusReader._read_allowed_ip,
}
_NUMBERS = frozenset(
    {
        "listen_port",
        "fwmark",
        "last_handshake_time_sec",
        "last_handshake_time_nsec",
        "tx_bytes",
        "rx_bytes",
        "persistent_keepalive_interval",
    }
)


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        raise ValueError("not a 64-bit number")
    return int(text)


class DropsReader:
    """Builds `DropCounts` from the lines of a reply to `drops=1`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._total: dict[str, int] = {}
        self._peers: dict[PublicKey, dict[str, int]] = {}
        self._current = self._total

    def add_line(self, line: str) -> None:
        """Add one line. Raises UapiError for an invalid value."""
        key, _, value = line.partition("=")
        try:
            if key == "public_key":
                self._current = self._peers.setdefault(PublicKey.from_hex(value), {})
            elif key == "drop":
                reason, _, count = value.partition(" ")
                self._current[_reason(reason)] = _number(count)
        except ValueError:
            raise UapiError(errno.EPROTO, f"the reply of {self._name} has an invalid value for {key}") from None

    def finish(self) -> DropCounts:
        return DropCounts(self._total, self._peers)


def _reason(text: str) -> str:
    if not (text.isascii() and text.isidentifier() and len(text) <= 64):
        raise ValueError("not the name of a drop reason")
    return text


def parse_get(name: str, lines: Iterable[str]) -> DeviceStatus:
    """Parse the lines of a reply without its errno line. `mtu` is 0, because replies lack it. Raises UapiError."""
    reader = StatusReader(name)
    for line in lines:
        reader.add_line(line)
    return reader.finish()

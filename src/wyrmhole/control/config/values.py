"""The keys of a wg(8) or wg-quick(8) configuration file: how to read and write the value of each.

Keys are case-insensitive. wg(8) removes all blanks from a line before it parses it. Lists are separated by commas; in
keys of wg-quick(8), also by blanks. Only ASCII blanks count. A reader raises ValueError whose text describes the
expected value.

Everything that wireguard-tools accepts is accepted with the same meaning. The exceptions are listed with their reasons
in `tests/control/config/test_differential.py`, which compares the two.

Source: wg(8), wg-quick(8) and wireguard-tools 1.0.20260223.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from wyrmhole.control.uapi.format import emit_prefix, parse_prefix
from wyrmhole.protocol.keys import PresharedKey, PrivateKey, PublicKey
from wyrmhole.wire.endpoint import MAX_PORT, Endpoint
from wyrmhole.wire.ip import MAX_PACKET_SIZE
from wyrmhole.wire.prefix import Prefix

_T = TypeVar("_T")

Address = ipaddress.IPv4Interface | ipaddress.IPv6Interface
DnsEntry = ipaddress.IPv4Address | ipaddress.IPv6Address | str
"""A server's address, or a search domain."""

MIN_MTU = 68
"""The minimum MTU of an IPv4 link (RFC 791)."""
MAX_MTU = MAX_PACKET_SIZE
MAX_KEEPALIVE = 65_535
"""Seconds of PersistentKeepalive: 16 bits, like the kernel's."""

AnyKey = TypeVar("AnyKey", PrivateKey, PublicKey, PresharedKey)

BLANKS = " \t\n\v\f\r"
"""The blanks of wg(8) and wg-quick(8). `str.split` and `str.strip` would accept many more."""

_REMOVE_BLANKS = dict.fromkeys(map(ord, BLANKS))
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}", re.ASCII)
_OLD_IPV4 = re.compile(r"(?:0[xX][0-9a-fA-F]+|[0-9]+)(?:\.(?:0[xX][0-9a-fA-F]+|[0-9]+)){0,3}")
"""The forms of inet_aton(3): up to four numbers, decimal, octal or hexadecimal; the last one fills the remaining
bytes."""
_SERVICE = re.compile(r"[A-Za-z][A-Za-z0-9_.+-]{0,63}")
_SEARCH_DOMAIN = re.compile(r"~?\.?[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}|~\.", re.ASCII)
_TABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}", re.ASCII)


@dataclass(frozen=True, slots=True)
class ConfigEndpoint:
    """An endpoint in a file. `host` is a DNS name or an address without brackets; `port` is 0 to 65535."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> ConfigEndpoint:
        """Parse `name:port`, `ip:port` or `[ip6]:port`. Raises ValueError.

        Like wg(8), also accept brackets around anything, an IPv6 address without brackets, an IPv4 address in any form
        of inet_aton(3) (which is normalised to four numbers), and the name of a service as the port.
        """
        host, separator, port = text.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        host = _usual_ipv4(host[1:-1] if bracketed else host)
        if not separator or not _is_host(host):
            raise ValueError("host:port, where host is a name, an IPv4 address or an IPv6 address in brackets")
        return cls(host, read_port(port))

    @property
    def literal(self) -> Endpoint | None:
        """The address, or None if a name of a host or of an interface must be looked up."""
        try:
            return Endpoint.parse(self.emit())
        except ValueError:
            return None

    @property
    def is_name(self) -> bool:
        """Whether the host is a DNS name."""
        return _address(self.host.partition("%")[0]) is None

    def emit(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _usual_ipv4(text: str) -> str:
    """Normalise an IPv4 address in one of the old forms to four numbers. Any other text is returned unchanged."""
    if _OLD_IPV4.fullmatch(text):
        with suppress(OSError):
            return socket.inet_ntoa(socket.inet_aton(text))
    return text


def _is_host(text: str) -> bool:
    if ":" in text or _OLD_IPV4.fullmatch(text) or text.replace(".", "").isdigit():
        return _address(text) is not None
    return _HOST.fullmatch(text) is not None


# Readers of one value


def _read_key(kind: type[AnyKey]) -> Callable[[str], AnyKey]:
    def read(text: str) -> AnyKey:
        try:
            return kind.from_base64(remove_blanks(text))
        except ValueError:
            raise ValueError(_KEY_FORMS[kind]) from None

    return read


_KEY_FORMS: dict[type[object], str] = {
    PrivateKey: "44 characters of base64, like the output of `wyrmhole genkey`",
    PublicKey: "44 characters of base64, like the output of `wyrmhole pubkey`",
    PresharedKey: "44 characters of base64, like the output of `wyrmhole genpsk`",
}

read_public_key = _read_key(PublicKey)


def read_number(text: str, low: int, high: int) -> int:
    """Read decimal ASCII digits and nothing else. Leading zeros are ignored."""
    digits = text.lstrip("0") or "0"
    if not (text.isascii() and text.isdigit() and len(digits) < 12) or not low <= int(digits) <= high:
        raise ValueError(f"a number from {low} to {high}")
    return int(digits)


def read_port(text: str) -> int:
    """Read a port number, or the name of a UDP service in services(5)."""
    if _SERVICE.fullmatch(text):
        try:
            return socket.getservbyname(text, "udp")
        except OSError:
            raise ValueError(f"a port from 0 to {MAX_PORT}, or the name of a UDP service") from None
    return read_number(text.removeprefix("+"), 0, MAX_PORT)


def read_keepalive(text: str) -> int:
    """Read seconds; `off` is 0."""
    if text.lower() == "off":
        return 0
    try:
        return read_number(text, 0, MAX_KEEPALIVE)
    except ValueError:
        raise ValueError(f"seconds from 1 to {MAX_KEEPALIVE}, or off") from None


def read_fwmark(text: str) -> int:
    """Read a mark; `off` is 0."""
    if text.lower() == "off":
        return 0
    try:
        return _read_hexadecimal(text, "0x") if text.startswith("0x") else read_number(text, 0, 0xFFFFFFFF)
    except ValueError:
        raise ValueError("a 32-bit number, decimal or hexadecimal (0x1234), or off") from None


def _read_hexadecimal(text: str, *prefixes: str) -> int:
    """Read a hexadecimal 32-bit number after one of the prefixes. Raises ValueError."""
    if not re.fullmatch(r"0*[0-9a-fA-F]{1,8}", text[2:]) or not text.startswith(prefixes):
        raise ValueError(text)
    return int(text[2:], 16)


def _read_ip_number(text: str, low: int, high: int) -> int:
    """Read a number like ip(8): hexadecimal after 0x. A leading zero is refused, because it means octal to ip(8)."""
    if text[:2] in ("0x", "0X"):
        number = _read_hexadecimal(text, "0x", "0X")
    elif text.startswith("0") and text != "0":
        raise ValueError("a number without leading zeros, which mean octal to ip(8)")
    else:
        number = read_number(text, low, high)
    if not low <= number <= high:
        raise ValueError(f"a number from {low} to {high}")
    return number


def read_mtu(text: str) -> int | None:
    """Read an MTU. An empty value is None, like a missing key."""
    return _read_ip_number(text, MIN_MTU, MAX_MTU) if text else None


def read_table(text: str) -> int | str | None:
    """Read a routing table: a number, `auto`, `off`, or a name of /etc/iproute2/rt_tables. An empty value is None."""
    if not text:
        return None
    if _TABLE_NAME.fullmatch(text):
        return text
    try:
        return _read_ip_number(text, 0, 0xFFFFFFFF)
    except ValueError:
        raise ValueError("the number or the name of a routing table, auto, or off") from None


def read_bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError("true or false")
    return text.lower() == "true"


def read_name(text: str) -> str:
    """Read a name from a comment, whose bytes may be in any encoding."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def read_command(text: str) -> list[str]:
    """Read a hook. An empty value runs nothing."""
    return [text] if text else []


def read_prefix(text: str) -> Prefix:
    """Read `address/length`, or an address, which means a single host."""
    address, slash, length = text.partition("/")
    bits = 128 if ":" in address else 32
    try:
        return parse_prefix(f"{address}/{read_number(length, 0, bits) if slash else bits}")
    except (ValueError, OSError):
        raise ValueError("prefixes separated by commas, such as 10.0.0.0/8, fd00::/64") from None


def read_allowed_ips(text: str) -> list[Prefix]:
    return [read_prefix(item) for item in text.split(",")] if text else []


def _items(text: str) -> list[str]:
    return re.split(f"[{BLANKS},]+", text.strip(f"{BLANKS},")) if text.strip(f"{BLANKS},") else []


def read_addresses(text: str) -> list[Address]:
    try:
        return [_read_address(item) for item in _items(text)]
    except ValueError:
        raise ValueError(
            "addresses with prefix lengths, separated by commas, such as 10.0.0.2/24, fd00::2/64"
        ) from None


def _read_address(text: str) -> Address:
    """Read an address like ip(8), with a length, a netmask or neither. A leading zero would make the length octal."""
    host, slash, length = text.partition("/")
    address = ipaddress.ip_interface(text)
    lengths = (str(address.network.prefixlen), str(address.netmask) if address.version == 4 else "")
    if "%" in host or (slash and length not in lengths):
        raise ValueError(text)
    return address


def _read_dns_entry(text: str) -> DnsEntry:
    """Read a server or a domain. Like for wg-quick(8), text of digits and dots, or with a colon, is an address.

    A domain after `~` is for systemd-resolved, which sends queries for it to these servers but does not search it.
    """
    if re.fullmatch(r"[0-9.]+", text) or ":" in text:
        return ipaddress.ip_address(text)
    if not _SEARCH_DOMAIN.fullmatch(text):
        raise ValueError(text)
    return text


def read_dns(text: str) -> list[DnsEntry]:
    try:
        return [_read_dns_entry(item) for item in _items(text)]
    except ValueError:
        raise ValueError("addresses of DNS servers and search domains, separated by commas") from None


def remove_blanks(text: str) -> str:
    return text.translate(_REMOVE_BLANKS)


def _without_blanks(read: Callable[[str], _T]) -> Callable[[str], _T]:
    return lambda text: read(remove_blanks(text))


# Writers. Each returns the lines of a value.


def _write_one(value: object) -> list[str]:
    return [] if value is None else [str(value)]


def _write_key(key: PrivateKey | PublicKey | PresharedKey | None) -> list[str]:
    return [] if key is None else [key.base64()]


def _write_list(values: Iterable[object]) -> list[str]:
    text = ", ".join(map(str, values))
    return [text] if text else []


def _write_prefixes(prefixes: Iterable[Prefix]) -> list[str]:
    return _write_list(emit_prefix(prefix) for prefix in prefixes)


def _write_endpoint(endpoint: ConfigEndpoint | None) -> list[str]:
    return [] if endpoint is None else [endpoint.emit()]


def _write_fwmark(mark: int | None) -> list[str]:
    return [] if mark is None else [f"0x{mark:x}" if mark else "off"]


def _write_keepalive(seconds: int | None) -> list[str]:
    return [] if seconds is None else [str(seconds) if seconds else "off"]


def _write_true(value: bool) -> list[str]:
    return ["true"] if value else []


def _write_commands(commands: Sequence[str]) -> list[str]:
    return list(commands)


@dataclass(frozen=True, slots=True)
class WgKey:
    """A key of the file. If `many`, its lines form one list; otherwise the last line wins."""

    name: str
    attribute: str
    read: Callable[[str], Any]
    write: Callable[[Any], list[str]]
    many: bool = False
    is_secret: bool = False
    is_quick: bool = False
    """Whether only wg-quick(8) knows the key, so that `strip` removes it."""

    @property
    def is_hook(self) -> bool:
        return self.read is read_command


def _quick(
    name: str, attribute: str, read: Callable[[str], object], write: Callable[[Any], list[str]], many: bool = True
) -> WgKey:
    return WgKey(name, attribute, read, write, many, is_quick=True)


NAME_KEY = WgKey("# friendly_name", "name", read_name, _write_one)
"""A tag in a comment, which metrics exporters use too. `# Name = ` is also read."""

INTERFACE_KEYS = (
    WgKey("PrivateKey", "private_key", _read_key(PrivateKey), _write_key, is_secret=True),
    WgKey("ListenPort", "listen_port", _without_blanks(read_port), _write_one),
    WgKey("FwMark", "fwmark", _without_blanks(read_fwmark), _write_fwmark),
    _quick("Address", "addresses", read_addresses, _write_list),
    _quick("DNS", "dns", read_dns, _write_list),
    _quick("MTU", "mtu", read_mtu, _write_one, many=False),
    _quick("Table", "table", read_table, _write_one, many=False),
    _quick("SaveConfig", "save_config", read_bool, _write_true, many=False),
    _quick("PreUp", "pre_up", read_command, _write_commands),
    _quick("PostUp", "post_up", read_command, _write_commands),
    _quick("PreDown", "pre_down", read_command, _write_commands),
    _quick("PostDown", "post_down", read_command, _write_commands),
)

PEER_KEYS = (
    NAME_KEY,
    WgKey("PublicKey", "public_key", read_public_key, _write_key),
    WgKey("PresharedKey", "preshared_key", _read_key(PresharedKey), _write_key, is_secret=True),
    WgKey("AllowedIPs", "allowed_ips", _without_blanks(read_allowed_ips), _write_prefixes, many=True),
    WgKey("Endpoint", "endpoint", _without_blanks(ConfigEndpoint.parse), _write_endpoint),
    WgKey("PersistentKeepalive", "persistent_keepalive", _without_blanks(read_keepalive), _write_keepalive),
)

IGNORED_KEYS = frozenset({"includedapplications", "excludedapplications"})
"""Keys of the mobile apps. They are kept in the file and otherwise ignored."""

OBFUSCATION_KEYS = frozenset(
    {"jc", "jmin", "jmax", "s1", "s2", "s3", "s4", "h1", "h2", "h3", "h4", "i1", "i2", "i3", "i4", "i5"}
)
"""Keys of AmneziaWG, which changes the protocol's messages, so that no tunnel with such a peer is possible."""

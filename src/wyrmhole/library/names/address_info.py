"""Parse the arguments of socket.getaddrinfo, and build results in its format (getaddrinfo(3))."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import TypeAlias

from wyrmhole.library.common.socket_address import AddressInfo, SocketAddress
from wyrmhole.wire.endpoint import MAX_PORT

Address: TypeAlias = IPv4Address | IPv6Address

PROTOCOLS: dict[int, int] = {
    socket.SOCK_STREAM: socket.IPPROTO_TCP,
    socket.SOCK_DGRAM: socket.IPPROTO_UDP,
    socket.SOCK_RAW: 0,
}
"""The protocol of each socket type, in the order of socket.getaddrinfo for type 0."""
SERVICE_PROTOCOLS: dict[int, str] = {socket.SOCK_STREAM: "tcp", socket.SOCK_DGRAM: "udp"}
ANY: dict[int, Address] = {socket.AF_INET: IPv4Address("0.0.0.0"), socket.AF_INET6: IPv6Address("::")}
KNOWN_FLAGS = int(
    socket.AI_PASSIVE
    | socket.AI_CANONNAME
    | socket.AI_NUMERICHOST
    | socket.AI_NUMERICSERV
    | socket.AI_V4MAPPED
    | socket.AI_ALL
    | socket.AI_ADDRCONFIG
)


def check(family: int, type: int, flags: int) -> None:
    """Raise socket.gaierror for an unknown family, type or flag."""
    if family not in (0, socket.AF_INET, socket.AF_INET6):
        raise socket.gaierror(
            socket.EAI_FAMILY, f"address family {family} is not supported: use AF_INET, AF_INET6 or 0"
        )
    if type and type not in PROTOCOLS:
        raise socket.gaierror(
            socket.EAI_SOCKTYPE, f"socket type {type} is not supported: use SOCK_STREAM, SOCK_DGRAM or 0"
        )
    if flags & ~KNOWN_FLAGS:
        raise socket.gaierror(socket.EAI_BADFLAGS, f"flags {flags & ~KNOWN_FLAGS:#x} are unknown")


def kinds_of(type: int, proto: int) -> list[tuple[int, int]]:
    """Return the socket types and protocols for an address: all of them if `type` is 0.

    Raises socket.gaierror for a protocol of another type.
    """
    if type == socket.SOCK_RAW or (not type and proto not in (0, *PROTOCOLS.values())):
        return [(socket.SOCK_RAW, proto)]
    found = [(kind, own) for kind, own in PROTOCOLS.items() if type in (0, kind) and proto in (0, own)]
    if not found:
        raise socket.gaierror(socket.EAI_SOCKTYPE, f"protocol {proto} does not belong to socket type {type}")
    return found


def as_port(port: int | str | bytes | None, type: int = 0, flags: int = 0) -> int:
    """Return the number of a port, given by number or by name in the host's /etc/services. Nothing means 0.

    Raises socket.gaierror.
    """
    text = port.decode("ascii", "replace") if isinstance(port, bytes) else port
    if text is None or text == "":
        return 0
    try:
        number = int(text)
    except ValueError:
        return service_port(str(text), type) if not flags & socket.AI_NUMERICSERV else invalid_port(text)
    return number if 0 <= number <= MAX_PORT else invalid_port(text)


def filter_by_service(found: list[AddressInfo], port: int | str | bytes | None, flags: int) -> list[AddressInfo]:
    """Keep the entries of those socket types for which the named service exists. A number keeps all."""
    try:
        as_port(port, 0, flags | socket.AI_NUMERICSERV)
    except socket.gaierror:
        return [entry for entry in found if entry[1] in SERVICE_PROTOCOLS and has_service(port, entry[1])]
    return found


def has_service(port: int | str | bytes | None, type: int) -> bool:
    try:
        as_port(port, type)
    except socket.gaierror:
        return False
    return True


def service_port(name: str, type: int) -> int:
    for protocol in [SERVICE_PROTOCOLS[type]] if type in SERVICE_PROTOCOLS else SERVICE_PROTOCOLS.values():
        try:
            return socket.getservbyname(name, protocol)
        except OSError:
            continue
    return invalid_port(name)


def invalid_port(port: object) -> int:
    """Raise socket.gaierror."""
    message = f"{port!r} is not a port: expected a number from 0 to {MAX_PORT}, or a service name in /etc/services"
    raise socket.gaierror(socket.EAI_SERVICE, message)


def as_host(host: str | bytes | None) -> str:
    """Return the host as text; empty for any address."""
    return host.decode("ascii", "surrogateescape") if isinstance(host, bytes) else host or ""


def infos(
    addresses: Iterable[Address], port: int, kinds: Sequence[tuple[int, int]], canonical: str = ""
) -> list[AddressInfo]:
    """Return an entry for each address and kind. The first has the canonical name."""
    found = [
        (family_of(address), socket.SocketKind(type), proto, "", socket_address(address, port))
        for address in addresses
        for type, proto in kinds
    ]
    return [(*entry[:3], "" if number else canonical, entry[4]) for number, entry in enumerate(found)]


def info(address: Address, port: int, type: int) -> AddressInfo:
    """Return the entry for one address and one type."""
    return infos([address], port, kinds_of(type, 0))[0]


def socket_address(address: Address, port: int) -> SocketAddress:
    if isinstance(address, IPv4Address):
        return (str(address), port)
    scope = int(address.scope_id) if address.scope_id and address.scope_id.isdigit() else 0
    return (str(address).partition("%")[0], port, 0, scope)


def family_of(address: Address) -> socket.AddressFamily:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def literal(host: str) -> Address | None:
    """Parse an address, with or without brackets. Return None for a name."""
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]") if host.startswith("[") else host)
    except ValueError:
        return None

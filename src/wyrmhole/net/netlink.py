"""Just enough rtnetlink: subscribe to changes, ask for one route, walk messages and attributes (RFC 3549, rtnetlink(7)).

Nothing here trusts a length it reads: a message or attribute that does not fit ends the walk.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

GROUP_LINK = 0x1
GROUP_IPV4_ADDRESS = 0x10
GROUP_IPV4_ROUTE = 0x40
GROUP_IPV4_RULE = 0x80
GROUP_IPV6_ADDRESS = 0x100
GROUP_IPV6_ROUTE = 0x400
GROUP_IPV6_RULE = 0x40000
ROUTING_GROUPS = (
    GROUP_LINK
    | GROUP_IPV4_ADDRESS
    | GROUP_IPV4_ROUTE
    | GROUP_IPV4_RULE
    | GROUP_IPV6_ADDRESS
    | GROUP_IPV6_ROUTE
    | GROUP_IPV6_RULE
)

NLMSG_ERROR = 2
RTM_NEWLINK = 16
RTM_DELLINK = 17
RTM_NEWROUTE = 24
RTM_GETROUTE = 26

_NLM_F_REQUEST = 1
_RTA_DST, _RTA_SRC, _RTA_OIF, _RTA_MARK = 1, 2, 4, 16

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_ROUTE = struct.Struct("=BBBBBBBBI")
_LINK = struct.Struct("=BxHiII")
_INT = struct.Struct("=i")
_UINT = struct.Struct("=I")


class Message(NamedTuple):
    kind: int
    sequence: int
    payload: memoryview


class RouteUnavailable(OSError):
    """The kernel knows no such route; `errno` is its answer (ENETUNREACH, EINVAL for a source that is not local)."""


def open_listener(groups: int) -> socket.socket:
    """A non-blocking socket that receives the multicasts of `groups`. Raises OSError where netlink is not allowed."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    try:
        sock.setblocking(False)
        sock.bind((0, groups))
    except BaseException:
        sock.close()
        raise
    return sock


def parse_messages(data: bytes | memoryview) -> Iterator[Message]:
    view, offset = memoryview(data), 0
    while offset + _HEADER.size <= len(view):
        length, kind, _flags, sequence, _port = _HEADER.unpack_from(view, offset)
        if length < _HEADER.size or offset + length > len(view):
            return
        yield Message(kind, sequence, view[offset + _HEADER.size : offset + length])
        offset += _aligned(length)


def parse_attributes(view: memoryview, offset: int) -> dict[int, bytes]:
    """The attributes behind a fixed header of `offset` bytes; of repeated ones the last."""
    attributes: dict[int, bytes] = {}
    while offset + _ATTRIBUTE.size <= len(view):
        length, kind = _ATTRIBUTE.unpack_from(view, offset)
        if length < _ATTRIBUTE.size or offset + length > len(view):
            break
        attributes[kind & 0x3FFF] = bytes(view[offset + _ATTRIBUTE.size : offset + length])
        offset += _aligned(length)
    return attributes


def parse_link_index(message: Message) -> int:
    """The interface index an RTM_NEWLINK or RTM_DELLINK is about, 0 for any other or a cut-off message."""
    if message.kind not in (RTM_NEWLINK, RTM_DELLINK) or len(message.payload) < _LINK.size:
        return 0
    return int(_LINK.unpack_from(message.payload)[2])


def drain(sock: socket.socket, limit: int = 64) -> tuple[list[Message], bool]:
    """What waits on a listener, at most `limit` datagrams, and whether some were lost (ENOBUFS: assume any change)."""
    messages: list[Message] = []
    lost = False
    for _ in range(limit):
        try:
            messages.extend(parse_messages(sock.recv(65536)))
        except BlockingIOError:
            break
        except OSError as error:
            lost = True
            if error.errno != errno.ENOBUFS:
                break
    return messages, lost


class RouteQuery:
    """Asks the kernel which way a packet would leave: RTM_GETROUTE, answered within the call. Not thread-safe."""

    def __init__(self) -> None:
        """Raises OSError where netlink is not allowed."""
        self._socket = open_listener(0)
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def output_interface(self, destination: str, source: str | None, mark: int) -> int:
        """The index of the interface a packet with these addresses and this mark would leave by.

        Raises RouteUnavailable when there is no route, or OSError when the kernel could not be asked. The kernel
        checks that an IPv4 `source` is one of its own addresses; for IPv6 it does not.
        """
        self._sequence = self._sequence % 0xFFFF_FFFF + 1
        drain(self._socket)
        self._socket.sendto(_emit_route_request(self._sequence, destination, source, mark), (0, 0))
        for message in parse_messages(self._socket.recv(65536)):
            if message.sequence == self._sequence:
                return _parse_route_reply(message)
        raise OSError(errno.EPROTO, "the kernel did not answer a route request")


def _emit_route_request(sequence: int, destination: str, source: str | None, mark: int) -> bytes:
    packed = ipaddress.ip_address(destination).packed
    bits = len(packed) * 8
    body = _emit_attribute(_RTA_DST, packed)
    if source is not None:
        body += _emit_attribute(_RTA_SRC, ipaddress.ip_address(source).packed)
    if mark:
        body += _emit_attribute(_RTA_MARK, _UINT.pack(mark))
    family = socket.AF_INET if bits == 32 else socket.AF_INET6
    route = _ROUTE.pack(family, bits, bits if source is not None else 0, 0, 0, 0, 0, 0, 0)
    length = _HEADER.size + len(route) + len(body)
    return _HEADER.pack(length, RTM_GETROUTE, _NLM_F_REQUEST, sequence, 0) + route + body


def _parse_route_reply(message: Message) -> int:
    if message.kind == NLMSG_ERROR and len(message.payload) >= _INT.size:
        number = -int(_INT.unpack_from(message.payload)[0])
        raise RouteUnavailable(number, os.strerror(number))
    output = parse_attributes(message.payload, _ROUTE.size).get(_RTA_OIF, b"")
    if message.kind != RTM_NEWROUTE or len(output) != _INT.size:
        raise OSError(errno.EPROTO, "the kernel answered a route request with something else")
    return int(_INT.unpack(output)[0])


def _emit_attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(_aligned(length) - length)


def _aligned(length: int) -> int:
    return (length + 3) & ~3

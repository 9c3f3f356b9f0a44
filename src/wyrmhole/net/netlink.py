"""The required part of rtnetlink (RFC 3549, rtnetlink(7)): subscribe to changes, query and change routes and links.

Lengths in messages are not trusted: a message or attribute that does not fit ends the parsing.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import select
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

NLMSG_ERROR, NLMSG_DONE = 2, 3
RTM_NEWLINK = 16
RTM_DELLINK = 17
RTM_GETLINK = 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNSID = 88
RTM_GETNSID = 90

_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP = 1, 4, 0x300
_RTA_DST, _RTA_SRC, _RTA_OIF, _RTA_MARK = 1, 2, 4, 16
_ROUTE_TYPE, _RTN_LOCAL = 7, 2
_IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO, _IFLA_EXT_MASK, _IFLA_GSO_MAX_SEGS, _IFLA_TARGET_NETNSID = 3, 4, 18, 29, 40, 46
_IFLA_INFO_KIND = 1
_RTEXT_FILTER_SKIP_STATS = 8
_NETNSA_NSID, _NETNSA_FD = 1, 3
_SOL_NETLINK, _NETLINK_LISTEN_ALL_NSID, _NETLINK_GET_STRICT_CHK = 270, 8, 12
_DUMP_PATIENCE_MS = 2000

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


class Refused(OSError):
    """The kernel refused a request, for example with ENETUNREACH (no route) or ENODEV (no such link)."""


class Link(NamedTuple):
    interface: int
    flags: int
    mtu: int
    kind: str = ""
    """The type that ip(8) prints, for example tun, wireguard or veth; empty if the link has no type."""


def open_listener(groups: int) -> socket.socket:
    """Return a non-blocking socket that receives the multicasts of `groups`. Raises OSError if not permitted."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    try:
        sock.setblocking(False)
        sock.bind((0, groups))
    except BaseException:
        sock.close()
        raise
    return sock


def listen_everywhere(listener: socket.socket) -> None:
    """Also receive multicasts of other network namespaces that have an id in this one. Raises OSError (EPERM)."""
    listener.setsockopt(_SOL_NETLINK, _NETLINK_LISTEN_ALL_NSID, 1)


def parse_messages(data: bytes | memoryview) -> Iterator[Message]:
    view, offset = memoryview(data), 0
    while offset + _HEADER.size <= len(view):
        length, kind, _flags, sequence, _port = _HEADER.unpack_from(view, offset)
        if length < _HEADER.size or offset + length > len(view):
            return
        yield Message(kind, sequence, view[offset + _HEADER.size : offset + length])
        offset += _aligned(length)


def parse_attributes(view: memoryview, offset: int) -> dict[int, bytes]:
    """Return the attributes after a fixed header of `offset` bytes. The last of repeated attributes counts."""
    attributes: dict[int, bytes] = {}
    while offset + _ATTRIBUTE.size <= len(view):
        length, kind = _ATTRIBUTE.unpack_from(view, offset)
        if length < _ATTRIBUTE.size or offset + length > len(view):
            break
        attributes[kind & 0x3FFF] = bytes(view[offset + _ATTRIBUTE.size : offset + length])
        offset += _aligned(length)
    return attributes


def parse_link_index(message: Message) -> int:
    """Return the interface index of an RTM_NEWLINK or RTM_DELLINK; 0 for another or an incomplete message."""
    if message.kind not in (RTM_NEWLINK, RTM_DELLINK) or len(message.payload) < _LINK.size:
        return 0
    return int(_LINK.unpack_from(message.payload)[2])


def drain(sock: socket.socket, limit: int = 64) -> tuple[list[Message], bool]:
    """Return the messages of up to `limit` waiting datagrams, and whether some were lost (ENOBUFS).

    After a loss, assume that anything has changed.
    """
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


class Client:
    """A client for requests that the kernel answers immediately. One thread may use it at a time."""

    def __init__(self, sock: socket.socket | None = None) -> None:
        """Open a socket, or use `sock`, which may belong to another network namespace. Raises OSError."""
        self._socket = open_listener(0) if sock is None else sock
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def output_interface(self, destination: str, source: str | None, mark: int) -> int:
        """Return the index of the interface through which a packet with these addresses and this mark would leave.

        Raises Refused if there is no route, OSError if the request failed. The kernel checks that an IPv4 `source` is
        one of its own addresses, but does not check an IPv6 `source`.
        """
        reply = self._route(destination, source, mark)
        output = parse_attributes(reply.payload, _ROUTE.size).get(_RTA_OIF, b"")
        if len(output) != _INT.size:
            raise OSError(errno.EPROTO, "unexpected answer of the kernel to a route request")
        return int(_INT.unpack(output)[0])

    def is_local(self, address: str) -> bool:
        """Whether this host accepts packets to the address. Raises OSError."""
        try:
            return bool(_ROUTE.unpack_from(self._route(address, None, 0).payload)[_ROUTE_TYPE] == _RTN_LOCAL)
        except Refused:
            return False

    def route(self, destination: str, interface: int = 0) -> Message:
        """Return the route to an address, optionally through a given interface. Raises Refused, OSError."""
        return self._route(destination, None, 0, interface)

    def _route(self, destination: str, source: str | None, mark: int, interface: int = 0) -> Message:
        reply = self._ask(RTM_GETROUTE, _emit_route_request(destination, source, mark, interface))
        if reply.kind != RTM_NEWROUTE or len(reply.payload) < _ROUTE.size:
            raise OSError(errno.EPROTO, "unexpected answer of the kernel to a route request")
        return reply

    def link(self, name: str, namespace_id: int | None) -> Link:
        """Return the interface of a name, here or in the namespace of an id. Raises Refused (ENODEV), OSError."""
        return self._link(0, emit_attribute(_IFLA_IFNAME, os.fsencode(name) + b"\0"), namespace_id)

    def link_at(self, index: int) -> Link:
        """Return the interface of an index. Raises Refused (ENODEV), OSError."""
        return self._link(index, b"", None)

    def _link(self, wanted: int, name: bytes, namespace_id: int | None) -> Link:
        body = _LINK.pack(0, 0, wanted, 0, 0) + name
        body += emit_attribute(_IFLA_EXT_MASK, _UINT.pack(_RTEXT_FILTER_SKIP_STATS))
        if namespace_id is not None:
            body += emit_attribute(_IFLA_TARGET_NETNSID, _INT.pack(namespace_id))
        reply = self._ask(RTM_GETLINK, body)
        attributes = parse_attributes(reply.payload, _LINK.size)
        mtu = attributes.get(_IFLA_MTU, b"")
        if reply.kind != RTM_NEWLINK or len(mtu) != _UINT.size:
            raise OSError(errno.EPROTO, "unexpected answer of the kernel to a link request")
        _family, _kind, index, flags, _change = _LINK.unpack_from(reply.payload)
        info = parse_attributes(memoryview(attributes.get(_IFLA_LINKINFO, b"")), 0)
        kind = info.get(_IFLA_INFO_KIND, b"").rstrip(b"\0").decode("ascii", "replace")
        return Link(index, flags, _UINT.unpack(mtu)[0], kind)

    def namespace_id(self, namespace: int) -> int:
        """Return the id that the network namespace of a descriptor has in this namespace. Assign one if necessary.

        The id does not keep the other namespace alive. Raises Refused (EPERM), OSError.
        """
        by_descriptor = emit_attribute(_NETNSA_FD, _UINT.pack(namespace))
        known = self._ask_namespace(by_descriptor)
        if known < 0:
            any_free = emit_attribute(_NETNSA_NSID, _INT.pack(-1))
            self._send(RTM_NEWNSID, _NLM_F_REQUEST | _NLM_F_ACK, bytes(4) + any_free + by_descriptor)
            self._receive()
            known = self._ask_namespace(by_descriptor)
        return known

    def limit_segments(self, interface: int, count: int) -> None:
        """Limit the segments of a super-packet that the kernel sends through an interface. Raises Refused, OSError."""
        body = _LINK.pack(0, 0, interface, 0, 0) + emit_attribute(_IFLA_GSO_MAX_SEGS, _UINT.pack(count))
        self.change(RTM_NEWLINK, 0, body)

    def change(self, kind: int, flags: int, body: bytes) -> None:
        """Send a request that changes something, and wait for the acknowledgement. Raises Refused, OSError."""
        self._send(kind, _NLM_F_REQUEST | _NLM_F_ACK | flags, body)
        self._receive()

    def dump(self, kind: int, body: bytes) -> Iterator[Message]:
        """Yield all objects of a kind. Do not use the client meanwhile. Raises Refused, OSError."""
        self._send(kind, _NLM_F_REQUEST | _NLM_F_DUMP, body)
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        while poll.poll(_DUMP_PATIENCE_MS):
            for message in parse_messages(self._socket.recv(1 << 16)):
                if message.sequence != self._sequence:
                    continue
                if message.kind == NLMSG_DONE:
                    return
                if message.kind == NLMSG_ERROR and len(message.payload) >= _INT.size:
                    number = -int(_INT.unpack_from(message.payload)[0])
                    raise Refused(number, os.strerror(number))
                yield message
        raise OSError(errno.ETIMEDOUT, "the kernel did not finish a netlink answer")

    def check_strictly(self) -> None:
        """Make the kernel apply the filters of dumps. Raises OSError before Linux 4.20."""
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)

    def _ask_namespace(self, by_descriptor: bytes) -> int:
        reply = self._ask(RTM_GETNSID, bytes(4) + by_descriptor)
        number = parse_attributes(reply.payload, 4).get(_NETNSA_NSID, b"")
        return int(_INT.unpack(number)[0]) if len(number) == _INT.size else -1

    def _ask(self, kind: int, body: bytes) -> Message:
        self._send(kind, _NLM_F_REQUEST, body)
        return self._receive()

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        drain(self._socket)
        self._sequence = self._sequence % 0xFFFF_FFFF + 1
        header = _HEADER.pack(_HEADER.size + len(body), kind, flags, self._sequence, 0)
        self._socket.sendto(header + body, (0, 0))

    def _receive(self) -> Message:
        for message in parse_messages(self._socket.recv(65536)):
            if message.sequence != self._sequence:
                continue
            _check(message)
            return message
        raise OSError(errno.EPROTO, "the kernel did not answer a netlink request")


def _check(message: Message) -> None:
    """Raises Refused for an error message. Error number 0 is an acknowledgement."""
    if message.kind == NLMSG_ERROR and len(message.payload) >= _INT.size:
        number = -int(_INT.unpack_from(message.payload)[0])
        if number:
            raise Refused(number, os.strerror(number))


def _emit_route_request(destination: str, source: str | None, mark: int, interface: int) -> bytes:
    packed = ipaddress.ip_address(destination).packed
    bits = len(packed) * 8
    body = emit_attribute(_RTA_DST, packed)
    if source is not None:
        body += emit_attribute(_RTA_SRC, ipaddress.ip_address(source).packed)
    if mark:
        body += emit_attribute(_RTA_MARK, _UINT.pack(mark))
    if interface:
        body += emit_attribute(_RTA_OIF, _UINT.pack(interface))
    family = socket.AF_INET if bits == 32 else socket.AF_INET6
    return _ROUTE.pack(family, bits, bits if source is not None else 0, 0, 0, 0, 0, 0, 0) + body


def emit_attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(_aligned(length) - length)


def _aligned(length: int) -> int:
    return (length + 3) & ~3

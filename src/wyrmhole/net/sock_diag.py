"""End the sockets of a network namespace, no matter which process holds them (sock_diag(7), SOCK_DESTROY).

An ended socket fails immediately with ECONNABORTED in all processes. This requires CAP_NET_ADMIN over the namespace and
a kernel built with CONFIG_INET_DIAG_DESTROY; other kernels answer EOPNOTSUPP.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator

from wyrmhole.net import netlink

NETLINK_SOCK_DIAG = 4

_SOCK_DIAG_BY_FAMILY, _SOCK_DESTROY = 20, 21
_REQUEST, _ACK, _DUMP = 1, 4, 0x300
_DONE = 3
_TIME_WAIT = 6
_SO_COOKIE = 57
_STATES = 0xFFF & ~(1 << _TIME_WAIT)
"""All states except TIME_WAIT, in which no process holds the socket."""
_HEADER = struct.Struct("=IHHII")
_SELECTOR = struct.Struct("=BBBxI")
_ID_SIZE = 48
_ID_OFFSET = 4
_INTERFACE_OFFSET = 36
_COOKIE_OFFSET = 40
_INT = struct.Struct("=i")
_UINT = struct.Struct("=I")
_PATIENCE = 2.0
ROUNDS = 4
"""Limit of passes over TCP, because a listener may accept another connection before it is ended."""


class SockDiag:
    """Lists and ends sockets. One thread may use it at a time.

    `sock` is a blocking socket of NETLINK_SOCK_DIAG, made in the namespace.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._sequence = 0
        sock.settimeout(_PATIENCE)

    def close(self) -> None:
        self._socket.close()

    def destroy_all(self, interface: int = 0) -> int:
        """End all TCP and UDP sockets, or those bound to an interface, and return their number.

        Raises OSError: EOPNOTSUPP, EPERM.
        """
        ended = 0
        for family in (socket.AF_INET, socket.AF_INET6):
            ended += self._destroy(family, socket.IPPROTO_UDP, interface)
            for _ in range(ROUNDS):
                count = self._destroy(family, socket.IPPROTO_TCP, interface)
                ended += count
                if not count:
                    break
        return ended

    def destroy(self, sock: socket.socket) -> None:
        """End one UDP socket of this namespace. Raises OSError."""
        cookie = sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8)
        for identity in self._dump(sock.family, socket.IPPROTO_UDP):
            if identity[_COOKIE_OFFSET:] == cookie:
                self._end(sock.family, socket.IPPROTO_UDP, identity)
                return
        raise OSError(errno.ENOENT, "the socket is not listed")

    def _destroy(self, family: int, protocol: int, interface: int) -> int:
        ended = 0
        for identity in list(self._dump(family, protocol)):
            if interface and _UINT.unpack_from(identity, _INTERFACE_OFFSET)[0] != interface:
                continue
            # It may have ended since the dump.
            with contextlib.suppress(FileNotFoundError):
                self._end(family, protocol, identity)
                ended += 1
        return ended

    def _dump(self, family: int, protocol: int) -> Iterator[bytes]:
        self._send(_SOCK_DIAG_BY_FAMILY, _DUMP, _SELECTOR.pack(family, protocol, 0, _STATES) + bytes(_ID_SIZE))
        while True:
            for message in netlink.parse_messages(self._socket.recv(1 << 18)):
                if message.sequence != self._sequence:
                    continue
                if message.kind == _DONE:
                    return
                if message.kind == netlink.NLMSG_ERROR:
                    # The kernel does not have the protocol, so there are no sockets.
                    if -_INT.unpack_from(message.payload)[0] == errno.ENOENT:
                        return
                    _raise(message)
                yield bytes(message.payload[_ID_OFFSET : _ID_OFFSET + _ID_SIZE])

    def _end(self, family: int, protocol: int, identity: bytes) -> None:
        self._send(_SOCK_DESTROY, _ACK, _SELECTOR.pack(family, protocol, 0, _STATES) + identity)
        for message in netlink.parse_messages(self._socket.recv(65536)):
            if message.sequence == self._sequence:
                _raise(message)

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._sequence = self._sequence % 0xFFFF_FFFF + 1
        header = _HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | flags, self._sequence, 0)
        self._socket.sendto(header + body, (0, 0))


def _raise(message: netlink.Message) -> None:
    if message.kind == netlink.NLMSG_ERROR and len(message.payload) >= _INT.size:
        number = -int(_INT.unpack_from(message.payload)[0])
        if number:
            raise OSError(number, os.strerror(number))

"""UdpBind: kernel UDP, with an IPv4 and an IPv6 socket on one port.

One engine thread polls `filenos` and calls `receive` and `send`, which are the hot path. Each makes one system call.
The receive buffer is reused, and the control messages for sending are built once per combination and cached. A train of
up to 64 KiB is sent or received whole (UDP_GRO, UDP_SEGMENT). `udp_socket` handles socket errors, `sticky` the source
addresses.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Sequence

from wyrmhole.net import sticky, udp_offload
from wyrmhole.net.bind import KernelSocket, Payload, SendOutcome
from wyrmhole.net.udp_socket import BindCounters, SocketFactory, SocketOptions, UdpSocket, family_is_missing
from wyrmhole.wire.buffer import Buffer
from wyrmhole.wire.datagram import Received
from wyrmhole.wire.endpoint import SockAddr

_RECEIVE_BYTES = 1 << 17
"""A train has at most 65,535 bytes today. Twice as much is free, because memory is allocated when it is written to."""

_CONTROL_BYTES = 256
_ERRORS_IN_A_ROW = 4
_OPEN_ATTEMPTS = 100

_IPV4 = socket.IPPROTO_IP
_IPV6 = socket.IPPROTO_IPV6
_UDP = socket.IPPROTO_UDP
_UDP_GRO = udp_offload.UDP_GRO
_IP_TOS = socket.IP_TOS
_IP_PKTINFO = sticky.IP_PKTINFO
_IPV6_TCLASS = socket.IPV6_TCLASS
_IPV6_PKTINFO = socket.IPV6_PKTINFO
_DAMAGED = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)
_INT = struct.Struct("=i")
_SENT = SendOutcome.SENT

_Pair = tuple[UdpSocket | None, UdpSocket | None]
"""The IPv4 and the IPv6 socket; None if the host lacks the family."""


class UdpBind:
    """See `net.bind.Bind`.

    `gso` and `gro` switch off trains on a kernel or driver that damages them; `doubts_trains` reports that this kernel
    may do so. `shares` is the number of sockets of each family on the port, one for each of an engine's workers. `send`
    uses the first pair.
    """

    def __init__(
        self, *, gso: bool = True, gro: bool = True, shares: int = 1, socket_factory: SocketFactory = socket.socket
    ) -> None:
        self.doubts_trains = udp_offload.is_suspect(os.uname().release)
        self.counters = BindCounters()
        self._options = SocketOptions(gso, gro, socket_factory, shares_port=shares > 1)
        self._shares = shares
        self._pairs: list[_Pair] = []
        self._mark = 0
        self._v4: UdpSocket | None = None
        self._v6: UdpSocket | None = None
        self._sockets: dict[int, UdpSocket] = {}
        self._filenos: tuple[int, ...] = ()
        self._routes: sticky.RouteWatch | None = None
        self._stale = False
        self._buffers = [bytearray(_RECEIVE_BYTES)]
        self._view = memoryview(self._buffers[0])

    def open(self, port: int) -> int:
        """Bind both families (one is enough) to a port, 0 for any, and return the port.

        Raises OSError: EADDRINUSE if the port is in use in one of the families, EAFNOSUPPORT if neither family is
        available, EPERM if the mark is not permitted, EISCONN if the bind is already open.
        """
        if self._filenos:
            raise OSError(errno.EISCONN, "the bind is already open")
        if self._shares > 1:
            self._claim(port)
        self._v4, self._v6 = self._open_pair(port)
        self._pairs = [(self._v4, self._v6)]
        chosen = next(sock.port for sock in self._pairs[0] if sock is not None)
        try:
            self._pairs += [self._open_pair(chosen) for _ in range(self._shares - 1)]
        finally:
            self._sockets = {sock.fileno(): sock for pair in self._pairs for sock in pair if sock is not None}
            self._filenos = tuple(self._sockets)
        try:
            self._routes = sticky.RouteWatch()
            self._filenos += (self._routes.fileno(),)
        except OSError:
            # Without notifications of changes, a source is kept until a send from it fails.
            self._routes = None
        return next(iter(self._sockets.values())).port

    def _claim(self, port: int) -> None:
        """Raises OSError (EADDRINUSE) if the port is in use.

        Sockets that share a port can be bound beside shared sockets of another program, but an unshared socket cannot.
        """
        alone = UdpBind(socket_factory=self._options.factory)
        try:
            alone.open(port)
        finally:
            alone.close()

    def _open_pair(self, port: int) -> _Pair:
        for attempt in range(_OPEN_ATTEMPTS):
            v4 = self._open_family(socket.AF_INET, port)
            try:
                v6 = self._open_family(socket.AF_INET6, port if v4 is None else v4.port)
            except OSError as error:
                if v4 is not None:
                    v4.close()
                if port or error.errno != errno.EADDRINUSE or attempt == _OPEN_ATTEMPTS - 1:
                    raise
                continue
            if v4 is not None or v6 is not None:
                return v4, v6
            break
        raise OSError(errno.EAFNOSUPPORT, "this host has neither IPv4 nor IPv6")

    def _open_family(self, family: socket.AddressFamily, port: int) -> UdpSocket | None:
        """Return a socket, or None if the host lacks the family."""
        try:
            return UdpSocket(family, port, self._mark, self._options, self.counters)
        except OSError as error:
            if family_is_missing(error):
                return None
            raise

    def close(self) -> None:
        """Close the sockets. Idempotent. The bind can be opened again."""
        for closable in (*self._sockets.values(), self._routes):
            if closable is not None:
                closable.close()
        self._v4 = self._v6 = self._routes = None
        self._pairs = []
        self._sockets, self._filenos, self._stale = {}, (), False

    def set_mark(self, mark: int) -> None:
        """Set the fwmark of all sent packets, 0 for none. It is kept across `open`. Raises OSError (EPERM).

        May be called in any thread. While the bind is closed, the mark is only stored, and `open` raises.
        """
        for sock in tuple(self._sockets.values()):
            sock.set_mark(mark)
        self._stale = self._stale or mark != self._mark
        self._mark = mark

    @property
    def last_error(self) -> int:
        """See `net.bind.KernelBind`."""
        return self.counters.last_error

    def filenos(self) -> Sequence[int]:
        return self._filenos

    def kernel_sockets(self) -> Sequence[Sequence[KernelSocket]]:
        """See `net.bind.KernelBind`."""
        return [
            [KernelSocket(sock.fileno(), sock.family == socket.AF_INET6, sock.gso) for sock in pair if sock is not None]
            for pair in self._pairs
        ]

    def receive(self, fileno: int) -> Received | None:
        """Receive one message. See `net.bind.Bind.receive`. Malformed control messages are ignored."""
        sock = self._sockets.get(fileno)
        if sock is None:
            self._note_changes(fileno)
            return None
        errors = 0
        while True:
            try:
                size, control, flags, sockaddr = sock.recvmsg_into(self._buffers, _CONTROL_BYTES)
            except BlockingIOError:
                return None
            except OSError as error:
                errors += 1
                self.counters.receive_errors[error.errno or errno.EIO] += 1
                if errors == _ERRORS_IN_A_ROW:
                    sock.revive()
                    return None
                continue
            if not flags & _DAMAGED:
                break
            self.counters.truncated += 1
            if not flags & socket.MSG_TRUNC:
                break
        segment_size = tos = 0
        source = None
        for level, kind, value in control:
            if kind == _UDP_GRO and level == _UDP:
                if len(value) == 4:
                    segment_size = _INT.unpack(value)[0]
            elif kind == _IP_PKTINFO and level == _IPV4:
                if len(value) == 12:
                    source = value
            elif kind == _IP_TOS and level == _IPV4:
                tos = value[0] if value else 0
            elif kind == _IPV6_PKTINFO and level == _IPV6:
                if len(value) == 20:
                    source = value
            elif kind == _IPV6_TCLASS and level == _IPV6 and len(value) == 4:
                tos = _INT.unpack(value)[0]
        if not 0 < segment_size < size:
            segment_size = 0
        return Received(self._view[:size], segment_size, sockaddr, source, tos)

    def _note_changes(self, fileno: int) -> None:
        if self._routes is not None and fileno == self._routes.fileno() and self._routes.take_changes():
            self._stale = True
            for sock in self._sockets.values():
                sock.oversized.clear()

    def send(
        self, data: Payload, segment_size: int, sockaddr: SockAddr, source: bytes | None, tos: int = 0
    ) -> SendOutcome:
        """Send one datagram or a train. See `net.bind.Bind.send`. Socket errors do not raise."""
        sock = self._v6 if ":" in sockaddr[0] else self._v4
        parts: Sequence[Buffer] = data if isinstance(data, (list, tuple)) else (data,)
        count = 1
        if segment_size:
            size = sum(map(len, parts))
            if size > segment_size:
                count = -(-size // segment_size)
            else:
                segment_size = 0
        if sock is None:
            self.counters.count_dropped(errno.EAFNOSUPPORT, count)
            return SendOutcome.DROPPED
        if segment_size and (
            size > sock.max_bytes or count > sock.max_segments or not sock.gso or sockaddr in sock.oversized
        ):
            return sock.send_split(parts, segment_size, sockaddr, source, tos)
        control = sock.controls.get((segment_size, source, tos))
        if control is None:
            control = sock.control(segment_size, source, tos)
        try:
            sock.sendmsg(parts, control, 0, sockaddr)
        except OSError as error:
            return sock.recover(error.errno or errno.EIO, parts, segment_size, sockaddr, source, tos)
        self.counters.sent += count
        return _SENT

    def take_stale_sources(self) -> bool:
        stale, self._stale = self._stale, False
        return stale

    def source_is_valid(self, sockaddr: SockAddr, source: bytes) -> bool:
        return self._routes is None or self._routes.source_is_valid(sockaddr, source, self._mark)

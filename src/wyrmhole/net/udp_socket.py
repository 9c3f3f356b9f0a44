"""One UDP socket of one family: open it, and recover from failed sends and receives.

Sending has a fast path, `UdpBind.send`, and a slow path, which is here. The fast path makes one system call and passes
its errno to `recover`. `sendmsg` is all or nothing, so after an error the whole message is unsent, and the following
remedies may send it again without duplicates:

- EAGAIN: wait for buffer space, at most 10 ms for one `send`, then drop.
- ECONNREFUSED: an ICMP error for an earlier datagram. It is reported only once, so try again.
- EINVAL, EADDRNOTAVAIL, ENETUNREACH and others with a pinned source: try again without the source. If that works, the
  source was invalid, which is reported to the caller. (A removed IPv4 address causes ENETUNREACH on Linux 6.18 and
  EINVAL on older kernels.)
- EIO with a train: the device cannot segment or checksum. Send this train as single datagrams, and no more trains on
  this socket.
- EMSGSIZE with a train: its datagrams exceed the path MTU. Send single datagrams, which are fragmented, because the
  don't-fragment bit is not set. Do so for this destination for a thousand trains, or until routes change.
- EINVAL with a train on an older kernel: either it has more than 64 datagrams (lower the limit), or the cause is that
  of EMSGSIZE (compare the path MTU). Otherwise the kernel refuses trains: send single datagrams, and if these pass, no
  more trains.
- Any other error: drop and count. `device/send_errors.py` reports it once per peer.

If receiving fails persistently, the socket is replaced by a new one with the same descriptor number, so that no poll
set changes. While the port is not available, a timer has that descriptor number and wakes the poller for the next
attempt.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from wyrmhole.net import sticky, timerfd, udp_offload
from wyrmhole.net.bind import SendOutcome
from wyrmhole.wire.buffer import Buffer
from wyrmhole.wire.endpoint import SockAddr

SocketFactory = Callable[..., socket.socket]
"""`socket.socket` or a stand-in, called as (family, kind, protocol) or (family, kind, protocol, fileno)."""

BUFFER_BYTES = 7 << 20
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33
_IP_MTU_DISCOVER = 10
_IPV6_MTU_DISCOVER = 23
_IPV6_AUTOFLOWLABEL = 70
_PMTUDISC_DONT = 0

_WAIT_MILLISECONDS = 1
_WAITS = 10
_SEND_ATTEMPTS = 12
_OVERSIZED_TRAINS = 1000
_OVERSIZED_LIMIT = 1024
_CONTROLS_LIMIT = 4096
_REVIVE_BACKOFF = (0.05, 0.25, 1.0, 5.0)
_REVIVE_QUIET_SECONDS = 60.0

_FAMILY_MISSING = frozenset({errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.EADDRNOTAVAIL})
_SOURCE_ERRORS = frozenset(
    {
        errno.EINVAL,
        errno.EADDRNOTAVAIL,
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
        errno.ENODEV,
        errno.ENXIO,
        errno.ENETDOWN,
        errno.EACCES,
    }
)


@dataclass(slots=True)
class BindCounters:
    """The counters of a bind, in datagrams unless noted otherwise. `dropped` and `receive_errors` are by errno."""

    sent: int = 0
    dropped: Counter[int] = field(default_factory=Counter)
    receive_errors: Counter[int] = field(default_factory=Counter)
    truncated: int = 0
    gso_fallbacks: int = 0
    """How often a socket switched trains off for all destinations."""
    fragmented_trains: int = 0
    """Trains sent as single datagrams because they exceed the path MTU."""
    sources_rejected: int = 0
    reopened: int = 0
    last_error: int = 0
    """The errno of the latest dropped datagram."""

    def count_dropped(self, number: int, datagrams: int) -> None:
        self.dropped[number] += datagrams
        self.last_error = number


@dataclass(frozen=True, slots=True)
class SocketOptions:
    gso: bool = True
    gro: bool = True
    factory: SocketFactory = socket.socket
    shares_port: bool = False
    """Whether several sockets of one family share the port (SO_REUSEPORT). The kernel distributes senders over them."""


def family_is_missing(error: OSError) -> bool:
    """Whether opening failed because the host lacks the family, and not because of the port."""
    return error.errno in _FAMILY_MISSING


class Message(NamedTuple):
    """The arguments of one `sendmsg`: a datagram (`segment_size` 0), or a train of datagrams of that size."""

    view: memoryview
    segment_size: int
    sockaddr: SockAddr
    source: bytes | None
    tos: int

    @property
    def datagrams(self) -> int:
        return -(-len(self.view) // self.segment_size) if self.segment_size else 1


class UdpSocket:
    """A UDP socket. `UdpBind` uses `recvmsg_into`, `sendmsg`, `controls` and the GSO limits directly, for speed."""

    def __init__(
        self, family: socket.AddressFamily, port: int, mark: int, options: SocketOptions, counters: BindCounters
    ) -> None:
        """Open and bind a socket. Raises OSError: EADDRINUSE, EPERM for the mark; see also `family_is_missing`."""
        self.family = family
        self.mark = mark
        self.counters = counters
        self.options = options
        self.gso = False
        self.gro = False
        self.max_segments = udp_offload.MAX_SEGMENTS
        self.max_bytes = udp_offload.MAX_TRAIN_BYTES
        self.controls: dict[tuple[int, bytes | None, int], Sequence[tuple[int, int, bytes]]] = {}
        self.oversized: dict[SockAddr, tuple[int, int]] = {}
        self._waits = 0
        self._revivals = 0
        self._quiet_timer = -1
        self._timer_waits = False
        sock = self._create()
        try:
            sock.bind(self._wildcard(port))
            self.port = int(sock.getsockname()[1])
        except BaseException:
            sock.close()
            raise
        self._use(sock)
        self.gso = options.gso and udp_offload.can_segment(sock)

    def _create(self) -> socket.socket:
        kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        sock = self.options.factory(self.family, kind, socket.IPPROTO_UDP)
        try:
            _configure(sock, self.family)
            if self.options.shares_port:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if self.mark:
                udp_offload.set_mark(sock, self.mark)
            self.gro = self.options.gro and udp_offload.enable_gro(sock)
        except BaseException:
            sock.close()
            raise
        return sock

    def _wildcard(self, port: int) -> tuple[str, int]:
        return ("0.0.0.0" if self.family == socket.AF_INET else "::", port)

    def _use(self, sock: socket.socket) -> None:
        self._socket = sock
        self.recvmsg_into = sock.recvmsg_into
        self.sendmsg = sock.sendmsg

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()
        if self._quiet_timer >= 0:
            os.close(self._quiet_timer)
            self._quiet_timer = -1

    def set_mark(self, mark: int) -> None:
        if not self._timer_waits:
            udp_offload.set_mark(self._socket, mark)
        self.mark = mark

    # Sending

    def control(self, segment_size: int, source: bytes | None, tos: int) -> Sequence[tuple[int, int, bytes]]:
        """Return and cache the control messages of a send. A source of the other family is ignored."""
        messages = self._make_control(segment_size, source, tos)
        if len(self.controls) >= _CONTROLS_LIMIT:
            self.controls.clear()
        self.controls[segment_size, source, tos] = messages
        return messages

    def _make_control(self, segment_size: int, source: bytes | None, tos: int) -> list[tuple[int, int, bytes]]:
        messages: list[tuple[int, int, bytes]] = []
        is_v4 = self.family == socket.AF_INET
        if segment_size:
            messages.append((socket.IPPROTO_UDP, udp_offload.UDP_SEGMENT, _native(segment_size, 2)))
        if source is not None and len(source) == (sticky.IPV4_SOURCE_SIZE if is_v4 else sticky.IPV6_SOURCE_SIZE):
            messages.append(sticky.pin_source(source))
        if tos and is_v4:
            messages.append((socket.IPPROTO_IP, socket.IP_TOS, _native(tos, 4)))
        elif tos:
            messages.append((socket.IPPROTO_IPV6, socket.IPV6_TCLASS, _native(tos, 4)))
        return messages

    def send_split(
        self, data: Sequence[Buffer], segment_size: int, sockaddr: SockAddr, source: bytes | None, tos: int
    ) -> SendOutcome:
        """Send a train that the fast path cannot send whole: it is too long, or trains are off for the destination."""
        self._waits = _WAITS
        return self._send_train(Message(_joined(data), segment_size, sockaddr, source, tos))

    def recover(
        self,
        number: int,
        data: Sequence[Buffer],
        segment_size: int,
        sockaddr: SockAddr,
        source: bytes | None,
        tos: int,
    ) -> SendOutcome:
        """Apply the remedies after `sendmsg` failed with errno `number`. The outcome covers the whole message."""
        self._waits = _WAITS
        return self._settle(number, Message(_joined(data), segment_size, sockaddr, source, tos))

    def _send_train(self, train: Message) -> SendOutcome:
        if not self.gso or self._is_oversized(train.sockaddr, train.segment_size):
            return self._send_singles(train)
        return self._send_pieces(train, self.max_segments, self.max_bytes)

    def _send_singles(self, train: Message) -> SendOutcome:
        return self._send_pieces(train, 1, train.segment_size)

    def _send_pieces(self, train: Message, max_segments: int, max_bytes: int) -> SendOutcome:
        view, segment_size, sockaddr, source, tos = train
        outcome = SendOutcome.SENT
        for piece in udp_offload.split_train(view, segment_size, max_segments, max_bytes):
            size = segment_size if len(piece) > segment_size else 0
            outcome |= self._send_piece(Message(piece, size, sockaddr, source, tos))
            if outcome & SendOutcome.SOURCE_REJECTED:
                source = None
        return outcome

    def _send_piece(self, message: Message) -> SendOutcome:
        number = self._attempt(message)
        return self._settle(number, message) if number else SendOutcome.SENT

    def _attempt(self, message: Message) -> int:
        """Make one `sendmsg`, and return 0 or its errno."""
        view, segment_size, sockaddr, source, tos = message
        control = self.controls.get((segment_size, source, tos))
        if control is None:
            control = self.control(segment_size, source, tos)
        try:
            self.sendmsg((view,), control, 0, sockaddr)
        except OSError as error:
            return error.errno or errno.EIO
        self.counters.sent += message.datagrams
        return 0

    def _settle(self, number: int, message: Message) -> SendOutcome:
        """Apply the remedies of the module's docstring in order, after an attempt that failed with `number`."""
        for _ in range(_SEND_ATTEMPTS):
            if number != errno.ECONNREFUSED and not (number == errno.EAGAIN and self._wait_writable()):
                break
            number = self._attempt(message)
            if not number:
                return SendOutcome.SENT
        if message.source is not None and number in _SOURCE_ERRORS and not self._attempt(message._replace(source=None)):
            self.counters.sources_rejected += 1
            return SendOutcome.SOURCE_REJECTED
        if message.segment_size and number in (errno.EIO, errno.EMSGSIZE, errno.EINVAL):
            return self._give_up_train(number, message)
        self.counters.count_dropped(number, message.datagrams)
        return SendOutcome.DROPPED

    def _give_up_train(self, number: int, train: Message) -> SendOutcome:
        if number == errno.EINVAL and self.max_segments > udp_offload.OLD_MAX_SEGMENTS < train.datagrams:
            self.max_segments = udp_offload.OLD_MAX_SEGMENTS
            return self._send_train(train)
        if number == errno.EIO:
            self._turn_gso_off()
        elif number == errno.EMSGSIZE or udp_offload.exceeds_path(
            self.family, train.sockaddr, self.mark, train.segment_size
        ):
            self._remember_oversized(train.sockaddr, train.segment_size)
        else:
            outcome = self._send_singles(train)
            if not outcome & SendOutcome.DROPPED:
                self._turn_gso_off()
            return outcome
        return self._send_singles(train)

    def _turn_gso_off(self) -> None:
        self.gso = False
        self.counters.gso_fallbacks += 1

    def _wait_writable(self) -> bool:
        """Wait up to 1 ms for buffer space. Return False if this `send` has already waited 10 ms in total."""
        if not self._waits:
            return False
        self._waits -= 1
        poller = select.poll()
        poller.register(self._socket.fileno(), select.POLLOUT)
        poller.poll(_WAIT_MILLISECONDS)
        return True

    def _is_oversized(self, sockaddr: SockAddr, segment_size: int) -> bool:
        size, trains_left = self.oversized.get(sockaddr, (0, 0))
        if not size or segment_size < size:
            return False
        if not trains_left:
            del self.oversized[sockaddr]
            return False
        self.oversized[sockaddr] = (size, trains_left - 1)
        self.counters.fragmented_trains += 1
        return True

    def _remember_oversized(self, sockaddr: SockAddr, segment_size: int) -> None:
        if len(self.oversized) >= _OVERSIZED_LIMIT:
            del self.oversized[next(iter(self.oversized))]
        self.oversized[sockaddr] = (segment_size, _OVERSIZED_TRAINS)
        self.counters.fragmented_trains += 1

    # Receiving

    def revive(self) -> None:
        """Replace a socket that only returns errors, immediately the first time, later after a wait."""
        if self._timer_waits and not timerfd.take_expiry(self.fileno()):
            return
        timer_fired, self._timer_waits = self._timer_waits, False
        if self._was_quiet():
            self._revivals = 0
        self._revivals += 1
        if not timer_fired and self._revivals > 1:
            self._sleep_instead()
            return
        try:
            self._replace()
        except OSError as error:
            self.counters.receive_errors[error.errno or errno.EIO] += 1
            self._sleep_instead()

    def _was_quiet(self) -> bool:
        """Whether the last call was over a minute ago. A socket that worked that long is replaced immediately."""
        try:
            if self._quiet_timer < 0:
                self._quiet_timer = timerfd.open_timer()
            expired = timerfd.take_expiry(self._quiet_timer)
            timerfd.arm(self._quiet_timer, _REVIVE_QUIET_SECONDS)
        except OSError:
            return False
        return expired

    def _replace(self) -> None:
        fileno = self.fileno()
        with self._create() as fresh:
            # A duplicate of the dead socket, in an engine or a forked child, may still hold the port.
            self._set_reuse(self._socket, True)
            self._set_reuse(fresh, True)
            os.dup2(fresh.fileno(), fileno, inheritable=False)
        successor = self.options.factory(self.family, socket.SOCK_DGRAM, socket.IPPROTO_UDP, fileno)
        self._socket.detach()
        self._use(successor)
        self._socket.setblocking(False)
        self._socket.bind(self._wildcard(self.port))
        self._set_reuse(self._socket, False)
        self.counters.reopened += 1

    def _set_reuse(self, sock: socket.socket, wanted: bool) -> None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(wanted))

    def _sleep_instead(self) -> None:
        """Put a timer under the descriptor number until the next attempt, so that a poller sleeps until then."""
        wait = _REVIVE_BACKOFF[min(self._revivals, len(_REVIVE_BACKOFF)) - 1]
        try:
            timer = timerfd.open_timer()
        except OSError:
            return
        timerfd.arm(timer, wait)
        os.dup2(timer, self.fileno(), inheritable=False)
        os.close(timer)
        self._timer_waits = True


def _configure(sock: socket.socket, family: socket.AddressFamily) -> None:
    """Set the options that the bind requires, and try to set optional ones.

    The don't-fragment bit stays clear (PMTUDISC_DONT), so that a path with a smaller MTU causes IP fragments instead of
    a black hole. The kernel still respects the path MTU that it learns from ICMPv6.
    """
    if family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, sticky.IP_PKTINFO, 1)
        optional: list[tuple[int, int, int]] = [
            (socket.IPPROTO_IP, socket.IP_RECVTOS, 1),
            (socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DONT),
            # An endpoint may be a broadcast address, to find a peer on the local network. Otherwise EACCES.
            (socket.SOL_SOCKET, socket.SO_BROADCAST, 1),
        ]
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        optional = [
            (socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1),
            (socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_DONT),
            # Like the kernel's WireGuard. An automatic label would be the same for all peers, and kept when they move.
            (socket.IPPROTO_IPV6, _IPV6_AUTOFLOWLABEL, 0),
        ]
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF, _SO_RCVBUFFORCE, _SO_SNDBUFFORCE):
        optional.append((socket.SOL_SOCKET, option, BUFFER_BYTES))
    for level, option, value in optional:
        try:
            sock.setsockopt(level, option, value)
        except OSError:
            continue


def _joined(data: Sequence[Buffer]) -> memoryview:
    return memoryview(data[0] if len(data) == 1 else b"".join(data))


def _native(value: int, size: int) -> bytes:
    return value.to_bytes(size, sys.byteorder)

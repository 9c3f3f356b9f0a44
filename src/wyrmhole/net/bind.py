"""Bind: the UDP edge. It knows datagrams, addresses and control messages, but not WireGuard.

One engine thread owns a bind between `open` and `close`. Only `set_mark` may be called from another thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntFlag
from typing import Protocol, TypeAlias, runtime_checkable

from wyrmhole.wire.buffer import Buffer
from wyrmhole.wire.datagram import Received
from wyrmhole.wire.endpoint import SockAddr

Payload: TypeAlias = Buffer | Sequence[Buffer]
"""The bytes to send: in one buffer, or in several that follow each other."""


@dataclass(frozen=True, slots=True)
class KernelSocket:
    """A UDP socket that an engine may duplicate, read and write. The bind keeps its own copy and repairs it."""

    fileno: int
    is_v6: bool
    sends_trains: bool
    """Whether the socket supports UDP_SEGMENT, and it is not switched off."""


@runtime_checkable
class KernelBind(Protocol):
    """A bind with kernel sockets, unlike the twins in memory."""

    @property
    def last_error(self) -> int:
        """The errno of the latest datagram that `send` dropped."""

    def filenos(self) -> Sequence[int]: ...

    def kernel_sockets(self) -> Sequence[Sequence[KernelSocket]]:
        """Return the sockets of each worker, one for each available family. Valid while the bind is open."""


class SendOutcome(IntFlag):
    SENT = 0
    SOURCE_REJECTED = 1
    """The pinned source address no longer works, and the message was sent without it. The caller must forget it."""
    DROPPED = 2
    """Some or all datagrams were not sent (no route, no buffers, refused). The bind has counted them."""


class Bind(Protocol):
    def open(self, port: int) -> int:
        """Bind both families (one is enough) to a port, 0 for any, and return the port.

        Raises OSError: EADDRINUSE if the port is in use, EAFNOSUPPORT if neither family is available.
        """

    def close(self) -> None:
        """Close the sockets. Idempotent. The bind can be opened again."""

    def set_mark(self, mark: int) -> None:
        """Set the fwmark of all sent packets, 0 for none. It is kept across `open`. Raises OSError (EPERM)."""

    def filenos(self) -> Sequence[int]:
        """Return the descriptors to poll for reading, including those that report route changes.

        They change with `open` and `close`.
        """

    def receive(self, fileno: int) -> Received | None:
        """Receive one message without blocking. None if no message waits, or if the descriptor is not a data socket.

        Socket errors are counted and do not raise: a pending ICMP error is consumed, a dead socket is reopened.
        """

    def send(
        self, data: Payload, segment_size: int, sockaddr: SockAddr, source: bytes | None, tos: int = 0
    ) -> SendOutcome:
        """Send one datagram (`segment_size` 0) or a train, in order.

        The datagrams of a train have equal size; the last may be shorter. If the kernel refuses segmentation (EIO,
        EINVAL, EMSGSIZE), the train is split and not lost. `tos` is
        the outer TOS or traffic class byte.
        """

    def take_stale_sources(self) -> bool:
        """Return True once after routes or addresses changed. The caller then checks sources with `source_is_valid`."""

    def source_is_valid(self, sockaddr: SockAddr, source: bytes) -> bool:
        """Whether the kernel would still send to `sockaddr` from the address and through the interface of `source`."""


def doubts_trains(bind: Bind) -> bool:
    """Whether the kernel's release is known to damage trains. False for binds without the attribute."""
    return bool(getattr(bind, "doubts_trains", False))


def datagrams_of(data: Payload, segment_size: int) -> list[bytes]:
    """Return the datagrams that one `send` puts on the wire, for binds without a kernel."""
    whole = bytes(data) if isinstance(data, Buffer) else b"".join(data)
    step = segment_size or max(1, len(whole))
    return [whole[start : start + step] for start in range(0, len(whole), step)]

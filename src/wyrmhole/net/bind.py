"""Bind: the UDP edge. Knows datagrams, addresses and control messages, and nothing of WireGuard.

One engine thread owns a bind between `open` and `close`; only `set_mark` may come from another thread.
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
    """A UDP socket that an engine may duplicate, to read and write it by itself. The bind goes on repairing its own."""

    fileno: int
    is_v6: bool
    sends_trains: bool
    """UDP_SEGMENT is known and not switched off."""


@runtime_checkable
class KernelBind(Protocol):
    """A bind whose sockets are the kernel's; memory twins are not."""

    @property
    def last_error(self) -> int:
        """The errno of the latest datagram that `send` dropped."""

    def filenos(self) -> Sequence[int]: ...

    def kernel_sockets(self) -> Sequence[Sequence[KernelSocket]]:
        """While open: for each worker its sockets, one of each family that there is."""


class SendOutcome(IntFlag):
    SENT = 0
    SOURCE_REJECTED = 1
    """The pinned source address no longer works; sent without it. The caller forgets it."""
    DROPPED = 2
    """Some or all datagrams were not sent (no route, no buffers, refused); counted by the bind."""


class Bind(Protocol):
    def open(self, port: int) -> int:
        """Bind both families (one is enough) to the port, 0 for any; returns the port.
        Raises OSError: EADDRINUSE when taken, EAFNOSUPPORT with neither family."""

    def close(self) -> None:
        """Idempotent. The bind can be opened again."""

    def set_mark(self, mark: int) -> None:
        """fwmark of all packets sent, 0 for none; kept over `open`. Raises OSError (EPERM)."""

    def filenos(self) -> Sequence[int]:
        """Descriptors to poll for reading, also those that report route changes. Changes with open/close."""

    def receive(self, fileno: int) -> Received | None:
        """Take one message without blocking; None when there is none (or the descriptor was not a data socket).
        Never raises for a socket error: a pending ICMP error is consumed, a dead socket is reopened, and counted."""

    def send(
        self, data: Payload, segment_size: int, sockaddr: SockAddr, source: bytes | None, tos: int = 0
    ) -> SendOutcome:
        """Send one datagram (`segment_size` 0) or a train of equal datagrams, the last maybe shorter, in order.
        Splits by itself where the kernel refuses segmentation (EIO, EINVAL, EMSGSIZE): the train is never lost.
        `tos` is the outer TOS or traffic class byte."""

    def take_stale_sources(self) -> bool:
        """True once after routes or addresses changed: cached sources must be asked about with `source_is_valid`."""

    def source_is_valid(self, sockaddr: SockAddr, source: bytes) -> bool:
        """Whether the kernel would still send to `sockaddr` from that address through that interface."""


def doubts_trains(bind: Bind) -> bool:
    """Whether the kernel below is of a release that is known to damage trains; binds without a kernel need not say."""
    return bool(getattr(bind, "doubts_trains", False))


def datagrams_of(data: Payload, segment_size: int) -> list[bytes]:
    """What one `send` puts on the wire, datagram by datagram; for binds that are not the kernel's."""
    whole = bytes(data) if isinstance(data, Buffer) else b"".join(data)
    step = segment_size or max(1, len(whole))
    return [whole[start : start + step] for start in range(0, len(whole), step)]

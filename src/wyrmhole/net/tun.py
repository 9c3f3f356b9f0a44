"""Tun: the plaintext edge. It knows frames, MTU and link state, but not WireGuard.

A frame is a 10-byte virtio-net header (see wire.virtio), followed by an IP packet or a TCP or UDP super-packet. Devices
without offloads also use frames, with all-zero headers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, runtime_checkable

from wyrmhole.wire.buffer import Buffer


class TunEvent(Enum):
    UP = "up"
    DOWN = "down"
    MTU = "mtu"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class TunOffloads:
    """Whether TCP and UDP super-packets are enabled, in both directions."""

    tso: bool
    uso: bool


@dataclass(frozen=True, slots=True)
class KernelQueue:
    """A descriptor of a TUN that an engine may duplicate, read and write."""

    fileno: int
    has_header: bool
    """Whether frames have a virtio header. Otherwise the descriptor reads and writes bare packets."""


@runtime_checkable
class KernelTun(Protocol):
    """A Tun with kernel descriptors, unlike the twins in memory."""

    def kernel_queues(self) -> Sequence[KernelQueue]:
        """Return one queue for each worker."""

    def suspect_end(self) -> None:
        """Report that a read failed as if the interface were gone. The next `poll_events` checks this."""


@runtime_checkable
class LendableTun(Protocol):
    """A Tun that an engine can read and write through its own descriptor."""

    def lend(self) -> Tun:
        """Return the same device with another descriptor, which the caller closes. Raises OSError.

        Closing one does not affect the other.
        """


class Tun(Protocol):
    @property
    def name(self) -> str:
        """The interface's present name. It changes if the interface is renamed."""

    @property
    def mtu(self) -> int:
        """The interface's present MTU, read from the kernel, even after a move to another network namespace."""

    @property
    def offloads(self) -> TunOffloads:
        """The enabled offloads. One is switched off at run time if the kernel refuses a coalesced write."""

    def fileno(self) -> int: ...

    def read_into(self, buffer: bytearray | memoryview) -> int:
        """Read one frame without blocking and return its length, or 0 if no frame waits or the interface is down.

        Raises OSError only if the device is gone (EBADFD).
        """

    def write(self, parts: Sequence[Buffer]) -> bool:
        """Write one frame, gathered from its parts. Return False if the frame was lost (down, full, refused).

        Lost frames are counted. A refused super-packet (EINVAL) switches its offload off; the caller then writes the
        packets one by one.
        """

    def events_fileno(self) -> int:
        """Return a descriptor that is readable when `poll_events` should be called, or -1."""

    def poll_events(self) -> list[TunEvent]:
        """Return the changes since the last call. The first call returns the present state (UP or DOWN)."""

    def close(self) -> None: ...

"""LinuxTun: a TUN interface of the kernel, with super-packets in both directions.

Frames begin with the virtio-net header (IFF_VNET_HDR), so that one read or write can move a TCP or UDP super-packet of
up to 64 KiB. The offloads that the kernel supports are determined at the start. An offload is switched off permanently
at the first refusal. See Linux Documentation/networking/tuntap.rst.
"""

from __future__ import annotations

import copy
import errno
import os
import socket
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from wyrmhole.net import tun_ioctl, tun_steering
from wyrmhole.net.tun import KernelQueue, TunEvent, TunOffloads
from wyrmhole.net.tun_link import TunLink
from wyrmhole.net.udp_offload import MAX_TRAIN_BYTES
from wyrmhole.wire.buffer import Buffer
from wyrmhole.wire.messages import DEFAULT_MTU, TRANSPORT_OVERHEAD
from wyrmhole.wire.virtio import GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, PLAIN_HEADER, VIRTIO_HEADER_SIZE

_DEVICE = "/dev/net/tun"
_QUEUE_PACKETS = 2000
"""The queue length, by default 500: a longer queue holds a burst of small packets while the engine is busy with the
other direction."""

_TSO = tun_ioctl.TUN_F_CSUM | tun_ioctl.TUN_F_TSO4 | tun_ioctl.TUN_F_TSO6
_USO = tun_ioctl.TUN_F_USO4 | tun_ioctl.TUN_F_USO6
_GONE = frozenset({errno.EBADFD, errno.EBADF, errno.ENODEV, errno.EFAULT})
"""The errors of a read after the interface was deleted; EFAULT if that happened during the read."""


class TunError(OSError):
    """A TUN interface is not available. `strerror` is one sentence with the cause and the remedy."""


@dataclass(slots=True)
class TunCounters:
    """The frames lost at this edge, by errno: EIO while the interface was down, EAGAIN for a full queue."""

    unwritten: Counter[int] = field(default_factory=Counter)
    unread: Counter[int] = field(default_factory=Counter)


class LinuxTun:
    """See `net.tun.Tun`. Made by `create`, `from_fd` or `attach_elsewhere`. It owns its descriptor until `close`."""

    def __init__(
        self, fileno: int, offloads: TunOffloads, more: Sequence[int] = (), link: TunLink | None = None
    ) -> None:
        self._fileno = fileno
        self._more = list(more)
        self._offloads = offloads
        self._link = link or TunLink(fileno, has_header=self._has_header)
        self._is_lent = False
        self.counters = TunCounters()
        self.unsteered: OSError | None = None
        """The error because of which flows are not steered and may change queues, or None."""

    _has_header = True

    @staticmethod
    def create(
        name: str,
        mtu: int = DEFAULT_MTU,
        *,
        tso: bool = True,
        uso: bool = True,
        queues: int = 1,
        steering: bool = True,
    ) -> LinuxTun:
        """Make the interface, or take over an existing TUN that no process holds. It is down.

        `name` may be a template such as `wg%d`. `tso` and `uso` can switch off super-packets on kernels that damage
        them. `queues` is the number of an engine's workers (IFF_MULTI_QUEUE). If there are several, a flow stays on one
        queue (`net.tun_steering`), unless `steering` is off or fails, as `unsteered` reports.

        Raises TunError: EINVAL for the name or MTU, EPERM, EBUSY, ENOENT without a TUN driver.
        """
        check_name(name)
        filenos = [_open_device()]
        try:
            present_name = _attach(filenos[0], name, queues > 1)
            for _ in range(queues - 1):
                filenos.append(_open_device())
                _attach(filenos[-1], present_name, True)
            _set_up(present_name, mtu)
            tun = LinuxTun(filenos[0], _enable_offloads(filenos[0], tso, uso), filenos[1:])
        except BaseException:
            for fileno in filenos:
                os.close(fileno)
            raise
        if queues > 1:
            tun.unsteered = _steer(filenos[0], steering)
        return tun

    @staticmethod
    def from_fd(fileno: int, *, tso: bool = True, uso: bool = True, mtu: int | None = None) -> LinuxTun:
        """Use a TUN that another process opened, with or without virtio headers.

        `mtu` is set if this process is permitted to; None leaves the MTU unchanged. The TUN must have been opened with
        IFF_NO_PI, which cannot be verified here. Raises TunError if the descriptor is not a TUN, and leaves it open.
        """
        try:
            _name, flags = tun_ioctl.get_interface(fileno)
            os.set_blocking(fileno, False)
            os.set_inheritable(fileno, False)
        except OSError as error:
            raise TunError(error.errno, f"descriptor {fileno} is not a TUN interface: pass an open one") from error
        if flags & tun_ioctl.IFF_TAP:
            raise TunError(errno.EINVAL, f"descriptor {fileno} is a TAP: pass one opened with IFF_TUN and IFF_NO_PI")
        if not flags & tun_ioctl.IFF_VNET_HDR:
            tun_ioctl.accepts_offloads(fileno, 0)
            tun: LinuxTun = _HeaderlessTun(fileno, TunOffloads(tso=False, uso=False))
        else:
            tun_ioctl.set_header_size(fileno, VIRTIO_HEADER_SIZE)
            tun = LinuxTun(fileno, _enable_offloads(fileno, tso, uso))
        if mtu is not None:
            with suppress(OSError):
                tun._link.set_mtu(mtu)
        return tun

    @staticmethod
    def attach_elsewhere(fileno: int, name: str, sockets: tuple[socket.socket, socket.socket]) -> LinuxTun:
        """Make an interface from a device that was opened in another network namespace, without entering it.

        `sockets` are two rtnetlink sockets of that namespace, which are closed with the TUN. CAP_NET_ADMIN is required
        there; the owner of its user namespace has it. Raises OSError, and leaves the descriptors open in this case.
        """
        tun_ioctl.attach(fileno, name, tun_ioctl.IFF_TUN | tun_ioctl.IFF_NO_PI | tun_ioctl.IFF_VNET_HDR)
        return LinuxTun(fileno, _enable_offloads(fileno, True, True), link=TunLink(fileno, sockets=sockets))

    @property
    def name(self) -> str:
        return self._link.name

    @property
    def mtu(self) -> int:
        return self._link.mtu

    @property
    def offloads(self) -> TunOffloads:
        return self._offloads

    def fileno(self) -> int:
        return self._fileno

    def kernel_queues(self) -> Sequence[KernelQueue]:
        """See `net.tun.KernelTun`."""
        return [KernelQueue(fileno, self._has_header) for fileno in (self._fileno, *self._more)]

    def lend(self) -> LinuxTun:
        """See `net.tun.LendableTun`. This object keeps following the state of the interface."""
        lent = copy.copy(self)
        lent._fileno, lent._more, lent._is_lent = os.dup(self._fileno), [], True
        return lent

    def suspect_end(self) -> None:
        """See `net.tun.KernelTun`."""
        self._link.suspect_end()

    def read_into(self, buffer: bytearray | memoryview) -> int:
        """Read one frame. See `net.tun.Tun.read_into`."""
        try:
            return os.readv(self._fileno, (buffer,))
        except BlockingIOError:
            return 0
        except OSError as error:
            return self._read_failed(error)

    def write(self, parts: Sequence[Buffer]) -> bool:
        """Write one frame. See `net.tun.Tun.write`. The first part contains at least the virtio header."""
        try:
            os.writev(self._fileno, parts)
        except OSError as error:
            return self._write_failed(error, parts)
        return True

    def events_fileno(self) -> int:
        return self._link.fileno()

    def poll_events(self) -> list[TunEvent]:
        events = self._link.poll_events()
        if self._offloads.tso and (TunEvent.UP in events or TunEvent.MTU in events):
            self._link.limit_segments(segments_of_train(self.mtu))
        return events

    def close(self) -> None:
        """Close the descriptors. Idempotent. This removes an interface that is not persistent."""
        fileno, self._fileno = self._fileno, -1
        if fileno < 0:
            return
        if not self._is_lent:
            self._link.close()
        for each in (fileno, *self._more):
            os.close(each)
        self._more.clear()

    def _read_failed(self, error: OSError) -> int:
        if error.errno in _GONE:
            self._link.suspect_end()
            raise OSError(errno.EBADFD, "the TUN interface is gone") from error
        self.counters.unread[error.errno or errno.EIO] += 1
        return 0

    def _write_failed(self, error: OSError, parts: Sequence[Buffer]) -> bool:
        self.counters.unwritten[error.errno or errno.EIO] += 1
        if error.errno == errno.EINVAL:
            kind = parts[0][1] & ~GSO_ECN
            if kind in (GSO_TCPV4, GSO_TCPV6):
                self._offloads = replace(self._offloads, tso=False)
            elif kind == GSO_UDP_L4:
                self._offloads = replace(self._offloads, uso=False)
        return False


class _HeaderlessTun(LinuxTun):
    """A descriptor opened without IFF_VNET_HDR. It adds an all-zero header to each packet for the engine."""

    _has_header = False

    def read_into(self, buffer: bytearray | memoryview) -> int:
        view = memoryview(buffer)
        length = super().read_into(view[VIRTIO_HEADER_SIZE:])
        if not length:
            return 0
        view[:VIRTIO_HEADER_SIZE] = PLAIN_HEADER
        return length + VIRTIO_HEADER_SIZE

    def write(self, parts: Sequence[Buffer]) -> bool:
        if parts[0][1]:
            self.counters.unwritten[errno.EINVAL] += 1
            return False
        return super().write((memoryview(parts[0])[VIRTIO_HEADER_SIZE:], *parts[1:]))

    def _write_failed(self, error: OSError, parts: Sequence[Buffer]) -> bool:
        self.counters.unwritten[error.errno or errno.EIO] += 1
        return False


def segments_of_train(mtu: int) -> int:
    """Return how many full packets of an interface fit into one train (see `net.udp_offload`), with header and tag.

    A longer super-packet would need a second system call on both sides for its last one or two packets.
    """
    return max(1, MAX_TRAIN_BYTES // (mtu + TRANSPORT_OVERHEAD))


def check_name(name: str) -> None:
    """Check an interface name by the kernel's rules. Raises TunError (EINVAL)."""
    size = len(os.fsencode(name))
    if not 1 <= size <= 15 or name in (".", "..") or any(c in "/:\0" or c.isspace() for c in name):
        raise TunError(
            errno.EINVAL, f"invalid interface name {name!r}: use 1 to 15 bytes without slash, colon or space"
        )


def _open_device() -> int:
    try:
        return os.open(_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            advice = f"{_DEVICE} is missing: load the driver with 'modprobe tun', or add the device to the container"
        elif error.errno in (errno.EPERM, errno.EACCES):
            advice = f"cannot open {_DEVICE}: permission denied (run as root, or allow the device in the container)"
        else:
            advice = f"cannot open {_DEVICE}: {error.strerror}"
        raise TunError(error.errno, advice) from error


def _attach(fileno: int, name: str, is_one_of_many: bool) -> str:
    flags = tun_ioctl.IFF_TUN | tun_ioctl.IFF_NO_PI | tun_ioctl.IFF_VNET_HDR
    try:
        present_name = tun_ioctl.attach(fileno, name, flags | tun_ioctl.IFF_MULTI_QUEUE * is_one_of_many)
        # A persistent interface keeps the size that its former user set.
        tun_ioctl.set_header_size(fileno, VIRTIO_HEADER_SIZE)
        return present_name
    except OSError as error:
        advice = {
            errno.EPERM: f"cannot make the interface {name}: CAP_NET_ADMIN is missing (run as root)",
            errno.EBUSY: f"another process holds the interface {name}: stop it, or choose another name",
            errno.EINVAL: f"the interface {name} exists and cannot be taken over: delete it, or choose another name",
        }
        sentence = advice.get(error.errno or 0, f"cannot make the interface {name}: {error.strerror}")
        raise TunError(error.errno, sentence) from error


def _set_up(name: str, mtu: int) -> None:
    try:
        tun_ioctl.set_mtu(name, mtu)
    except PermissionError:
        # An unprivileged owner of a persistent TUN may use it but not configure it.
        return
    except OSError as error:
        raise TunError(error.errno, f"cannot set the MTU of {name} to {mtu}: {error.strerror}") from error
    try:
        tun_ioctl.set_queue_length(name, _QUEUE_PACKETS)
    except OSError:
        return


def _steer(fileno: int, is_wanted: bool) -> OSError | None:
    if not is_wanted:
        return OSError(errno.ECANCELED, "it was switched off")
    try:
        tun_steering.steer(fileno)
    except OSError as error:
        return error
    return None


def _enable_offloads(fileno: int, tso: bool, uso: bool) -> TunOffloads:
    """Enable the offloads that the kernel supports. UDP super-packets require Linux 6.2."""
    has_tso = tso and tun_ioctl.accepts_offloads(fileno, _TSO)
    has_uso = has_tso and uso and tun_ioctl.accepts_offloads(fileno, _TSO | _USO)
    if not has_tso:
        tun_ioctl.accepts_offloads(fileno, 0)
    return TunOffloads(has_tso, has_uso)

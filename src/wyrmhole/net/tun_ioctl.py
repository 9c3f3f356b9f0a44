"""The ioctls of the TUN driver and of interfaces (linux/if_tun.h, netdevice(7))."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import socket
import struct

_READ_FIRST = platform.machine().startswith(("mips", "ppc", "sparc", "alpha"))
"""Whether the architecture encodes the direction of an ioctl in three bits instead of two."""


def _number(reads: bool, number: int) -> int:
    """Return the number of an ioctl of type 'T' with a nominal int argument, which the kernel writes if `reads`."""
    direction = ((2 if reads else 4) << 29) if _READ_FIRST else ((2 if reads else 1) << 30)
    return direction | (4 << 16) | (ord("T") << 8) | number


TUNSETIFF = _number(False, 202)
TUNSETOFFLOAD = _number(False, 208)
TUNGETIFF = _number(True, 210)
TUNSETVNETHDRSZ = _number(False, 216)
TUNSETSTEERINGEBPF = _number(True, 224)
TUNGETDEVNETNS = ((1 << 29) if _READ_FIRST else 0) | (ord("T") << 8) | 227

IFF_TUN = 0x0001
IFF_TAP = 0x0002
IFF_MULTI_QUEUE = 0x0100
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000

TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_USO4, TUN_F_USO6 = 0x01, 0x02, 0x04, 0x20, 0x40

_SIOCSIFMTU = 0x8922
_SIOCSIFTXQLEN = 0x8943
_SIOCGIFINDEX = 0x8933
_MAX_NAME = 15

_NAME_FLAGS = struct.Struct("@16sH22x")
_NAME_INT = struct.Struct("@16si20x")


def attach(tun: int, name: str, flags: int) -> str:
    """Make or take over the interface, and return its name, which a template (wg%d) leaves open. Raises OSError."""
    reply = fcntl.ioctl(tun, TUNSETIFF, _NAME_FLAGS.pack(os.fsencode(name), flags))
    return _parse_name(reply)


def get_interface(tun: int) -> tuple[str, int]:
    """Return the present name and flags of a descriptor's interface. Raises OSError: EBADFD if it was deleted."""
    reply = fcntl.ioctl(tun, TUNGETIFF, bytes(_NAME_FLAGS.size))
    return _parse_name(reply), _NAME_FLAGS.unpack(reply)[1]


def set_header_size(tun: int, size: int) -> None:
    fcntl.ioctl(tun, TUNSETVNETHDRSZ, struct.pack("@i", size))


def set_steering(tun: int, program: int) -> None:
    """Set the loaded socket filter that chooses the queue for each packet. Raises OSError."""
    fcntl.ioctl(tun, TUNSETSTEERINGEBPF, struct.pack("@i", program))


def accepts_offloads(tun: int, flags: int) -> bool:
    """Set the TUN_F_ offloads. Return False if the kernel refuses; nothing has changed in this case."""
    try:
        fcntl.ioctl(tun, TUNSETOFFLOAD, flags)
    except OSError:
        return False
    return True


def set_mtu(name: str, mtu: int) -> None:
    """Set the MTU of an interface of this thread's namespace. Raises OSError: EINVAL for an MTU out of range."""
    _set_number(name, _SIOCSIFMTU, mtu)


def set_queue_length(name: str, packets: int) -> None:
    _set_number(name, _SIOCSIFTXQLEN, packets)


def interface_index(name: str) -> int:
    """Return the index of an interface, like `socket.if_nametoindex`. Raises OSError.

    The C library would open a Unix socket, which the sandbox refuses.
    """
    encoded = os.fsencode(name)
    if not 0 < len(encoded) <= _MAX_NAME or b"\0" in encoded:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
    with _datagram_socket() as sock:
        reply = fcntl.ioctl(sock, _SIOCGIFINDEX, _NAME_INT.pack(encoded, 0))
    return int(_NAME_INT.unpack(reply)[1])


def _datagram_socket() -> socket.socket:
    """Return an IPv4 socket, or an IPv6 socket if the kernel has no IPv4."""
    try:
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    except OSError:
        return socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)


def _set_number(name: str, request: int, value: int) -> None:
    # Any kind of socket works; Unix sockets exist even without the internet families.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        fcntl.ioctl(sock, request, _NAME_INT.pack(os.fsencode(name), value))


def _parse_name(reply: bytes) -> str:
    return os.fsdecode(reply[:16].split(b"\0", 1)[0])

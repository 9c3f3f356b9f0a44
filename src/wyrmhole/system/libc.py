"""System calls that Python's `os` lacks, as typed functions. Each raises OSError with the call's errno.

This is the only file that loads the C library. It imports no other part of wyrmhole, so that every room may use it, and
little of the standard library, because the helper of a namespace stack may import it at its start. A call that the C
library lacks fails with ENOSYS, like one that the kernel lacks.

Sources: the manual page of each call (section 2), linux/capability.h, linux/bpf.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x0002_0000, 0x1000_0000, 0x4000_0000
MS_BIND, MS_REC, MS_PRIVATE = 1 << 12, 1 << 14, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_KEEPCAPS = 1, 4, 8
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 24, 38, 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
IN_ATTRIB, IN_DELETE_SELF, IN_MOVE_SELF, IN_DONT_FOLLOW = 0x004, 0x400, 0x800, 0x0200_0000

_CAPABILITY_VERSION_3 = 0x2008_0522
_CAPABILITY_HEADER = struct.Struct("=Ii")
_CAPABILITIES = struct.Struct("=6I")
"""The effective, permitted and inheritable sets of capabilities 0 to 31, followed by those of 32 to 63."""
_SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC = 1, 1
_SYSCALL_BPF = {"x86_64": 321, "aarch64": 280}
_BPF_PROG_LOAD = 5
_BPF_ATTRIBUTES = struct.Struct("=IIQQIIQII16s")
_BPF_INSTRUCTION_SIZE = 8
_TFD_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC
_TFD_TIMER_ABSTIME = 1
_ITIMERSPEC = struct.Struct("@qqqq")
_TIMEX_SIZE = 512
"""More bytes than struct timex has on any architecture."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

Argument = int | bytes | None | ctypes.Array[ctypes.c_char]


# Namespaces and mounts


def unshare(flags: int) -> None:
    _call("unshare", flags)


def setns(fileno: int, kind: int) -> None:
    """Enter the namespace of a descriptor."""
    _call("setns", fileno, kind)


def mount(source: str, target: str, kind: str | None, flags: int) -> None:
    """Mount a file system. The error contains the target."""
    names = (os.fsencode(source), os.fsencode(target), None if kind is None else kind.encode())
    _call("mount", *names, flags, None, filename=target)


def umount(target: str, flags: int) -> None:
    _call("umount2", os.fsencode(target), flags, filename=target)


# Processes: their attributes, capabilities and filters


def prctl(option: int, value: int) -> None:
    _call("prctl", option, value, 0, 0, 0)


def permitted_capabilities() -> int:
    """Return the permitted capabilities of this thread, as bits."""
    data = ctypes.create_string_buffer(_CAPABILITIES.size)
    _call("capget", _CAPABILITY_HEADER.pack(_CAPABILITY_VERSION_3, 0), data)
    values = _CAPABILITIES.unpack(data.raw)
    return int(values[1] | values[4] << 32)


def set_capabilities(kept: int) -> None:
    """Set the effective and permitted capabilities to `kept`, as bits, and the inheritable ones to none."""
    low, high = kept & 0xFFFF_FFFF, kept >> 32
    data = _CAPABILITIES.pack(low, low, 0, high, high, 0)
    _call("capset", _CAPABILITY_HEADER.pack(_CAPABILITY_VERSION_3, 0), data)


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def filter_calls(number: int, code: bytes) -> int:
    """Install a seccomp filter on all threads. `number` is the number of seccomp(2) on this architecture.

    Return 0, or the id of a thread with a different filter; nothing has changed in this case.
    """
    program = _Program(len(code) // _BPF_INSTRUCTION_SIZE, code)
    arguments = ctypes.cast(ctypes.byref(program), ctypes.c_void_p).value
    return syscall(number, _SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC, arguments)


def syscall(number: int, *arguments: Argument) -> int:
    """Make a system call by number, if the C library has no function for it."""
    return _call("syscall", number, *arguments)


def load_bpf(kind: int, instructions: bytes, licence: bytes, name: bytes) -> int:
    """Load an eBPF program of type `kind`, and return its descriptor."""
    number = _SYSCALL_BPF.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, f"the number of bpf(2) on {os.uname().machine} is unknown")
    code, licence_text = ctypes.create_string_buffer(instructions), ctypes.create_string_buffer(licence)
    pointers = ctypes.addressof(code), ctypes.addressof(licence_text)
    count = len(instructions) // _BPF_INSTRUCTION_SIZE
    attributes = _BPF_ATTRIBUTES.pack(kind, count, *pointers, 0, 0, 0, 0, 0, name)
    return syscall(number, _BPF_PROG_LOAD, attributes, len(attributes))


# Descriptors: timers, watches, batches


def timerfd_create(clock: int) -> int:
    """Return a disarmed, non-blocking, close-on-exec timer. `clock` is a constant of `time`."""
    return _call("timerfd_create", clock, _TFD_FLAGS)


def timerfd_settime(fileno: int, first: int, interval: int, *, absolute: bool) -> None:
    """Set a timer, in nanoseconds. A `first` of 0 disarms it. If `absolute`, `first` is a time and not a delay."""
    value = _ITIMERSPEC.pack(*divmod(interval, 1_000_000_000), *divmod(first, 1_000_000_000))
    _call("timerfd_settime", fileno, _TFD_TIMER_ABSTIME if absolute else 0, value, None)


def inotify_init() -> int:
    """Return a non-blocking, close-on-exec descriptor."""
    return _call("inotify_init1", os.O_NONBLOCK | os.O_CLOEXEC)


def inotify_add_watch(fileno: int, path: str, mask: int) -> None:
    _call("inotify_add_watch", fileno, os.fsencode(path), mask)


class _Vector(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_char_p), ("length", ctypes.c_size_t))


class _MessageHeader(ctypes.Structure):
    """struct msghdr."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("vectors", ctypes.POINTER(_Vector)),
        ("vector_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Message(ctypes.Structure):
    """struct mmsghdr."""

    _fields_ = (("header", _MessageHeader), ("sent", ctypes.c_uint))


def sendmmsg(fileno: int, messages: list[bytes]) -> int:
    """Send messages on a connected socket, and return the number of sent messages."""
    vectors = (_Vector * len(messages))(*[_Vector(message, len(message)) for message in messages])
    entries = (_Message * len(messages))()
    for entry, vector in zip(entries, vectors, strict=True):
        entry.header.vectors = ctypes.pointer(vector)
        entry.header.vector_count = 1
    return _call("sendmmsg", fileno, ctypes.cast(entries, ctypes.c_void_p).value, len(messages), 0)


# Clocks


def clock_state() -> int:
    """Return the state of adjtimex(2): 5 (TIME_ERROR) if the wall clock is not synchronised."""
    return _call("adjtimex", ctypes.create_string_buffer(_TIMEX_SIZE))


def _call(name: str, *arguments: Argument, filename: str | None = None) -> int:
    """Call a function of the C library.

    Integers are passed as long, because the upper half of an int argument of a variadic function is undefined.
    """
    function = getattr(_libc, name, None)
    if function is None:
        raise OSError(errno.ENOSYS, f"the C library has no {name}")
    ctypes.set_errno(0)
    result = int(function(*[ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), filename)
    return result

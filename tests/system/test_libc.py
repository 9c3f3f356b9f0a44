"""Calls of the C library: arguments that arrive whole, and failures that say why."""

from __future__ import annotations

import errno
import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wyrmhole.system import libc


def errno_of(error: pytest.ExceptionInfo[OSError]) -> int | None:
    return error.value.errno


def test_a_failed_call_raises_its_errno() -> None:
    with pytest.raises(OSError) as error:
        libc.setns(-1, libc.CLONE_NEWNET)
    assert (errno_of(error), error.value.strerror) == (errno.EBADF, os.strerror(errno.EBADF))


def test_a_failed_mount_names_its_target() -> None:
    with pytest.raises(OSError) as error:
        libc.mount("none", "/nowhere", None, libc.MS_BIND)
    assert error.value.filename == "/nowhere"
    with pytest.raises(OSError) as error:
        libc.umount("/nowhere", libc.MNT_DETACH)
    assert error.value.filename == "/nowhere"


def test_a_call_that_the_c_library_lacks_is_not_implemented() -> None:
    with pytest.raises(OSError, match="no frobnicate") as error:
        libc._call("frobnicate", 1)
    assert errno_of(error) == errno.ENOSYS


def test_a_system_call_that_the_kernel_lacks_is_not_implemented() -> None:
    with pytest.raises(OSError) as error:
        libc.syscall(100_000, 0, None, b"")
    assert errno_of(error) == errno.ENOSYS


def test_arguments_of_64_bits_arrive_whole() -> None:
    """lseek(2) by its number, to an offset beyond 4 GiB."""
    number = {"x86_64": 8, "aarch64": 62}[os.uname().machine]
    fd = os.open("/proc/self/mem", os.O_RDONLY)
    try:
        assert libc.syscall(number, fd, 5 << 32, os.SEEK_SET) == 5 << 32
    finally:
        os.close(fd)


def test_capabilities_are_read_as_the_kernel_reports_them() -> None:
    status = Path("/proc/thread-self/status").read_text().splitlines()
    (line,) = (line for line in status if line.startswith("CapPrm:"))
    assert libc.permitted_capabilities() == int(line.split()[1], 16)


def test_a_capability_that_is_missing_cannot_be_set() -> None:
    """In a process of its own, which first gives up all of them."""
    program = """
import errno
from wyrmhole.system import libc
libc.set_capabilities(0)
assert libc.permitted_capabilities() == 0
try: libc.set_capabilities(1 << 12)
except OSError as error: print(errno.errorcode[error.errno])
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr) == ("EPERM\n", "")


@pytest.mark.parametrize("absolute", [False, True])
def test_a_timer_fires_once_by_delay_or_by_time(absolute: bool) -> None:
    timer = libc.timerfd_create(time.CLOCK_MONOTONIC)
    try:
        assert not os.get_blocking(timer) and not os.get_inheritable(timer)
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        libc.timerfd_settime(timer, now if absolute else 1, 0, absolute=absolute)
        assert select.select([timer], [], [], 20)[0]
        assert os.read(timer, 8) == (1).to_bytes(8, sys.byteorder)
        libc.timerfd_settime(timer, now + 3600 * 10**9 if absolute else 3600 * 10**9, 0, absolute=absolute)
        libc.timerfd_settime(timer, 0, 0, absolute=absolute)
        assert not select.select([timer], [], [], 0)[0]
    finally:
        os.close(timer)


def test_a_watch_hears_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    watch = libc.inotify_init()
    try:
        libc.inotify_add_watch(watch, str(path), libc.IN_ATTRIB)
        path.chmod(0o600)
        assert select.select([watch], [], [], 20)[0]
        with pytest.raises(FileNotFoundError):
            libc.inotify_add_watch(watch, str(tmp_path / "other"), libc.IN_ATTRIB)
    finally:
        os.close(watch)


def test_messages_sent_together_arrive_apart() -> None:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with here, there:
        assert libc.sendmmsg(here.fileno(), [b"one", b"", b"three" * 100]) == 3
        assert [there.recv(4096) for _ in range(3)] == [b"one", b"", b"three" * 100]


def test_an_invalid_bpf_program_is_refused() -> None:
    with pytest.raises(OSError):
        libc.load_bpf(1, bytes(8), b"MIT", b"nothing")


def test_the_clock_has_a_state() -> None:
    assert 0 <= libc.clock_state() <= 5

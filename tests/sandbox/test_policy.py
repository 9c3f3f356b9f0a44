"""The filter's verdict for each system call: in a model of the kernel's interpreter, and for a few in the kernel."""

from __future__ import annotations

import errno
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sandbox.bpf_vm import run
from wyrmhole.sandbox.bpf import ALLOW, KILL, MAX_INSTRUCTIONS, FilterRule, assemble, refuse
from wyrmhole.sandbox.policy import FATAL, daemon_filter
from wyrmhole.sandbox.syscalls import ARCHITECTURES, LAST_NUMBER, Architecture

PID = 4711
FAILS, MISSING = refuse(errno.EPERM), refuse(errno.ENOSYS)
HEADERS = {
    "x86_64": [Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), Path("/usr/include/asm/unistd_64.h")],
    "aarch64": [Path("/usr/include/asm-generic/unistd.h")],
}


@pytest.fixture(params=sorted(ARCHITECTURES))
def architecture(request: pytest.FixtureRequest) -> Architecture:
    return ARCHITECTURES[request.param]


def verdict(architecture: Architecture, name: str, *arguments: int) -> int:
    program = daemon_filter(architecture, PID)
    return run(program, architecture.numbers[name], architecture.audit, arguments)


@pytest.mark.parametrize("name", ["recvmsg", "sendmmsg", "epoll_pwait", "writev", "futex", "getrandom", "rt_sigreturn"])
def test_calls_of_the_engines_are_allowed_with_any_arguments(architecture: Architecture, name: str) -> None:
    assert verdict(architecture, name, *[0xFFFF_FFFF_FFFF_FFFF] * 6) == ALLOW


@pytest.mark.parametrize("name", FATAL)
def test_call_that_only_an_intruder_needs_kills_the_process(architecture: Architecture, name: str) -> None:
    assert verdict(architecture, name) == KILL


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("socket", (2, 2, 17), ALLOW),
        ("socket", (10, 2 | 0x80000, 17), ALLOW),
        ("socket", (2, 1, 6), FAILS),  # TCP
        ("socket", (2, 3, 17), FAILS),  # a raw socket
        ("connect", (3,), ALLOW),
        ("socket", (16, 3, 0), ALLOW),
        ("socket", (16, 3, 12), FAILS),  # the packet filter's netlink
        ("socket", (17, 3, 0), FAILS),  # AF_PACKET
        ("socket", (1, 2 | 0x80000, 0), FAILS),  # a datagram socket to a local service
        ("socket", (1, 1, 0), FAILS),  # a stream socket to a local service
        ("setsockopt", (3, 1, 36), ALLOW),  # SO_MARK
        ("setsockopt", (3, 0, 64), FAILS),  # IPT_SO_SET_REPLACE
        ("setsockopt", (3, 41, 64), FAILS),  # IP6T_SO_SET_REPLACE
        ("setsockopt", (3, 41, 65), FAILS),  # IP6T_SO_SET_ADD_COUNTERS
        ("setsockopt", (3, 41, 67), ALLOW),  # IPV6_TCLASS
        ("setsockopt", (3, 41, 70), ALLOW),  # IPV6_AUTOFLOWLABEL
        ("setsockopt", (3, 263, 0), FAILS),  # SOL_PACKET
        ("openat", (0, 0, os.O_CLOEXEC | os.O_DIRECTORY), ALLOW),
        ("openat", (0, 0, os.O_WRONLY), FAILS),
        ("openat", (0, 0, os.O_RDWR | os.O_CREAT), FAILS),
        ("openat", (0, 0, os.O_CREAT), FAILS),
        ("openat", (0, 0, os.O_TRUNC), FAILS),
        ("openat", (0, 0, 0x2000), FAILS),  # O_ASYNC
        ("fcntl", (3, 0, 3), ALLOW),  # F_DUPFD
        ("fcntl", (3, 1030, 3), ALLOW),  # F_DUPFD_CLOEXEC
        ("fcntl", (3, 1), ALLOW),  # F_GETFD
        ("fcntl", (3, 2, 1), ALLOW),  # F_SETFD
        ("fcntl", (3, 3), ALLOW),  # F_GETFL
        ("fcntl", (3, 4, 0x800), ALLOW),  # F_SETFL, O_NONBLOCK
        ("fcntl", (3, 4, 0x800 | 0x2000), FAILS),  # F_SETFL, O_ASYNC
        ("fcntl", (3, 8, 1), FAILS),  # F_SETOWN
        ("fcntl", (3, 10, 9), FAILS),  # F_SETSIG
        ("fcntl", (3, 15, 0), FAILS),  # F_SETOWN_EX
        ("fcntl", (3, 6, 0), FAILS),  # F_SETLK
        ("fcntl", (3, 37, 0), FAILS),  # F_OFD_SETLK
        ("fcntl", (3, 1024, 1), FAILS),  # F_SETLEASE
        ("fcntl", (3, 1026, 1), FAILS),  # F_NOTIFY
        ("fcntl", (3, 1031, 1), FAILS),  # F_SETPIPE_SZ
        ("mmap", (0, 4096, 3), ALLOW),
        ("mmap", (0, 4096, 5), ALLOW),
        ("mmap", (0, 4096, 7), FAILS),
        ("mprotect", (0, 4096, 1), ALLOW),
        ("mprotect", (0, 4096, 5), FAILS),
        ("clone", (0x3D0F00,), ALLOW),  # the flags of pthread_create
        ("clone", (17,), FAILS),
        ("clone", (0x3D0F00 | 0x1000_0000,), FAILS),  # a thread in a user namespace
        ("sched_setaffinity", (0, 8), ALLOW),
        ("sched_setaffinity", (1, 8), FAILS),
        ("clone3", (0, 0), MISSING),
        ("tgkill", (PID, 1, 6), ALLOW),
        ("tgkill", (1, 1, 9), FAILS),
        ("prlimit64", (0, 4, 0), ALLOW),
        ("prlimit64", (0, 4, 0x7FFF_0000_0001), FAILS),
        ("prlimit64", (1, 4, 0), FAILS),  # the limits of another process
        ("prctl", (15,), ALLOW),
        ("prctl", (4, 1), FAILS),  # becoming dumpable again
        ("ioctl", (3, 0x8004_54D2), ALLOW),  # TUNGETIFF
        ("ioctl", (3, 0x4004_54CA), FAILS),  # TUNSETIFF
        ("ioctl", (3, 0x5412), FAILS),  # TIOCSTI
        ("ioctl", (3, 0x5452), FAILS),  # FIOASYNC
        ("ioctl", (3, 0x8901), FAILS),  # FIOSETOWN
        ("ioctl", (3, 0x8902), FAILS),  # SIOCSPGRP
    ],
)
def test_calls_that_depend_on_their_arguments(
    architecture: Architecture, name: str, arguments: tuple[int, ...], expected: int
) -> None:
    assert verdict(architecture, name, *arguments) == expected


def test_64_bit_pointer_is_not_mistaken_for_null(architecture: Architecture) -> None:
    """The address of the new limit ends in 32 zero bits."""
    assert verdict(architecture, "prlimit64", 0, 4, 0x7F00_0000_0000) == FAILS


@pytest.mark.parametrize(
    ("name", "amd64", "arm64"),
    [
        ("unlink", 87, None),
        ("unlinkat", 263, 35),
        ("rename", 82, None),
        ("renameat2", 316, 276),
        ("socketpair", 53, 199),
        ("kill", 62, 129),
        ("tkill", 200, 130),
        ("rt_sigqueueinfo", 129, 138),
        ("rt_tgsigqueueinfo", 297, 240),
        ("pidfd_open", 434, 434),
        ("pidfd_send_signal", 424, 424),
        ("pidfd_getfd", 438, 438),
        ("process_madvise", 440, 440),
        ("process_mrelease", 448, 448),
        ("setpriority", 141, 140),
        ("ioprio_set", 251, 30),
        ("sched_setscheduler", 144, 119),
        ("sched_setattr", 314, 274),
        ("migrate_pages", 256, 238),
        ("setrlimit", 160, 164),
        ("timer_create", 222, 107),
        ("mq_notify", 244, 184),
        ("flock", 73, 32),
        ("openat2", 437, 437),
        ("io_uring_enter", 426, 426),
        ("landlock_create_ruleset", 444, 444),
    ],
)
def test_call_that_reaches_other_processes_or_files_fails(name: str, amd64: int | None, arm64: int | None) -> None:
    for machine, number in (("x86_64", amd64), ("aarch64", arm64)):
        architecture = ARCHITECTURES[machine]
        if number is not None:
            assert run(daemon_filter(architecture, PID), number, architecture.audit, (PID,) * 6) == FAILS, name


def test_other_abis_kill_the_process() -> None:
    amd64, arm64 = ARCHITECTURES["x86_64"], ARCHITECTURES["aarch64"]
    program = daemon_filter(amd64, PID)
    assert run(program, amd64.numbers["read"], arm64.audit) == KILL
    assert run(program, amd64.numbers["read"] | 1 << 30, amd64.audit) == KILL, "x32"


def test_unlisted_call_fails_and_newer_call_is_unimplemented(architecture: Architecture) -> None:
    program = daemon_filter(architecture, PID)
    named = set(architecture.numbers.values())
    for number in range(LAST_NUMBER + 1):
        if number not in named:
            assert run(program, number, architecture.audit) == FAILS
    assert run(program, LAST_NUMBER + 1, architecture.audit) == MISSING


def test_program_longer_than_the_kernel_limit_is_refused() -> None:
    rules = [FilterRule(number, [[]], FAILS) for number in range(MAX_INSTRUCTIONS)]
    with pytest.raises(ValueError, match="instructions"):
        assemble(1, rules, last_number=LAST_NUMBER, beyond=FAILS, default=FAILS, foreign=KILL)


@pytest.mark.parametrize("machine", sorted(ARCHITECTURES))
def test_call_numbers_match_the_kernel_headers(machine: str) -> None:
    header = next((path for path in HEADERS[machine] if path.exists()), None)
    if header is None:
        pytest.skip("no kernel headers installed: apt-get install linux-libc-dev")
    message = dict(re.findall(r"#define __NR(?:3264)?_(\w+) (\d+)$", header.read_text(), re.M))
    message["newfstatat"] = message.get("newfstatat", message.get("fstatat", "-"))
    ours = ARCHITECTURES[machine].numbers
    assert {name: int(message[name]) for name in ours if name in message} == {
        n: v for n, v in ours.items() if n in message
    }
    assert len([name for name in ours if name in message]) > 100


# The kernel

CONFINED = """
import errno, os, socket, sys, threading
from wyrmhole.sandbox.confine import drop_privileges, restrict_calls
started, go = threading.Event(), threading.Event()
seen = []
def look():
    started.set(); go.wait()
    try: os.fork()
    except OSError as error: seen.append(error.errno)
drop_privileges(None)
thread = threading.Thread(target=look); thread.start(); started.wait()
restrict_calls()
go.set(); thread.join()
assert seen == [errno.EPERM], "a thread that was there before is filtered too"
def fails(call):
    try: call()
    except OSError as error: return error.errno
assert fails(lambda: open("/tmp/wyrmhole-test", "w")) == errno.EPERM
assert fails(lambda: socket.socket(socket.AF_PACKET)) == errno.EPERM
assert fails(lambda: socket.create_connection(("127.0.0.1", 9))) == errno.EPERM
assert socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close() is None
threading.Thread(target=sys.stdout.write, args=("lives",)).start()
"""


def confined(program: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", CONFINED + program]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


needs_filter = pytest.mark.skipif(platform.machine() not in ARCHITECTURES, reason="no filter for this architecture")


@needs_filter
def test_every_thread_is_confined_and_python_still_works() -> None:
    result = confined("")
    assert (result.returncode, result.stdout) == (0, "lives"), result.stderr


@needs_filter
def test_exec_kills_the_process() -> None:
    assert confined("os.execv('/bin/true', ['true'])").returncode == -31  # SIGSYS


@needs_filter
def test_dropped_privileges_cannot_be_regained() -> None:
    program = """
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines() if ":" in line)
kept = 1 << 10 | 1 << 11 | 1 << 12
assert status["NoNewPrivs"].strip() == "1"
assert all(int(status[name], 16) & ~kept == 0 for name in ("CapPrm", "CapEff")), status
assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
"""
    result = confined(program)
    assert (result.returncode, result.stderr) == (0, "")


@needs_filter
def test_no_call_makes_the_kernel_kill_another_process() -> None:
    """For example fcntl's signal-driven I/O, which requires only the same user. Ordinary calls still work."""
    victim = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    program = f"""
import fcntl, signal
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("127.0.0.1", 0))
other = {victim.pid}
attempts = {{
    "own": lambda: fcntl.fcntl(sock, fcntl.F_SETOWN, other),
    "signal": lambda: fcntl.fcntl(sock, 10, signal.SIGKILL),
    "asynchronous": lambda: fcntl.fcntl(sock, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK),
    "ioctl": lambda: fcntl.ioctl(sock, 0x8901, other.to_bytes(4, sys.byteorder)),
    "kill": lambda: os.kill(other, 9),
    "affinity": lambda: os.sched_setaffinity(other, {{0}}),
    "priority": lambda: os.setpriority(os.PRIO_PROCESS, other, 10),
    "unlink": lambda: os.unlink("/tmp/wyrmhole-no-such-file"),
    "datagram": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),
    "pair": lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM),
}}
results = {{name: fails(attempt) for name, attempt in attempts.items()}}
assert set(results.values()) == {{errno.EPERM}}, results
# Python's own calls on descriptors still work.
sock.setblocking(False)
assert not sock.dup().get_inheritable()
assert fcntl.fcntl(sock, fcntl.F_GETFL) & os.O_NONBLOCK
fcntl.fcntl(sock, fcntl.F_SETFL, 0)
sock.sendto(b"x", sock.getsockname())
"""
    try:
        result = confined(program)
        assert (result.returncode, result.stderr) == (0, "")
        assert victim.poll() is None
    finally:
        victim.communicate()

"""The system calls that a running daemon may still make. All others fail with EPERM.

The list holds the calls of both engines (the portable one through Python, the native one through the C library): for
packets, for the three kinds of sockets that are opened again when a port, a mark or the interface changes, for memory,
threads and clocks, and for reading files, because some modules are imported late. It is a second line of defence, which
limits an attacker who already runs code in the daemon:

- No new program, process, kernel module, mount, namespace or trace. These calls kill the process: neither our code nor
  a C library ever makes them, and a hijacked tunnel should end.
- Files are opened for reading only, and never removed. The caretaker removes the socket file
  (`cli/daemon/caretaker.py`).
- Calls with many functions are allowed by command. `fcntl` could otherwise make the kernel send any signal to any
  process of the same user (F_SETOWN, F_SETSIG, O_ASYNC), and lock or lease other files.
- Other processes are out of reach: no signals, limits or affinities.
- No memory is both writable and executable, or becomes executable after it was written.
- Netlink is limited to routes and links. CAP_NET_ADMIN is kept, and with it the packet filter's interfaces would be the
  largest reachable part of the kernel.
- No streams and no Unix sockets, so that no service on this machine can be reached; not even `socketpair`, whose
  datagram sockets may send to any address.

`clone3` passes its flags in memory, where a filter cannot see them. It fails with ENOSYS, so that C libraries use
`clone`.
"""

from __future__ import annotations

import errno
import os
import socket

from wyrmhole.sandbox.bpf import KILL, Condition, FilterRule, assemble, refuse
from wyrmhole.sandbox.syscalls import LAST_NUMBER, Architecture


def _words(text: str) -> list[str]:
    return text.split()


_FREE = _words("""
recvmsg sendmsg read write readv writev poll ppoll epoll_wait epoll_pwait epoll_pwait2 futex recvmmsg sendmmsg
clock_gettime sendto recvfrom timerfd_settime timerfd_gettime pread64
accept accept4 bind connect listen getsockname getpeername getsockopt shutdown
close lseek fstat newfstatat statx stat lstat readlink readlinkat access faccessat faccessat2 getcwd getdents64
dup dup2 dup3 pipe2 select pselect6 epoll_create1 epoll_ctl eventfd2 timerfd_create
inotify_init1 inotify_add_watch inotify_rm_watch
brk munmap mremap madvise mlock mlock2 munlock membarrier set_robust_list rseq
exit exit_group set_tid_address gettid getpid getppid getuid geteuid getgid getegid
sched_yield sched_getaffinity sched_getparam sched_getscheduler getcpu
getrlimit getrusage sysinfo uname getrandom capget futex_waitv
clock_getres clock_nanosleep nanosleep gettimeofday time times restart_syscall
rt_sigaction rt_sigprocmask rt_sigreturn rt_sigtimedwait sigaltstack
""")
"""In the order of frequency, because the kernel evaluates a filter from its start."""

FATAL = _words("""
execve execveat ptrace process_vm_readv process_vm_writev bpf init_module finit_module delete_module
kexec_load kexec_file_load mount umount2 pivot_root unshare setns userfaultfd perf_event_open
keyctl add_key request_key open_by_handle_at io_uring_setup
""")

_PROT_WRITE, _PROT_EXEC = 2, 4
_CLONE_THREAD = 0x1_0000
_CLONE_NAMESPACES = 0x7E02_0000
_O_ASYNC = 0x2000
_WRITING = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC | _O_ASYNC
_F_DUPFD, _F_GETFD, _F_SETFD, _F_GETFL, _F_SETFL, _F_DUPFD_CLOEXEC = 0, 1, 2, 3, 4, 1030
_SOL_IP, _SOL_IPV6, _SOL_UDP, _SOL_NETLINK = 0, 41, 17, 270
_NAME_THREAD, _READ_THREAD_NAME, _READ_DUMPABLE, _NAME_MEMORY = 15, 16, 3, 0x5356_4D41
_IPV6_AUTOFLOWLABEL = 70
_IOCTLS = (
    *(0x5401, 0x5421, 0x5451, 0x541B),  # TCGETS, FIONBIO, FIOCLEX, FIONREAD
    *(0x894C, 0x8910, 0x8921, 0x8933),  # SIOCGSKNS, SIOCGIFNAME, SIOCGIFMTU, SIOCGIFINDEX
    *(0x8004_54D2, 0x4004_54D0, 0x54E3),  # TUNGETIFF, TUNSETOFFLOAD, TUNGETDEVNETNS
)


def daemon_filter(architecture: Architecture, pid: int) -> bytes:
    """Return the program for seccomp(2) for the process `pid`."""
    numbers = architecture.numbers
    fails = refuse(errno.EPERM)
    rules = [FilterRule(numbers[name], [[]], fails) for name in _FREE if name in numbers]
    rules += [
        FilterRule(numbers[name], alternatives, fails)
        for name, alternatives in _conditions(pid).items()
        if name in numbers
    ]
    rules += [FilterRule(numbers[name], (), KILL) for name in FATAL]
    rules.append(FilterRule(numbers["clone3"], (), refuse(errno.ENOSYS)))
    return assemble(
        architecture.audit,
        rules,
        last_number=LAST_NUMBER,
        beyond=refuse(errno.ENOSYS),
        default=fails,
        foreign=KILL,
    )


def _conditions(pid: int) -> dict[str, list[list[Condition]]]:
    """Return the calls that are allowed for certain arguments."""
    # `connect` is always allowed, because it is needed for path MTUs. Without streams it is harmless.
    datagram = Condition(1, socket.SOCK_DGRAM, mask=0xF)
    return {
        "mmap": [[_lacks(2, _PROT_EXEC)], [_lacks(2, _PROT_WRITE)]],
        "mprotect": [[_lacks(2, _PROT_EXEC)]],
        "open": [[_lacks(1, _WRITING)]],
        "openat": [[_lacks(2, _WRITING)]],
        "fcntl": [
            *([Condition(1, command)] for command in (_F_DUPFD, _F_GETFD, _F_SETFD, _F_GETFL, _F_DUPFD_CLOEXEC)),
            [Condition(1, _F_SETFL), _lacks(2, _O_ASYNC)],
        ],
        "clone": [[Condition(0, _CLONE_THREAD, mask=_CLONE_THREAD | _CLONE_NAMESPACES)]],
        "socket": [
            [Condition(0, socket.AF_INET), datagram],
            [Condition(0, socket.AF_INET6), datagram],
            [Condition(0, socket.AF_NETLINK), Condition(2, socket.NETLINK_ROUTE)],
        ],
        "setsockopt": _socket_options(),
        "ioctl": [[Condition(1, request)] for request in _IOCTLS],
        "prctl": [[Condition(0, option)] for option in (_NAME_THREAD, _READ_THREAD_NAME, _READ_DUMPABLE, _NAME_MEMORY)],
        "prlimit64": [[Condition(0, 0), Condition(2, 0), Condition(2, 0, high=True)]],
        "sched_setaffinity": [[Condition(0, 0)]],
        "tgkill": [[Condition(0, pid)]],
    }


def _socket_options() -> list[list[Condition]]:
    """Allow all options but those of the packet filter, which begin at 64 and share numbers with two of IPv6."""
    below_64 = 0xFFFF_FFC0
    return [
        [Condition(1, socket.SOL_SOCKET)],
        [Condition(1, _SOL_UDP)],
        [Condition(1, _SOL_NETLINK)],
        [Condition(1, _SOL_IP), Condition(2, 0, mask=below_64)],
        [Condition(1, _SOL_IPV6), Condition(2, 0, mask=below_64)],
        [Condition(1, _SOL_IPV6), Condition(2, socket.IPV6_RECVTCLASS)],
        [Condition(1, _SOL_IPV6), Condition(2, socket.IPV6_TCLASS)],
        [Condition(1, _SOL_IPV6), Condition(2, _IPV6_AUTOFLOWLABEL)],
    ]


def _lacks(argument: int, bits: int) -> Condition:
    return Condition(argument, 0, mask=bits)


ALLOWED = frozenset((*_FREE, *_conditions(0)))
"""The names of all calls that may succeed, some only with certain arguments."""

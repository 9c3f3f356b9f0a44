"""The numbers of the system calls in the policy, for the supported architectures.

Source: the kernel's tables (arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h). They never
change.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Architecture:
    """An architecture. `audit` is AUDIT_ARCH_*, and `seccomp` the number of seccomp(2)."""

    audit: int
    seccomp: int
    numbers: dict[str, int]


LAST_NUMBER = 463
"""The highest number that this table covers (Linux 6.10). A C library that tries a newer call gets ENOSYS and falls
back, like on an older kernel."""

# name, number on x86_64, number on aarch64; -1: the architecture has no such call
_TABLE = """
recvmsg 47 212
sendmsg 46 211
read 0 63
write 1 64
readv 19 65
writev 20 66
poll 7 -1
ppoll 271 73
epoll_wait 232 -1
epoll_pwait 281 22
epoll_pwait2 441 441
futex 202 98
recvmmsg 299 243
sendmmsg 307 269
clock_gettime 228 113
sendto 44 206
connect 42 203
recvfrom 45 207
timerfd_settime 286 86
timerfd_gettime 287 87
pread64 17 67
pwrite64 18 68
accept 43 202
accept4 288 242
bind 49 200
listen 50 201
getsockname 51 204
getpeername 52 205
getsockopt 55 209
shutdown 48 210
socket 41 198
setsockopt 54 208
close 3 57
lseek 8 62
fstat 5 80
newfstatat 262 79
statx 332 291
stat 4 -1
lstat 6 -1
readlink 89 -1
readlinkat 267 78
access 21 -1
faccessat 269 48
faccessat2 439 439
getcwd 79 17
getdents64 217 61
open 2 -1
openat 257 56
fcntl 72 25
dup 32 23
dup2 33 -1
dup3 292 24
pipe2 293 59
ioctl 16 29
select 23 -1
pselect6 270 72
epoll_create1 291 20
epoll_ctl 233 21
eventfd2 290 19
timerfd_create 283 85
inotify_init1 294 26
inotify_add_watch 254 27
inotify_rm_watch 255 28
brk 12 214
mmap 9 222
munmap 11 215
mremap 25 216
mprotect 10 226
madvise 28 233
mlock 149 228
mlock2 325 284
munlock 150 229
membarrier 324 283
set_robust_list 273 99
rseq 334 293
clone 56 220
clone3 435 435
exit 60 93
exit_group 231 94
set_tid_address 218 96
gettid 186 178
getpid 39 172
getppid 110 173
getuid 102 174
geteuid 107 175
getgid 104 176
getegid 108 177
sched_yield 24 124
sched_getaffinity 204 123
sched_setaffinity 203 122
sched_getparam 143 121
sched_getscheduler 145 120
getcpu 309 168
prctl 157 167
prlimit64 302 261
getrlimit 97 163
getrusage 98 165
sysinfo 99 179
uname 63 160
getrandom 318 278
clock_getres 229 114
clock_nanosleep 230 115
nanosleep 35 101
gettimeofday 96 169
time 201 -1
times 100 153
restart_syscall 219 128
rt_sigaction 13 134
rt_sigprocmask 14 135
rt_sigreturn 15 139
rt_sigtimedwait 128 137
sigaltstack 131 132
tgkill 234 131
capget 125 90
futex_waitv 449 449
execve 59 221
execveat 322 281
ptrace 101 117
process_vm_readv 310 270
process_vm_writev 311 271
bpf 321 280
init_module 175 105
finit_module 313 273
delete_module 176 106
kexec_load 246 104
kexec_file_load 320 294
mount 165 40
umount2 166 39
pivot_root 155 41
unshare 272 97
setns 308 268
userfaultfd 323 282
perf_event_open 298 241
keyctl 250 219
add_key 248 217
request_key 249 218
open_by_handle_at 304 265
io_uring_setup 425 425
"""


def _numbers(column: int) -> dict[str, int]:
    rows = (line.split() for line in _TABLE.split("\n") if line)
    return {row[0]: int(row[column]) for row in rows if row[column] != "-1"}


ARCHITECTURES = {
    "x86_64": Architecture(0xC000_003E, 317, _numbers(1)),
    "aarch64": Architecture(0xC000_00B7, 277, _numbers(2)),
}
"""By the output of `uname -m`."""

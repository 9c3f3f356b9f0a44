"""The parent's end of a helper: start it, ask it for sockets, end it. The protocol is in `netns_helper`.

Each request has a number and its reply carries it, so that a reply that came too late is recognized and what it brought
is closed. A reply whose descriptors did not all fit (MSG_CTRUNC) is a failure: the kernel hands over some and says so
in that flag alone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

from wyrmhole.errors import NamespaceError
from wyrmhole.library.stacks.netns_helper import REPLY, REQUEST
from wyrmhole.library.stacks.stack import HelperGone, HelperSlow
from wyrmhole.namespaces import refusals
from wyrmhole.namespaces.steps import Stage

MAX_BATCH = 253
"""The kernel passes no more descriptors with one message (SCM_MAX_FD)."""
START_PATIENCE = 10.0
"""Seconds for a helper to say hello; 0.02 is usual, and a machine that starts a hundred at once may be slow."""
END_PATIENCE = 5.0
STAGES = (Stage.UNSHARE, Stage.SETNS, Stage.OPEN)
ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH")
"""All that a Python of an unusual place may need; the rest of the program's environment is none of the helper's."""


class _Answer(NamedTuple):
    number: int
    errno: int
    stage: int
    descriptors: list[int]
    is_cut: bool
    """Not all descriptors came."""
    is_passing: bool
    """A reply is still to come."""


class Helper:
    """One helper process. One thread at a time."""

    def __init__(self, process: subprocess.Popen[bytes], channel: socket.socket) -> None:
        self._process = process
        self._channel = channel
        self._number = 0
        self._poll = select.poll()
        self._poll.register(channel, select.POLLIN)

    @classmethod
    def start(cls, namespaces: Sequence[int] = ()) -> tuple[Self, list[int]]:
        """The helper and what it passed: the TUN, or nothing when it was to enter `namespaces` (user, network).
        Raises NamespaceError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                helper = cls(spawn([theirs.fileno(), *namespaces]), ours)
            except OSError as error:
                ours.close()
                raise refusals.refusal(Stage.SPAWN, error.errno or errno.EIO) from error
        try:
            return helper, helper._hear_hello()
        except BaseException:
            helper.end()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def sockets(self, count: int, family: int, kind: int, protocol: int, patience: float) -> list[int]:
        """Descriptors of new sockets inside, blocking and close-on-exec.

        Raises HelperGone, HelperSlow, and OSError for what the helper was refused or when our descriptors ran out.
        """
        self._number = self._number % 0xFFFF_FFFF + 1
        try:
            self._channel.send(REQUEST.pack(self._number, count, family, kind, protocol), socket.MSG_DONTWAIT)
        except BlockingIOError:
            raise HelperSlow("the helper takes no more requests") from None
        except OSError as error:
            raise HelperGone(error.errno, "the helper ended") from error
        answer = self._hear(self._number, patience)
        if answer.errno:
            close_all(answer.descriptors)
            raise OSError(answer.errno, os.strerror(answer.errno))
        if answer.is_cut or len(answer.descriptors) != count:
            close_all(answer.descriptors)
            raise OSError(errno.EMFILE, str(refusals.DESCRIPTOR_LIMIT))
        return answer.descriptors

    def end(self) -> int:
        """Its exit status. It has no state to save, so it is not asked; stopped or not, this ends it. Idempotent."""
        self._channel.close()
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_PATIENCE)
        return self._process.returncode or 0

    def _hear_hello(self) -> list[int]:
        try:
            answer = self._hear(0, START_PATIENCE)
        except (HelperGone, HelperSlow) as error:
            raise NamespaceError(
                errno.EPIPE, refusals.helper_failed(error, self.end()), stage=Stage.SPAWN.value
            ) from error
        if answer.errno:
            raise refusals.refusal(STAGES[answer.stage] if answer.stage < len(STAGES) else Stage.SPAWN, answer.errno)
        if answer.is_cut:
            close_all(answer.descriptors)
            raise refusals.refusal(Stage.PASS, errno.EMFILE)
        return answer.descriptors

    def _hear(self, number: int, patience: float) -> _Answer:
        """The passing and the reply of that number. Raises HelperGone, HelperSlow; closes what was passed then."""
        descriptors: list[int] = []
        is_cut = False
        try:
            while True:
                heard = self._receive(patience)
                if heard.number != number:
                    close_all(heard.descriptors)
                    continue
                descriptors += heard.descriptors
                is_cut = is_cut or heard.is_cut
                if not heard.is_passing:
                    return heard._replace(descriptors=descriptors, is_cut=is_cut)
        except BaseException:
            close_all(descriptors)
            raise

    def _receive(self, patience: float) -> _Answer:
        if not self._poll.poll(patience * 1000):
            raise HelperSlow(f"the helper did not answer within {patience:g} s")
        try:
            data, ancillary, flags, _ = self._channel.recvmsg(
                REPLY.size, socket.CMSG_SPACE(4 * MAX_BATCH), socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
            )
        except OSError as error:
            raise HelperGone(error.errno, "the helper ended") from error
        descriptors = [
            fd for _, _, rights in ancillary for (fd,) in struct.iter_unpack("i", rights[: len(rights) & ~3])
        ]
        if len(data) != REPLY.size:
            close_all(descriptors)
            raise HelperGone(errno.EPIPE, "the helper ended")
        is_cut = bool(flags & socket.MSG_CTRUNC)
        number, refused, stage = REPLY.unpack(data)
        return _Answer(number, refused, stage, descriptors, is_cut, bool(descriptors) or is_cut)


def native_helper() -> Path | None:
    """The helper that was built from rust/helper, where it was: it starts in a millisecond instead of twenty."""
    program = Path(__file__).with_name("_netns_helper")
    return program if os.access(program, os.X_OK) else None


def helper_command() -> list[str]:
    native = native_helper()
    if native is not None:
        return [str(native)]
    return [sys.executable, "-I", "-S", str(Path(__file__).with_name("netns_helper.py"))]


def spawn(descriptors: Sequence[int]) -> subprocess.Popen[bytes]:
    """Executed and never forked alone, for the program may have threads. In a session of its own: the terminal's
    Ctrl-C is the program's to handle."""
    return subprocess.Popen(
        [*helper_command(), *map(str, descriptors)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=descriptors,
        cwd="/",
        env={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        start_new_session=True,
    )


def close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)

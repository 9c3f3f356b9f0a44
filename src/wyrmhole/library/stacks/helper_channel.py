"""The parent's side of a helper: start it, request sockets, end it. `netns_helper` describes the protocol.

Each request has a number, which its reply repeats, so that a late reply is recognised and its descriptors are closed. A
reply whose descriptors did not all fit (MSG_CTRUNC) is a failure: the kernel passes only some of them, and reports this
only by that flag.
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
"""The limit of descriptors that the kernel passes with one message (SCM_MAX_FD)."""
START_PATIENCE = 10.0
"""Seconds to wait for a helper's first message. It usually takes 0.02 s, but longer if a hundred start at once."""
END_PATIENCE = 5.0
STAGES = (Stage.UNSHARE, Stage.SETNS, Stage.OPEN)
ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH")
"""The variables that a Python in an unusual location may need. The rest of the environment is not passed on."""


class _Answer(NamedTuple):
    number: int
    errno: int
    stage: int
    descriptors: list[int]
    is_cut: bool
    """Whether descriptors are missing."""
    is_passing: bool
    """Whether a reply follows."""


class Helper:
    """One helper process. One thread may use it at a time."""

    def __init__(self, process: subprocess.Popen[bytes], channel: socket.socket) -> None:
        self._process = process
        self._channel = channel
        self._number = 0
        self._poll = select.poll()
        self._poll.register(channel, select.POLLIN)

    @classmethod
    def start(cls, namespaces: Sequence[int] = ()) -> tuple[Self, list[int]]:
        """Start a helper in new namespaces, or in the given `namespaces` (user, network).

        Return the helper and, for new namespaces, the descriptor of the TUN. Raises NamespaceError.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                helper = cls(spawn([theirs.fileno(), *namespaces]), ours)
            except OSError as error:
                ours.close()
                raise refusals.refusal(Stage.SPAWN, error.errno or errno.EIO) from error
        try:
            return helper, helper._receive_hello()
        except BaseException:
            helper.end()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def sockets(self, count: int, family: int, kind: int, protocol: int, patience: float) -> list[int]:
        """Return descriptors of new sockets inside, blocking and close-on-exec.

        Raises HelperGone, HelperSlow, and OSError if the helper was refused a socket or our descriptors ran out.
        """
        self._number = self._number % 0xFFFF_FFFF + 1
        try:
            self._channel.send(REQUEST.pack(self._number, count, family, kind, protocol), socket.MSG_DONTWAIT)
        except BlockingIOError:
            raise HelperSlow("the helper accepts no more requests") from None
        except OSError as error:
            raise HelperGone(error.errno, "the helper ended") from error
        answer = self._receive_answer(self._number, patience)
        if answer.errno:
            close_all(answer.descriptors)
            raise OSError(answer.errno, os.strerror(answer.errno))
        if answer.is_cut or len(answer.descriptors) != count:
            close_all(answer.descriptors)
            raise OSError(errno.EMFILE, str(refusals.DESCRIPTOR_LIMIT))
        return answer.descriptors

    def end(self) -> int:
        """Kill the helper, which has no state to save, and return its exit status. Idempotent."""
        self._channel.close()
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_PATIENCE)
        return self._process.returncode or 0

    def _receive_hello(self) -> list[int]:
        try:
            answer = self._receive_answer(0, START_PATIENCE)
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

    def _receive_answer(self, number: int, patience: float) -> _Answer:
        """Return the descriptors and the reply of a request. Raises HelperGone, HelperSlow."""
        descriptors: list[int] = []
        is_cut = False
        try:
            while True:
                message = self._receive(patience)
                if message.number != number:
                    close_all(message.descriptors)
                    continue
                descriptors += message.descriptors
                is_cut = is_cut or message.is_cut
                if not message.is_passing:
                    return message._replace(descriptors=descriptors, is_cut=is_cut)
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
    """Return the helper built from rust/helper, if there is one. It starts in 1 ms instead of 20 ms."""
    program = Path(__file__).with_name("_netns_helper")
    return program if os.access(program, os.X_OK) else None


def helper_command() -> list[str]:
    native = native_helper()
    if native is not None:
        return [str(native)]
    return [sys.executable, "-I", "-S", str(Path(__file__).with_name("netns_helper.py"))]


def spawn(descriptors: Sequence[int]) -> subprocess.Popen[bytes]:
    """Start the helper by exec, because a mere fork is unsafe in a program with threads.

    It runs in a new session, so that the terminal's Ctrl-C reaches only the program.
    """
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

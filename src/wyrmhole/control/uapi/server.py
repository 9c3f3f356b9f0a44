"""The UAPI server on a Unix socket. Each client has a task, and none can delay another client or the device.

    listener readable -> accept -> credentials -> task: receive 64 KiB -> UapiParser -> device -> send 64 KiB -> ...

The device is accessed only in synchronous steps (`status`, `configure`). So a `get` is a snapshot and a `set` is
atomic, regardless of other clients. The cost of a client is bounded: the size of one operation (see
`control/uapi/format.py`), one piece of output in flight, and `STALL_SECONDS` to continue an operation. Between
operations a client may stay silent as long as there is room. If there are `MAX_CLIENTS`, the next one waits in the
listener's backlog until a client ends, or until one that has been silent for `IDLE_SECONDS` is dropped.

If the process has no free descriptors, `accept` fails while the listener stays readable, and the loop would spin.
Therefore a spare descriptor is closed to accept the client, report the error to it and close it. If even that fails,
accepting pauses for a second.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

from wyrmhole.control.uapi.format import (
    DropsOperation,
    GetOperation,
    Operation,
    Refusal,
    SetOperation,
    UapiParser,
    emit_errno,
    iter_drops,
    iter_get,
)
from wyrmhole.control.uapi.socket import UapiListener
from wyrmhole.device.config import DeviceChange
from wyrmhole.device.status import DeviceStatus, DropCounts
from wyrmhole.errors import ErrnoError
from wyrmhole.net.file_watch import FileWatch
from wyrmhole.net.tun_ioctl import interface_index

MAX_CLIENTS = 64
STALL_SECONDS = 60.0
IDLE_SECONDS = 10.0
"""Silence after which a client between operations is dropped if another client waits. An active client is silent for
milliseconds only, and an idle one can connect again."""
ACCEPT_PAUSE_SECONDS = 1.0
ACCEPTS_PER_TURN = 16
PIECE = 64 * 1024
"""Bytes received or sent in one turn of the loop: at most 10 ms of parsing."""

_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid
_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Controlled(Protocol):
    """The methods of a device that the server needs."""

    def status(self) -> DeviceStatus: ...

    def configure(self, change: DeviceChange) -> None:
        """Apply the whole change or nothing. Raises ConfigError."""

    def drop_counts(self) -> DropCounts: ...

    async def applied(self) -> None:
        """Return when the configured change applies to packets."""


@dataclass(slots=True, eq=False)
class _Client:
    socket: socket.socket
    parser: UapiParser
    last_progress: float
    is_answered: bool = False
    task: asyncio.Task[None] | None = None

    @property
    def is_idle(self) -> bool:
        """Report that no operation is partially received, being answered, or waiting to be read."""
        return self.parser.is_between_operations and not self.is_answered and not _has_input(self.socket)


class UapiServer:
    """Serves one device on the running event loop. `close` closes the listener and removes its file."""

    def __init__(
        self,
        device: Controlled,
        listener: UapiListener,
        *,
        logger: logging.Logger | None = None,
        max_clients: int = MAX_CLIENTS,
        stall_seconds: float = STALL_SECONDS,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self._device = device
        self._listener = listener
        self._log = logger or logging.getLogger("wyrmhole")
        self._max_clients = max_clients
        self._stall_seconds = stall_seconds
        self._idle_seconds = idle_seconds
        self._clients: set[_Client] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = asyncio.Event()
        self._stopped = False
        self._loop = asyncio.get_running_loop()
        self._spare = _open_spare()
        self._pause: asyncio.TimerHandle | None = None
        self._watch: FileWatch | None = None

    def start(self) -> None:
        """Start to accept clients."""
        self._resume()
        if self._listener.file_id is not None:
            self._watch = FileWatch(self._listener.path, self._check_file)
            self._check_file()

    async def wait_ended(self) -> None:
        """Return when clients can no longer connect: the socket file was removed or replaced, or the socket failed."""
        await self._ended.wait()

    async def close(self) -> None:
        """Drop all clients, also within an operation, and close the listener. Idempotent."""
        self.stop()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._listener.close()

    def stop(self) -> None:
        """Stop serving clients, without waiting and without removing the socket file."""
        if self._stopped:
            return
        self._stopped = True
        if self._watch is not None:
            self._watch.close()
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._listener.socket)
        for task in self._tasks:
            task.cancel()
        self._close_spare()

    def _check_file(self) -> None:
        if not self._listener.is_in_place:
            self._log.debug("UAPI: the socket file was removed or replaced")
            self._ended.set()

    # Accepting

    def _resume(self) -> None:
        if self._stopped or self._ended.is_set():
            return
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        self._loop.add_reader(self._listener.socket, self._accept_waiting)

    def _pause_accepting(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener.socket)
        self._pause = self._loop.call_later(seconds, self._resume)

    def _make_room(self) -> bool:
        """Report whether another client fits. If not, pause until a client ends or has been silent for IDLE_SECONDS."""
        if len(self._clients) < self._max_clients:
            return True
        idle = (client for client in self._clients if client.is_idle)
        client = min(idle, key=lambda client: client.last_progress, default=None)
        silence = 0.0 if client is None else self._loop.time() - client.last_progress
        if client is None or silence < self._idle_seconds:
            self._pause_accepting(max(self._idle_seconds - silence, 0.001))
            return False
        self._log.debug("UAPI: dropped an idle client to make room for another", extra={"rate_class": "uapi-client"})
        self._drop(client)
        return True

    def _drop(self, client: _Client) -> None:
        self._clients.discard(client)
        if client.task is not None:
            client.task.cancel()

    def _accept_waiting(self) -> None:
        # Only in the first turn is a client known to wait; later turns must not drop an idle client without need.
        for turn in range(ACCEPTS_PER_TURN):
            if (turn and len(self._clients) >= self._max_clients) or not self._make_room():
                return
            try:
                accepted, _ = self._listener.socket.accept()
            except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                return
            except OSError as error:
                self._handle_accept_error(error)
                return
            self._start_client(accepted)

    def _handle_accept_error(self, error: OSError) -> None:
        if error.errno in _OUT_OF_RESOURCES:
            self._log.error("UAPI: cannot accept a client: %s", error.strerror, extra={"rate_class": "uapi-accept"})
            if not self._refuse_one(error.errno):
                self._pause_accepting(ACCEPT_PAUSE_SECONDS)
            return
        self._log.error("UAPI: the listening socket failed: %s", error.strerror)
        self._loop.remove_reader(self._listener.socket)
        self._ended.set()

    def _refuse_one(self, errno_value: int) -> bool:
        """Accept a client with the spare descriptor and send it an error. Return False if that was not possible."""
        if self._spare is None:
            self._spare = _open_spare()
            return False
        self._close_spare()
        try:
            accepted, _ = self._listener.socket.accept()
        except OSError:
            return False
        with accepted, suppress(OSError):
            accepted.setblocking(False)
            accepted.send(emit_errno(errno_value))
        self._spare = _open_spare()
        return True

    def _close_spare(self) -> None:
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None

    def _start_client(self, accepted: socket.socket) -> None:
        uid = _peer_uid(accepted)
        if uid not in (0, os.geteuid(), None):
            self._log.error(
                "UAPI: refused a client of user %d: only root and the daemon's user may connect",
                uid,
                extra={"rate_class": "uapi-user"},
            )
            accepted.close()
            return
        accepted.setblocking(False)
        client = _Client(accepted, UapiParser(interface_index), self._loop.time())
        self._clients.add(client)
        client.task = self._loop.create_task(self._serve(client))
        self._tasks.add(client.task)
        client.task.add_done_callback(self._tasks.discard)

    # Serving

    async def _serve(self, client: _Client) -> None:
        try:
            await self._converse(client)
        except TimeoutError:
            self._log.debug(
                "UAPI: dropped a client that stalled within an operation", extra={"rate_class": "uapi-client"}
            )
        except OSError as error:
            self._log.debug("UAPI: lost a client: %s", error.strerror, extra={"rate_class": "uapi-client"})
        except Exception:
            self._log.exception("UAPI: dropped a client after an internal error")
        finally:
            client.socket.close()
            self._clients.discard(client)
            if self._pause is not None:
                self._resume()

    async def _converse(self, client: _Client) -> None:
        """Answer operations in order, until the client disconnects or the framing is lost."""
        while data := await self._receive(client):
            client.is_answered = True
            for operation in client.parser.feed(data):
                await self._answer(client, operation)
                if isinstance(operation, Refusal) and operation.final:
                    return
            client.is_answered = False
        cut_off = client.parser.finish()
        if cut_off is not None:
            await self._answer(client, cut_off)

    async def _receive(self, client: _Client) -> bytes:
        """Receive a piece. Yields to other tasks first, because a socket that always has data never would."""
        await asyncio.sleep(0)
        limit = None if client.parser.is_between_operations else self._stall_seconds
        async with asyncio.timeout(limit):
            data = await self._loop.sock_recv(client.socket, PIECE)
        client.last_progress = self._loop.time()
        return data

    async def _send(self, client: _Client, data: bytes | bytearray) -> None:
        view = memoryview(data)
        for start in range(0, len(view), PIECE):
            async with asyncio.timeout(self._stall_seconds):
                await self._loop.sock_sendall(client.socket, view[start : start + PIECE])
            client.last_progress = self._loop.time()
            await asyncio.sleep(0)

    async def _answer(self, client: _Client, operation: Operation) -> None:
        """Write the reply in pieces, as fast as the client reads. Its content is a snapshot of one moment."""
        pending = bytearray()
        reply = self._reply(operation)
        if isinstance(operation, SetOperation):
            await self._device.applied()
        for chunk in reply:
            pending += chunk
            if len(pending) >= PIECE:
                await self._send(client, pending)
                pending = bytearray()
        await self._send(client, pending)

    def _reply(self, operation: Operation) -> Iterable[bytes]:
        """Perform an operation. A bug in the device fails this operation, not the daemon."""
        try:
            return self._perform(operation)
        except ErrnoError as error:
            self._log_refusal(error)
            return (emit_errno(error.errno_value),)
        except Exception:
            self._log.exception("UAPI: operation failed")
            return (emit_errno(errno.EIO),)

    def _perform(self, operation: Operation) -> Iterable[bytes]:
        if isinstance(operation, GetOperation):
            return chain(iter_get(self._device.status()), (emit_errno(0),))
        if isinstance(operation, DropsOperation):
            return chain(iter_drops(self._device.drop_counts()), (emit_errno(0),))
        if isinstance(operation, Refusal):
            raise operation.error
        self._device.configure(operation.change)
        return (emit_errno(0),)

    def _log_refusal(self, error: ErrnoError) -> None:
        self._log.error(
            "UAPI: refused an operation (%s): %s", error.errno_name, error, extra={"rate_class": "uapi-refused"}
        )


def _open_spare() -> int | None:
    try:
        return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def _has_input(client: socket.socket) -> bool:
    """Report whether bytes wait to be read. The client's task finds the end of the stream, or an error, itself."""
    try:
        return bool(client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except OSError:
        return False


def _peer_uid(accepted: socket.socket) -> int | None:
    """Return the client's user, or None if this system does not report it. File modes then protect the socket."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    raw = accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    uid: int = _CREDENTIALS.unpack(raw)[1]
    return uid

"""A client of the UAPI socket of any daemon: ours, wireguard-go, others.

Blocking, for commands. Each wait for the daemon is TIMEOUT at most, and the size of a reply and the number of its
pieces are bounded, so that a daemon that hangs, babbles or drips holds nobody up. A socket file that refuses a
connection is a dead daemon's; it is left alone, because only the next daemon may remove it.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
from collections.abc import Iterator

from wyrmhole.control.uapi.format import MAX_LINE, emit_set
from wyrmhole.control.uapi.renamed import present_names
from wyrmhole.control.uapi.socket import DEFAULT_DIRECTORY
from wyrmhole.control.uapi.status import DropsReader, StatusReader
from wyrmhole.device.config import DeviceChange
from wyrmhole.device.status import DeviceStatus, DropCounts
from wyrmhole.errors import DeviceError, UapiError

TIMEOUT = 5.0
"""Seconds of one wait: connecting, writing a piece, or the next piece of a reply."""

BYTES_PER_SECOND = 100_000
"""Of a request, whose size a file decides: a daemon has TIMEOUT and that much longer to begin its reply."""

MAX_REPLY = 256 << 20
"""Bytes of one reply: a million peers with three lines of allowed ips each."""

SMALL_PIECES, PIECE_BYTES = 64, 512
"""A reply may come in 64 pieces, and one more for each 512 bytes. Otherwise a byte every 4 s would take for ever."""

_CHUNK = 1 << 18
_NAME = re.compile(r"[a-zA-Z0-9_=+.-]{1,15}")
_UNKNOWN_OPERATION = (errno.EPROTO, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
"""Answers to an operation that a daemon does not have; a closed connection is read as EPROTO."""
_ERRNO = re.compile(r"-?[0-9]{1,9}")


class NoSuchInterface(DeviceError):
    """No daemon serves that name."""


def interfaces(directory: str = DEFAULT_DIRECTORY) -> list[str]:
    """Names that a daemon serves, sorted. A socket that nobody listens on does not count."""
    try:
        names = [entry[:-5] for entry in os.listdir(directory) if entry.endswith(".sock")]
    except OSError:
        return []
    return sorted(
        name for name in names if _NAME.fullmatch(name) and _is_served(os.path.join(directory, f"{name}.sock"))
    )


def _is_served(path: str) -> bool:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            probe.connect(path)
    except OSError as error:
        return error.errno in (errno.EAGAIN, errno.EACCES)
    return True


def get(name: str, directory: str = DEFAULT_DIRECTORY) -> DeviceStatus:
    """The state of an interface. Raises NoSuchInterface, DeviceError (silence) and UapiError (what it answered)."""
    reader = StatusReader(name, socket.if_nametoindex)
    with _connect(name, directory) as connection:
        _send(connection, name, b"get=1\n\n")
        for line in _reply_lines(connection, name):
            reader.add_line(line)
    return reader.finish()


def drops(name: str, directory: str = DEFAULT_DIRECTORY) -> DropCounts | None:
    """What an interface dropped; None: its daemon does not report that. Raises as `get` does."""
    reader = DropsReader(name)
    try:
        with _connect(name, directory) as connection:
            _send(connection, name, b"drops=1\n\n")
            for line in _reply_lines(connection, name):
                reader.add_line(line)
    except UapiError as error:
        if error.errno_value in _UNKNOWN_OPERATION:
            return None
        raise
    return reader.finish()


def apply(name: str, change: DeviceChange, directory: str = DEFAULT_DIRECTORY) -> None:
    """Set; on return the change is in force. Raises as `get` does."""
    with _connect(name, directory) as connection:
        request = emit_set(change)
        _send(connection, name, request)
        connection.settimeout(TIMEOUT + len(request) / BYTES_PER_SECOND)
        for _ in _reply_lines(connection, name):
            pass


def _connect(name: str, directory: str) -> socket.socket:
    if not _NAME.fullmatch(name):
        raise NoSuchInterface(f"{name!r} is not the name of an interface: up to 15 letters, digits and _=+.-")
    path = os.path.join(directory, f"{name}.sock")
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(TIMEOUT)
    try:
        connection.connect(path)
    except OSError as error:
        connection.close()
        raise _explain(name, path, error) from error
    return connection


def _explain(name: str, path: str, error: OSError) -> DeviceError:
    if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
        hint = _hint(name, os.path.dirname(path))
        return NoSuchInterface(f"no daemon listens on {path}: {hint}")
    if error.errno in (errno.EACCES, errno.EPERM):
        return DeviceError(f"{path} is for root: try again with sudo")
    return DeviceError(f"the daemon of {name} does not answer: {error.strerror or error}")


def _hint(name: str, directory: str) -> str:
    if not is_link(name):
        return "`wyrmhole show interfaces` lists those that are served"
    former = [served for served, present in present_names(directory).items() if present == name]
    if former:
        return f"the interface was renamed and its daemon still answers to its former name: use {former[0]}"
    return "the interface exists but no user-space daemon serves it: use wg"


def is_link(name: str) -> bool:
    """Whether this network namespace has an interface of that name."""
    return os.path.exists(f"/sys/class/net/{name}")


def _send(connection: socket.socket, name: str, data: bytes) -> None:
    try:
        for start in range(0, len(data), _CHUNK):
            connection.sendall(data[start : start + _CHUNK])
    except OSError as error:
        raise DeviceError(f"the daemon of {name} does not take requests: {error.strerror or error}") from error


def _reply_lines(connection: socket.socket, name: str) -> Iterator[str]:
    """The lines before `errno=0` and the blank line. Raises UapiError for another errno or a reply that is none."""
    result: int | None = None
    for line in _lines(connection, name):
        key, _, value = line.partition("=")
        if not line and result is not None:
            break
        if key == "errno" and _ERRNO.fullmatch(value):
            result = abs(int(value))
        elif line:
            yield line
    if result:
        raise UapiError(result, f"the daemon of {name} refused: {os.strerror(result)}")


def _lines(connection: socket.socket, name: str) -> Iterator[str]:
    partial, total, pieces = b"", 0, 0
    while True:
        try:
            data = connection.recv(_CHUNK)
        except OSError as error:
            raise DeviceError(f"the daemon of {name} does not answer: {error.strerror or error}") from error
        total += len(data)
        pieces += 1
        *lines, partial = (partial + data).split(b"\n")
        if not data or total > MAX_REPLY or len(partial) > MAX_LINE:
            raise UapiError(errno.EPROTO, f"the daemon of {name} does not speak the UAPI")
        if pieces > SMALL_PIECES + total // PIECE_BYTES:
            raise DeviceError(f"the daemon of {name} answers in drops of a few bytes: restart it")
        yield from (line.decode("utf-8", "replace") for line in lines)

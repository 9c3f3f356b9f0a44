"""A client for the UAPI socket of any daemon: ours, wireguard-go or another.

It blocks, because commands use it. Each wait for the daemon is limited to TIMEOUT, and the size of a reply and the
number of its pieces are bounded, so that a daemon that hangs or never stops sending cannot block a command. A socket
file that refuses connections belongs to a dead daemon. It is left alone, because only the next daemon may remove it.
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
"""Limit in seconds for one wait: to connect, to write a piece, or to receive the next piece of a reply."""

BYTES_PER_SECOND = 100_000
"""Assumed rate at which a daemon processes a request. A large request extends the wait for its reply accordingly."""

MAX_REPLY = 256 << 20
"""Limit in bytes for one reply. A million peers with three lines of allowed ips each fit in it."""

SMALL_PIECES, PIECE_BYTES = 64, 512
"""A reply may arrive in 64 pieces, plus one for each 512 bytes. This stops a daemon that sends one byte every 4 s."""

_CHUNK = 1 << 18
_NAME = re.compile(r"[a-zA-Z0-9_=+.-]{1,15}")
_UNKNOWN_OPERATION = (errno.EPROTO, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
"""Errors of a daemon that does not know an operation. A closed connection counts as EPROTO."""
_ERRNO = re.compile(r"-?[0-9]{1,9}")


class NoSuchInterface(DeviceError):
    """No daemon serves this interface."""


def interfaces(directory: str = DEFAULT_DIRECTORY) -> list[str]:
    """Return the names of all served interfaces, sorted. A socket without a listener does not count."""
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
    """Return the state of an interface.

    Raises NoSuchInterface, DeviceError if the daemon does not answer, or UapiError for an error or a malformed reply.
    """
    reader = StatusReader(name, socket.if_nametoindex)
    with _connect(name, directory) as connection:
        _send(connection, name, b"get=1\n\n")
        for line in _reply_lines(connection, name):
            reader.add_line(line)
    return reader.finish()


def drops(name: str, directory: str = DEFAULT_DIRECTORY) -> DropCounts | None:
    """Return the drop counts of an interface, or None if its daemon does not report them. Raises like `get`."""
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
    """Apply a change. It is in force on return. Raises like `get`."""
    with _connect(name, directory) as connection:
        request = emit_set(change)
        _send(connection, name, request)
        connection.settimeout(TIMEOUT + len(request) / BYTES_PER_SECOND)
        for _ in _reply_lines(connection, name):
            pass


def _connect(name: str, directory: str) -> socket.socket:
    if not _NAME.fullmatch(name):
        raise NoSuchInterface(f"{name!r} is not a valid interface name: expected up to 15 letters, digits or _=+.-")
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
        return DeviceError(f"cannot connect to {path}: {error.strerror} (run as root)")
    return DeviceError(f"the daemon of {name} does not answer: {error.strerror or error}")


def _hint(name: str, directory: str) -> str:
    if not is_link(name):
        return "`wyrmhole show interfaces` lists the interfaces that have a daemon"
    former = [served for served, present in present_names(directory).items() if present == name]
    if former:
        return f"the interface was renamed, and its daemon still uses the old name: use {former[0]}"
    return "the interface exists but no user-space daemon serves it: use wg"


def is_link(name: str) -> bool:
    """Report whether this network namespace has an interface with this name."""
    return os.path.exists(f"/sys/class/net/{name}")


def _send(connection: socket.socket, name: str, data: bytes) -> None:
    try:
        for start in range(0, len(data), _CHUNK):
            connection.sendall(data[start : start + _CHUNK])
    except OSError as error:
        raise DeviceError(f"the daemon of {name} does not accept requests: {error.strerror or error}") from error


def _reply_lines(connection: socket.socket, name: str) -> Iterator[str]:
    """Yield the lines before `errno=0` and the blank line. Raises UapiError for another errno or a malformed reply."""
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
            raise DeviceError(f"the daemon of {name} sends its reply in pieces of a few bytes: restart it")
        yield from (line.decode("utf-8", "replace") for line in lines)

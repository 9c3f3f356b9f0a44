"""The listening Unix socket of the UAPI: create its file, and remove it.

wg(8) looks for `DIRECTORY/NAME.sock`. If a file with this name exists, it is one of three: the socket of a running
daemon (it accepts connections: the name is in use), the socket of a killed daemon (it refuses them: it is removed), or
something else (it is left alone: the start fails). A lock separates daemons that start under one name at the same
time. It is held from the check of the file until the new socket listens. The lock is a file of mode 0600, because any
user who can read the directory could lock the directory itself, and keep it locked. Nothing happens between bind and
listen, because wg(8) removes sockets that refuse connections.

`close` removes the file only if it is still the one that was created here, by device and inode number.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from wyrmhole.errors import DeviceError

DEFAULT_DIRECTORY = "/var/run/wireguard"
BACKLOG = 128

LOCK_NAME = ".wyrmhole.lock"
LOCK_TRIES = 50
LOCK_RETRY_SECONDS = 0.02
"""Together one second. A daemon holds the lock for less than a millisecond."""

FileId = tuple[int, int]
"""Device and inode number."""


class SocketInUse(DeviceError):
    """Another process serves this name."""


@dataclass(slots=True)
class UapiListener:
    """A non-blocking listening socket with its file. `file_id` is None if there is no file to watch or remove."""

    socket: socket.socket
    path: str
    file_id: FileId | None

    @classmethod
    def create(cls, name: str, directory: str = DEFAULT_DIRECTORY) -> UapiListener:
        """Listen on `directory/name.sock`. Raises SocketInUse, or DeviceError for any other obstacle."""
        path = os.path.join(directory, f"{name}.sock")
        try:
            with _locked_directory(directory):
                _remove_stale(path)
                return cls(_listen(path), path, file_id(path))
        except OSError as error:
            raise DeviceError(f"cannot listen on {path}: {_reason(directory, error)}") from error

    @classmethod
    def from_fd(cls, fd: int) -> UapiListener:
        """Take over a listening Unix stream socket, and its file if it has one. Raises DeviceError."""
        try:
            listener = socket.socket(fileno=fd)
        except OSError as error:
            raise DeviceError(f"descriptor {fd} is not a socket: {error.strerror}") from error
        if not _is_unix_listener(listener):
            listener.detach()
            raise DeviceError(f"descriptor {fd} is not a listening Unix stream socket")
        listener.setblocking(False)
        listener.set_inheritable(False)
        path = listener.getsockname()
        has_file = isinstance(path, str) and path.startswith("/")
        return cls(listener, path if has_file else "", file_id(path) if has_file else None)

    @property
    def is_in_place(self) -> bool:
        """Whether the path still leads to this socket."""
        return self.file_id is None or file_id(self.path) == self.file_id

    def close(self) -> None:
        """Stop listening and remove the file, if it is still this socket's. Idempotent."""
        self.socket.close()
        if self.file_id is not None and self.is_in_place:
            with suppress(OSError):
                os.unlink(self.path)
        self.file_id = None


def remove_if_dead(path: str) -> None:
    """Remove the socket file of a daemon that is gone. Raises OSError, or DeviceError if the file must stay."""
    with _locked_directory(os.path.dirname(path)):
        _remove_stale(path)


def file_id(path: str) -> FileId | None:
    """Return the identity of the file at `path`, not following links, or None if it cannot be examined."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _reason(directory: str, error: OSError) -> str:
    """Return the error's text with a remedy."""
    text = error.strerror or str(error)
    if os.path.lexists(directory) and not os.path.isdir(directory):
        return f"{directory} is not a directory: remove it"
    remedies = {
        errno.EROFS: f"mount a tmpfs on {directory}, or pass a socket in WG_UAPI_FD",
        errno.EACCES: "run as root",
        errno.ENOSPC: "free space or inodes on that file system",
    }
    remedy = remedies.get(error.errno or 0)
    return f"{text}: {remedy}" if remedy else text


def _is_unix_listener(listener: socket.socket) -> bool:
    return (
        listener.family == socket.AF_UNIX
        and listener.type == socket.SOCK_STREAM
        and listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
    )


@contextmanager
def _locked_directory(directory: str) -> Iterator[None]:
    os.makedirs(directory, mode=0o755, exist_ok=True)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _check_directory(directory, os.fstat(fd))
        lock = _open_lock(fd, directory)
        try:
            _take_lock(lock, os.path.join(directory, LOCK_NAME))
            yield
        finally:
            os.close(lock)
    finally:
        os.close(fd)


def _check_directory(directory: str, status: os.stat_result) -> None:
    """Refuse a directory that other users can write to: they could replace our socket. Raises DeviceError."""
    is_shared = status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX
    if is_shared or status.st_uid not in (0, os.geteuid()):
        raise DeviceError(f"other users can write to {directory}: change its owner to root and its mode to 0755")


def _open_lock(directory_fd: int, directory: str) -> int:
    """Open the lock file, and create it if it is missing. Raises DeviceError.

    In a sticky directory, another user may have created something under this name: a link, a FIFO, or a file that
    others can open and therefore lock.
    """
    path = os.path.join(directory, LOCK_NAME)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        lock = os.open(LOCK_NAME, flags, 0o600, dir_fd=directory_fd)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
        raise DeviceError(f"{path} is not a lock file: remove it") from error
    status = os.fstat(lock)
    is_private = stat.S_ISREG(status.st_mode) and not status.st_mode & 0o077 and status.st_uid in (0, os.geteuid())
    if is_private:
        return lock
    os.close(lock)
    raise DeviceError(f"{path} is not a private lock file (expected a regular file of mode 0600): remove it")


def _take_lock(lock: int, path: str) -> None:
    """Take the lock, waiting at most one second, because signals may be blocked here. Raises DeviceError."""
    for tries_left in reversed(range(LOCK_TRIES)):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if tries_left:
                time.sleep(LOCK_RETRY_SECONDS)
    raise DeviceError(
        f"another process holds the lock {path}: end that process (`fuser {path}` shows it) and try again"
    )


def _remove_stale(path: str) -> None:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise DeviceError(f"{path} exists and is not a socket: remove it")
    if _accepts_connections(path):
        raise SocketInUse(f"{path} is in use by another process: stop that process, or choose another name")
    os.unlink(path)


def _accepts_connections(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except OSError as error:
            # EAGAIN: the queue of a living listener is full.
            return error.errno not in (errno.ECONNREFUSED, errno.ENOENT)
    return True


def _listen(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(0o077)
    try:
        listener.bind(path)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(umask)
    listener.setblocking(False)
    return listener

"""The socket file of the listener: creation, replacement, locking and removal."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from wyrmhole.control.uapi import socket as uapi_socket
from wyrmhole.control.uapi.socket import LOCK_NAME, SocketInUse, UapiListener, remove_if_dead
from wyrmhole.errors import DeviceError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "wg0.sock"


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[UapiListener]:
    listener = UapiListener.create("wg0", str(tmp_path))
    yield listener
    listener.close()


def leave_stale_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))


def test_directory_and_socket_are_private_with_any_umask(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    former = os.umask(0)
    try:
        listener = UapiListener.create("wg0", str(directory))
        assert os.umask(0) == 0
    finally:
        os.umask(former)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o755
    assert stat.S_IMODE((directory / "wg0.sock").stat().st_mode) == 0o700
    listener.close()


def test_socket_listens_and_is_removed_by_close(listener: UapiListener, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    assert listener.is_in_place
    listener.close()
    listener.close()
    assert not path.exists()


def test_name_in_use_is_refused_and_left_alone(listener: UapiListener, tmp_path: Path, path: Path) -> None:
    with pytest.raises(SocketInUse, match=r"wg0\.sock is in use by another process"):
        UapiListener.create("wg0", str(tmp_path))
    assert listener.is_in_place


def test_name_of_a_slow_listener_counts_as_in_use(tmp_path: Path, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(path))
        busy.listen(0)
        waiting.connect(str(path))
        with pytest.raises(SocketInUse):
            UapiListener.create("wg0", str(tmp_path))


def test_stale_socket_is_replaced(tmp_path: Path, path: Path) -> None:
    leave_stale_socket(path)
    listener = UapiListener.create("wg0", str(tmp_path))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    listener.close()


@pytest.mark.parametrize("target", ["file", "socket", "nothing"])
def test_symbolic_link_is_refused_and_not_followed(tmp_path: Path, path: Path, target: str) -> None:
    destination = tmp_path / "destination"
    if target == "file":
        destination.write_text("precious")
    elif target == "socket":
        leave_stale_socket(destination)
    path.symlink_to(destination)
    with pytest.raises(DeviceError, match="is not a socket: remove it"):
        UapiListener.create("wg0", str(tmp_path))
    assert path.is_symlink()
    assert os.path.lexists(destination) == (target != "nothing")


def test_file_of_another_kind_is_refused_and_kept(tmp_path: Path, path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(DeviceError, match="is not a socket: remove it"):
        UapiListener.create("wg0", str(tmp_path))
    assert path.read_text() == "precious"


def test_directory_writable_by_others_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(DeviceError, match="change its owner to root and its mode to 0755"):
        UapiListener.create("wg0", str(tmp_path))


@pytest.mark.parametrize("directory", ["a-file/run", "x" * 200])
def test_impossible_path_is_refused(tmp_path: Path, directory: str) -> None:
    (tmp_path / "a-file").touch()
    with pytest.raises(DeviceError, match="cannot listen on"):
        UapiListener.create("wg0", str(tmp_path / directory))


def test_close_leaves_the_socket_of_a_successor(listener: UapiListener, tmp_path: Path, path: Path) -> None:
    path.unlink()
    successor = UapiListener.create("wg0", str(tmp_path))
    assert not listener.is_in_place
    listener.close()
    assert successor.is_in_place
    successor.close()


def test_link_to_the_socket_does_not_count_as_the_socket(listener: UapiListener, tmp_path: Path, path: Path) -> None:
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    assert not listener.is_in_place


def test_inherited_listener_is_used_with_its_file(path: Path) -> None:
    given = socket.socket(socket.AF_UNIX)
    given.bind(str(path))
    given.listen()
    listener = UapiListener.from_fd(given.detach())
    assert listener.is_in_place
    assert not listener.socket.get_inheritable() and not listener.socket.getblocking()
    listener.close()
    assert not path.exists()


def test_inherited_listener_may_have_no_file() -> None:
    given = socket.socket(socket.AF_UNIX)
    given.bind(b"\0wyrmhole-test-%d" % os.getpid())
    given.listen()
    listener = UapiListener.from_fd(given.detach())
    assert listener.is_in_place
    listener.close()


def test_descriptor_that_is_not_a_listener_is_refused(tmp_path: Path) -> None:
    with open(tmp_path / "file", "w") as file, socket.socket(socket.AF_UNIX) as idle, socket.socket() as tcp:
        tcp.listen()
        for fd, problem in ((file.fileno(), "not a socket"), (idle.fileno(), "listening"), (tcp.fileno(), "Unix")):
            with pytest.raises(DeviceError, match=problem):
                UapiListener.from_fd(fd)
        os.fstat(file.fileno()), os.fstat(idle.fileno()), os.fstat(tcp.fileno())
    with pytest.raises(DeviceError, match="not a socket"):
        UapiListener.from_fd(9999)


def test_lock_on_the_directory_delays_nothing(tmp_path: Path) -> None:
    """Any user can take one, because flock(2) does not require write access."""
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        UapiListener.create("wg0", str(tmp_path)).close()
    finally:
        os.close(fd)


def test_lock_file_cannot_be_opened_by_others(tmp_path: Path) -> None:
    former = os.umask(0)
    try:
        UapiListener.create("wg0", str(tmp_path)).close()
    finally:
        os.umask(former)
    assert stat.S_IMODE((tmp_path / LOCK_NAME).stat().st_mode) == 0o600


@pytest.mark.parametrize("removes", [False, True])
def test_lock_that_stays_taken_is_one_clear_error(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch, removes: bool
) -> None:
    monkeypatch.setattr(uapi_socket, "LOCK_RETRY_SECONDS", 0)
    leave_stale_socket(path)
    with open(tmp_path / LOCK_NAME, "w") as holder:
        os.fchmod(holder.fileno(), 0o600)
        fcntl.flock(holder, fcntl.LOCK_EX)
        with pytest.raises(DeviceError, match=r"another process holds the lock .*\.lock: end that process"):
            remove_if_dead(str(path)) if removes else UapiListener.create("wg0", str(tmp_path))
    assert path.exists()


@pytest.mark.parametrize("kind", ["link", "dangling link", "fifo", "directory", "open to others", "another user's"])
def test_lock_file_made_by_another_user_is_refused(tmp_path: Path, kind: str) -> None:
    """In a sticky directory, such a file is not followed, waited for or locked."""
    directory = tmp_path / "run"
    directory.mkdir()
    directory.chmod(0o1777)
    lock, target = directory / LOCK_NAME, tmp_path / "target"
    if kind == "fifo":
        os.mkfifo(lock)
    elif kind == "directory":
        lock.mkdir()
    elif "link" in kind:
        if kind == "link":
            target.touch(0o600)
        lock.symlink_to(target)
    else:
        lock.touch(0o600)
        lock.chmod(0o644 if kind == "open to others" else 0o600)
    if kind == "another user's":
        if os.geteuid():
            pytest.skip("only root can give a file away")
        os.chown(lock, 65534, 65534)
    with pytest.raises(DeviceError, match=r"lock|Permission denied"):
        UapiListener.create("wg0", str(directory))
    assert target.exists() == (kind == "link")


def test_directory_with_the_name_of_the_socket_is_refused_and_kept(tmp_path: Path, path: Path) -> None:
    path.mkdir()
    with pytest.raises(DeviceError, match="is not a socket: remove it"):
        UapiListener.create("wg0", str(tmp_path))
    assert path.is_dir()


def test_link_to_the_directory_is_followed(tmp_path: Path) -> None:
    """On most systems /var/run is a link to /run."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    listener = UapiListener.create("wg0", str(tmp_path / "link"))
    assert (tmp_path / "real" / "wg0.sock").is_socket()
    listener.close()


@pytest.mark.parametrize("kind", ["file", "dangling link"])
def test_file_in_place_of_the_directory_is_named(tmp_path: Path, kind: str) -> None:
    directory = tmp_path / "run"
    directory.touch() if kind == "file" else directory.symlink_to("nowhere")
    with pytest.raises(DeviceError, match=r"cannot listen on .*: .*/run is not a directory: remove it"):
        UapiListener.create("wg0", str(directory))


@pytest.mark.parametrize(
    ("number", "remedy"), [(errno.EROFS, "WG_UAPI_FD"), (errno.EACCES, "run as root"), (errno.ENOSPC, "free space")]
)
def test_unwritable_directory_is_reported_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(uapi_socket, "_open_lock", refuse)
    with pytest.raises(DeviceError, match=rf"cannot listen on .*: {os.strerror(number)}: .*{remedy}"):
        UapiListener.create("wg0", str(tmp_path))

"""The names inside of `wyrmhole run`: every question goes to the servers of the tunnel, or nowhere.

In a mount namespace of its own the program finds a resolv.conf with the tunnel's servers, and an nsswitch.conf whose
hosts are looked up in files and by DNS only. The services of the host that resolve names on Unix sockets, which no
network namespace keeps out, are covered: systemd-resolved (also by D-Bus, which nss-resolve spoke before systemd 247),
nscd, avahi.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from contextlib import suppress

from wyrmhole.system import libc

RESOLV_CONF = "/etc/resolv.conf"
NSSWITCH_CONF = "/etc/nsswitch.conf"
RESOLVERS = (
    *("/run/systemd/resolve", "/run/systemd/resolve.hook", "/run/dbus", "/var/run/dbus"),
    *("/run/nscd", "/var/run/nscd", "/run/avahi-daemon", "/var/run/avahi-daemon"),
)
SCRATCH = ("/mnt", "/tmp", "/proc/self/task")
"""Folders of which every system has one, to mount a tmpfs on for that moment."""

_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES)
"""Why a resolv.conf cannot be covered by another: it is missing, leads nowhere, or is out of reach."""


def replace_resolvers(resolv_conf: str) -> None:
    """Raises OSError."""
    libc.mount("none", "/", None, libc.MS_REC | libc.MS_PRIVATE)
    covered = dict.fromkeys(folder for folder in map(os.path.realpath, RESOLVERS) if os.path.isdir(folder))
    for folder in covered:
        libc.mount("tmpfs", folder, "tmpfs", 0)
    _replace_nsswitch()
    target = os.path.realpath(RESOLV_CONF)
    if os.path.dirname(target) in covered:
        _write(target, resolv_conf)
        return
    try:
        _bind_text(resolv_conf, target)
    except OSError as error:
        if error.errno not in _MISSING:
            raise
        _rebuild_etc(resolv_conf)


def only_files_and_dns(nsswitch: str) -> str:
    """The text with the sources of its `hosts` replaced."""
    return re.sub(r"(?m)^([ \t]*hosts[ \t]*:).*$", r"\1 files dns", nsswitch)


def _replace_nsswitch() -> None:
    """Without the file the C library asks files and DNS by itself."""
    with suppress(FileNotFoundError):
        with open(NSSWITCH_CONF, encoding="utf-8", errors="surrogateescape") as file:
            former = file.read(1 << 20)
        _bind_text(only_files_and_dns(former), os.path.realpath(NSSWITCH_CONF))


def _bind_text(text: str, target: str) -> None:
    """Cover a file by one with this text."""
    scratch = _mount_scratch()
    try:
        path = f"{scratch}/text"
        _write(path, text)
        libc.mount(path, target, None, libc.MS_BIND)
    finally:
        libc.umount(scratch, libc.MNT_DETACH)


def _rebuild_etc(resolv_conf: str) -> None:
    """Lay a folder over /etc that has what /etc has, and a resolv.conf.

    Nothing can be made in the host's own /etc, nor where a dangling link points. A change of a file that was there
    changes the host's, as it would without; a file that is made new is gone at the end.
    """
    folder = os.path.dirname(RESOLV_CONF)
    entries = [entry for entry in os.scandir(folder) if entry.path != RESOLV_CONF]
    scratch = _mount_scratch(os.stat(folder).st_mode)
    try:
        for entry in entries:
            _repeat(entry, f"{scratch}/{entry.name}")
        _write(f"{scratch}/{os.path.basename(RESOLV_CONF)}", resolv_conf)
        libc.mount(scratch, folder, None, libc.MS_BIND | libc.MS_REC)
    finally:
        libc.umount(scratch, libc.MNT_DETACH)


def _repeat(entry: os.DirEntry[str], path: str) -> None:
    if entry.is_symlink():
        os.symlink(os.readlink(entry.path), path)
        return
    if entry.is_dir(follow_symlinks=False):
        os.mkdir(path)
    else:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    libc.mount(entry.path, path, None, libc.MS_BIND | libc.MS_REC)


def _mount_scratch(mode: int = 0o755) -> str:
    scratch = next(folder for folder in SCRATCH if os.path.isdir(folder))
    libc.mount("tmpfs", scratch, "tmpfs", 0)
    os.chmod(scratch, stat.S_IMODE(mode))
    return scratch


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)
    os.chmod(path, 0o644)

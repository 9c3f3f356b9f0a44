"""Name resolution inside `wyrmhole run`: every query goes to the tunnel's name servers, or nowhere.

In its mount namespace, the program finds a resolv.conf with the tunnel's servers, and an nsswitch.conf whose hosts come
only from files and DNS. A network namespace does not block Unix sockets, so the sockets of the host's resolver services
are covered by empty folders: systemd-resolved (also by D-Bus, which nss-resolve used before systemd 247), nscd, avahi.
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
"""Folders for mounting a tmpfs temporarily. Every system has one of them."""

_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES)
"""The errors if resolv.conf cannot be covered by another file: it is missing, a dangling link, or not accessible."""


def replace_resolvers(resolv_conf: str) -> None:
    """Cover the host's resolvers, in the mount namespace of this process. Raises OSError."""
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
    """Return the text of nsswitch.conf with `files dns` as the sources of `hosts`."""
    return re.sub(r"(?m)^([ \t]*hosts[ \t]*:).*$", r"\1 files dns", nsswitch)


def _replace_nsswitch() -> None:
    """Cover nsswitch.conf if it exists. Without it, the C library uses only files and DNS."""
    with suppress(FileNotFoundError):
        with open(NSSWITCH_CONF, encoding="utf-8", errors="surrogateescape") as file:
            former = file.read(1 << 20)
        _bind_text(only_files_and_dns(former), os.path.realpath(NSSWITCH_CONF))


def _bind_text(text: str, target: str) -> None:
    """Cover a file by one with the given text."""
    scratch = _mount_scratch()
    try:
        path = f"{scratch}/text"
        _write(path, text)
        libc.mount(path, target, None, libc.MS_BIND)
    finally:
        libc.umount(scratch, libc.MNT_DETACH)


def _rebuild_etc(resolv_conf: str) -> None:
    """Cover /etc by a folder with the same entries and a new resolv.conf.

    The resolv.conf cannot be made in the host's own /etc, nor at the target of a dangling link. Changes of existing
    files still affect the host's files. New files exist only until the program ends.
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

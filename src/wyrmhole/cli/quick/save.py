"""The running state of an interface, written into its file. Comments, names of peers and names of hosts stay."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from wyrmhole.cli.show_text import emit_endpoint
from wyrmhole.control.config.file import Config, ConfigPeer
from wyrmhole.control.config.values import ConfigEndpoint
from wyrmhole.device.status import DeviceStatus, PeerStatus


def merge_status(config: Config, status: DeviceStatus) -> None:
    """Make the file's values those of the running interface."""
    interface = config.interface
    interface.private_key = status.private_key
    interface.listen_port = status.listen_port or None
    if status.fwmark or interface.fwmark:
        interface.fwmark = status.fwmark
    known = {peer.public_key: peer for peer in config.peers}
    config.peers = [
        _merge_peer(known.get(peer.public_key) or ConfigPeer(peer.public_key), peer) for peer in status.peers
    ]


def _merge_peer(peer: ConfigPeer, status: PeerStatus) -> ConfigPeer:
    peer.preshared_key = None if status.preshared_key.is_zero else status.preshared_key
    if sorted(peer.allowed_ips) != sorted(status.allowed_ips):
        peer.allowed_ips = list(status.allowed_ips)
    if status.persistent_keepalive or peer.persistent_keepalive:
        peer.persistent_keepalive = status.persistent_keepalive
    if peer.endpoint is None or not peer.endpoint.is_name:
        # With the name of a scope's interface: its number is another one after a restart.
        peer.endpoint = None if status.endpoint is None else ConfigEndpoint.parse(emit_endpoint(status.endpoint))
    return peer


def write_atomically(path: Path, text: str) -> None:
    """Readable by the owner alone; either the whole new file is there or the old one. Raises OSError.

    Each call has a temporary file of its own, so that of two at once one wins whole. A file of another user stays his.
    """
    target = path.resolve()
    fd, name = tempfile.mkstemp(".tmp", f".{target.name}.", target.parent)
    try:
        with os.fdopen(fd, "w", encoding="utf-8", errors="surrogateescape") as file:
            with suppress(FileNotFoundError, PermissionError):
                before = os.stat(target)
                os.fchown(fd, before.st_uid, before.st_gid)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """Have the new name survive a loss of power too. Not every file system can be asked for that."""
    with suppress(OSError):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

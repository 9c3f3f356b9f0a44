"""Write the running state of an interface to its file. Comments, peer names and host names are kept."""

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
    """Set the file's values to those of the running interface."""
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
        # A scope is written as an interface name, because its number changes with a restart.
        peer.endpoint = None if status.endpoint is None else ConfigEndpoint.parse(emit_endpoint(status.endpoint))
    return peer


def write_atomically(path: Path, text: str) -> None:
    """Replace a file atomically. The new file is readable only by its owner. Raises OSError.

    Each call has its own temporary file, so that concurrent calls do not mix. The owner of the file does not change.
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
    """Sync the folder, so that the new name survives a power failure. Some file systems do not support it."""
    with suppress(OSError):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

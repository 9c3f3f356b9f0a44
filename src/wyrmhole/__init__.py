"""wyrmhole: a user-space tunnel that speaks the WireGuard protocol, in Python.

    async with wyrmhole.open("wg0.conf") as tunnel:
        reader, writer = await tunnel.open_connection("db.internal", 5432)

`wyrmhole.sync.open` is the same for programs without asyncio.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wyrmhole import sync
    from wyrmhole.control.config.file import Config, ConfigInterface, ConfigPeer
    from wyrmhole.control.config.values import ConfigEndpoint
    from wyrmhole.errors import ConfigError, ConfigFileError, NamespaceError, TunnelError, WyrmholeError
    from wyrmhole.library.diagnosis.steps import Finding, diagnose
    from wyrmhole.library.events import (
        EndpointFlapping,
        EndpointResolved,
        EndpointUnresolved,
        Expired,
        Handshake,
        HandshakeFailed,
        PeerBack,
        PeerRemoved,
        PeerSilent,
        Roamed,
    )
    from wyrmhole.library.opening import open as open
    from wyrmhole.library.peers import Peer, PeerStats, Stats
    from wyrmhole.library.tunnel import Tunnel

# Imported on first use, because the daemon, for which wg-quick(8) waits, needs none of them.
_MODULES = {
    "Config": "wyrmhole.control.config.file",
    "ConfigEndpoint": "wyrmhole.control.config.values",
    "ConfigError": "wyrmhole.errors",
    "ConfigFileError": "wyrmhole.errors",
    "ConfigInterface": "wyrmhole.control.config.file",
    "ConfigPeer": "wyrmhole.control.config.file",
    "EndpointResolved": "wyrmhole.library.events",
    "EndpointFlapping": "wyrmhole.library.events",
    "EndpointUnresolved": "wyrmhole.library.events",
    "Expired": "wyrmhole.library.events",
    "Finding": "wyrmhole.library.diagnosis.steps",
    "Handshake": "wyrmhole.library.events",
    "HandshakeFailed": "wyrmhole.library.events",
    "NamespaceError": "wyrmhole.errors",
    "Peer": "wyrmhole.library.peers",
    "PeerBack": "wyrmhole.library.events",
    "PeerSilent": "wyrmhole.library.events",
    "PeerRemoved": "wyrmhole.library.events",
    "PeerStats": "wyrmhole.library.peers",
    "Roamed": "wyrmhole.library.events",
    "Stats": "wyrmhole.library.peers",
    "Tunnel": "wyrmhole.library.tunnel",
    "TunnelError": "wyrmhole.errors",
    "WyrmholeError": "wyrmhole.errors",
    "diagnose": "wyrmhole.library.diagnosis.steps",
    "open": "wyrmhole.library.opening",
    "sync": "wyrmhole.sync",
}

# `open` is left out, because `from wyrmhole import *` must not replace the builtin.
__all__ = [
    "Config",
    "ConfigEndpoint",
    "ConfigError",
    "ConfigFileError",
    "ConfigInterface",
    "ConfigPeer",
    "EndpointFlapping",
    "EndpointResolved",
    "EndpointUnresolved",
    "Expired",
    "Finding",
    "Handshake",
    "HandshakeFailed",
    "NamespaceError",
    "Peer",
    "PeerBack",
    "PeerRemoved",
    "PeerSilent",
    "PeerStats",
    "Roamed",
    "Stats",
    "Tunnel",
    "TunnelError",
    "WyrmholeError",
    "__version__",
    "diagnose",
    "sync",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("wyrmhole")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(_MODULES[name])
    return module if _MODULES[name] == f"{__name__}.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*__all__, "open"})

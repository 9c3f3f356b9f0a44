"""wyrmhole: a user-space tunnel that speaks the WireGuard protocol, in Python."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wyrmhole.control.wg_quick import Config, ConfigInterface, ConfigPeer
    from wyrmhole.control.wg_values import ConfigEndpoint

__all__ = ["Config", "ConfigEndpoint", "ConfigInterface", "ConfigPeer"]

# Looked up when asked for: the daemon, which wg-quick(8) waits for, uses none of them.
_HOMES = {
    "Config": "wyrmhole.control.wg_quick",
    "ConfigEndpoint": "wyrmhole.control.wg_values",
    "ConfigInterface": "wyrmhole.control.wg_quick",
    "ConfigPeer": "wyrmhole.control.wg_quick",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)

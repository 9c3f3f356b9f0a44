"""Remove the settings that a reader of a configuration file does not know: wg(8), or the mobile apps."""

from __future__ import annotations

from dataclasses import replace

from wyrmhole.control.config.file import Config
from wyrmhole.control.config.values import BLANKS, INTERFACE_KEYS

_APP_KEYS = {"privatekey", "listenport", "address", "dns", "mtu"}
"""Keys of [Interface] that the apps for Android and iOS read, besides their lists of programs. Both apps refuse a file
with any other key, and Android's refuses a key without a value."""


def strip(text: str) -> str:
    """Return the lines that wg(8) understands, like `wg-quick strip`: trimmed, with comments."""
    quick_keys = {key.name.lower() for key in INTERFACE_KEYS if key.is_quick}
    kept, is_interface = [], False
    text = text.removeprefix("\ufeff")
    for line in text.removesuffix("\n").split("\n") if text else ():
        key = line.partition("#")[0].partition("=")[0].strip(BLANKS).lower()
        if key.startswith("["):
            is_interface = key == "[interface]"
        if not (is_interface and key in quick_keys):
            kept.append(line.strip(" \t"))
    return "".join(f"{line}\n" for line in [*kept, ""])


def for_apps(config: Config) -> tuple[str, list[str]]:
    """Return the text for the mobile apps, without comments, and the names of the settings that were left out."""
    interface = config.interface
    routing_only = [entry for entry in interface.dns_domains if entry not in interface.dns_search]
    left_out = [
        key.name for key in INTERFACE_KEYS if key.name.lower() not in _APP_KEYS and any(config.values_of(key.name))
    ]
    kept = replace(
        interface,
        fwmark=None,
        dns=[entry for entry in interface.dns if entry not in routing_only],
        table=None,
        save_config=False,
        pre_up=[],
        post_up=[],
        pre_down=[],
        post_down=[],
    )
    peers = [replace(peer, name=None, persistent_keepalive=peer.persistent_keepalive or None) for peer in config.peers]
    text = Config(kept, peers).emit().removeprefix("[Interface]\n")
    return "".join(["[Interface]\n", *_app_lines(config), text]), [
        *left_out,
        *(f"DNS {domain}" for domain in routing_only),
    ]


def _app_lines(config: Config) -> list[str]:
    """Return the apps' own lists of programs, which wyrmhole ignores."""
    keys = ("IncludedApplications", "ExcludedApplications")
    return [f"{key} = {value}\n" for key in keys for _, value in config.values_of(key) if value]

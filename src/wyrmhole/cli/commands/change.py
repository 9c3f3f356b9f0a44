"""set, setconf, addconf, syncconf: change a running interface, like wg(8)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import click

from wyrmhole.cli.app import interface_argument, load, warn
from wyrmhole.cli.quick.names import EndpointLookup
from wyrmhole.control.config.change import ResolveEndpoint, add_change, set_change, sync_change
from wyrmhole.control.config.endpoint_names import NameResolver, parse_retries
from wyrmhole.control.config.file import Config
from wyrmhole.control.config.values import (
    ConfigEndpoint,
    read_fwmark,
    read_keepalive,
    read_port,
    read_prefix,
    read_public_key,
    remove_blanks,
)
from wyrmhole.control.uapi import client
from wyrmhole.device.config import AllowedIPChange, DeviceChange, PeerChange
from wyrmhole.protocol.keys import KEY_SIZE, PresharedKey, PrivateKey

_T = TypeVar("_T")
_K = TypeVar("_K", PrivateKey, PresharedKey)

LONGEST_KEY_FILE = 1024
"""In bytes; a key has 44 characters."""

file_argument = click.argument("config", metavar="FILE", type=click.Path(path_type=Path))


RETRIES = "WG_ENDPOINT_RESOLUTION_RETRIES"


def resolver() -> NameResolver:
    return NameResolver(parse_retries(os.environ.get(RETRIES, "")), time.sleep, warn)


def resolve_all(config: Config, interface: str) -> ResolveEndpoint:
    """Resolve all endpoint names of a file. A name that fails does not prevent changes of the other peers."""
    return EndpointLookup(os.environ.get(RETRIES, ""), warn).resolve(config, interface)


# Files


@click.command("setconf")
@interface_argument
@file_argument
def setconf_command(interface: str, config: Path) -> None:
    """Replace the configuration of INTERFACE with FILE.

    All sessions end; syncconf keeps them. FILE has no wg-quick keys: use strip to remove them.

    \b
    wyrmhole strip wg0.conf > stripped.conf
    wyrmhole setconf wg0 stripped.conf
    """
    wanted = load(config)
    client.apply(interface, set_change(wanted, resolve_all(wanted, interface)))


@click.command("addconf")
@interface_argument
@file_argument
def addconf_command(interface: str, config: Path) -> None:
    """Add the peers and settings of FILE to INTERFACE.

    \b
    wyrmhole addconf wg0 new-peer.conf
    """
    wanted = load(config)
    client.apply(interface, add_change(wanted, resolve_all(wanted, interface)))


@click.command("syncconf")
@interface_argument
@file_argument
def syncconf_command(interface: str, config: Path) -> None:
    """Replace the configuration of INTERFACE, keeping sessions.

    Peers in FILE keep their sessions; all other peers are removed.

    \b
    wyrmhole strip wg0.conf > stripped.conf
    wyrmhole syncconf wg0 stripped.conf
    """
    wanted = load(config)
    change = sync_change(wanted, client.get(interface), resolve_all(wanted, interface))
    if wanted.interface.fwmark is None:
        # `up` gives a tunnel with a default route a mark that is not in its file. Without the mark, the tunnel's own
        # packets would be routed into the tunnel.
        change = replace(change, fwmark=None)
    client.apply(interface, change)


# The words of `set`


@click.command(
    "set",
    context_settings={"ignore_unknown_options": True},
    options_metavar="",
)
@interface_argument
@click.argument("words", nargs=-1, required=True, type=click.UNPROCESSED)
def set_command(interface: str, words: tuple[str, ...]) -> None:
    """Change INTERFACE and its peers. WORDS are the arguments of `wg set`:

    \b
    [listen-port PORT] [fwmark MARK] [private-key FILE]
    [peer PUBLIC-KEY [remove] [preshared-key FILE] [endpoint HOST:PORT]
          [persistent-keepalive SECONDS|off] [allowed-ips IP/LENGTH,...]]...

    \b
    wyrmhole set wg0 listen-port 51820 private-key private.key
    wyrmhole set wg0 peer PUBLIC-KEY allowed-ips +10.1.0.0/16
    wyrmhole set wg0 peer PUBLIC-KEY remove

    Keys are read from files, never from the command line; an empty file removes the key. The list after allowed-ips
    replaces the peer's list. If any address has the prefix + or -, the list is edited instead: - removes an address,
    all others are added.
    """
    client.apply(interface, parse_words(words, resolver()))


def parse_words(words: tuple[str, ...], resolve: NameResolver) -> DeviceChange:
    """Parse the arguments of `set`. Raises click.UsageError, or OSError if a key file cannot be read."""
    remaining = iter(words)
    device, peers = DeviceChange(), []
    for word in remaining:
        if word == "peer":
            peers.append(PeerChange(_read(read_public_key, word, _next(remaining, word))))
        elif peers:
            peers[-1] = _change_peer(peers[-1], word, remaining, resolve)
        else:
            device = _change_device(device, word, remaining)
    return replace(device, peers=tuple(peers))


def _change_device(device: DeviceChange, word: str, rest: Iterator[str]) -> DeviceChange:
    if word == "listen-port":
        return replace(device, listen_port=_read(read_port, word, _next(rest, word)))
    if word == "fwmark":
        return replace(device, fwmark=_read(read_fwmark, word, _next(rest, word)))
    if word == "private-key":
        return replace(device, private_key=_read_key_file(PrivateKey, word, _next(rest, word)))
    raise click.UsageError(f"unknown word `{word}'; expected listen-port, fwmark, private-key or peer")


def _change_peer(peer: PeerChange, word: str, rest: Iterator[str], resolve: NameResolver) -> PeerChange:
    if word == "remove":
        return replace(peer, remove=True)
    if word == "preshared-key":
        return replace(peer, preshared_key=_read_key_file(PresharedKey, word, _next(rest, word)))
    if word == "endpoint":
        return replace(peer, endpoint=resolve(_read(ConfigEndpoint.parse, word, _next(rest, word))))
    if word == "persistent-keepalive":
        return replace(peer, persistent_keepalive=_read(read_keepalive, word, _next(rest, word)))
    if word == "allowed-ips":
        return _change_allowed_ips(peer, _next(rest, word))
    raise click.UsageError(
        f"unknown word `{word}'; expected remove, preshared-key, endpoint, persistent-keepalive, allowed-ips or peer"
    )


def _change_allowed_ips(peer: PeerChange, text: str) -> PeerChange:
    text = remove_blanks(text)
    items = text.split(",") if text else []
    changes = [
        AllowedIPChange(_read(read_prefix, "allowed-ips", item[item[:1] in ("+", "-") :]), item.startswith("-"))
        for item in items
    ]
    has_signs = any(item[:1] in ("+", "-") for item in items)
    return replace(peer, replace_allowed_ips=not has_signs, allowed_ips=tuple(changes))


def _next(words: Iterator[str], word: str) -> str:
    value = next(words, None)
    if value is None:
        raise click.UsageError(f"`{word}' needs a value after it")
    return value


def _read(read: Callable[[str], _T], word: str, value: str) -> _T:
    try:
        return read(value)
    except ValueError as error:
        raise click.UsageError(f"{word}: expected {error}") from None


def _read_key_file(kind: type[_K], word: str, path: str) -> _K:
    """Read a key. An empty file means no key. Error messages never contain the value."""
    with open(path, "rb") as file:
        data = file.read(LONGEST_KEY_FILE)
    try:
        return kind.from_base64(data.decode("ascii", "replace").rstrip()) if data else kind(bytes(KEY_SIZE))
    except ValueError as error:
        raise click.UsageError(f"{word}: {path}: {error}") from None

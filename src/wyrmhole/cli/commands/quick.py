"""up, down, save, strip: interfaces by their files, as wg-quick(8)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

import click

from wyrmhole.cli.app import Failure, config_argument, config_path, load, warn, write_bytes
from wyrmhole.cli.commands.change import RETRIES
from wyrmhole.cli.quick.names import EndpointNames
from wyrmhole.cli.quick.quick import Quick
from wyrmhole.cli.quick.signals import Interrupts
from wyrmhole.control.config.file import Config, read_file
from wyrmhole.control.config.strip import strip

quiet_option = click.option("-q", "--quiet", is_flag=True, help="Do not print the steps; warnings and errors remain.")


def _quick(config: str, *, verbose: bool = False, quiet: bool = False) -> Quick:
    if os.geteuid() != 0:
        raise Failure("interfaces and routes are root's: try again with sudo, or `wyrmhole run` without it")
    path = config_path(config)
    interrupts = Interrupts()
    interrupts.watch()
    names = EndpointNames(os.environ.get(RETRIES, ""), _warn, interrupts)
    quick = Quick(path.absolute(), load(path), names, _ignore if quiet else _say, _warn, interrupts, verbose)
    try:
        _ = quick.name
    except ValueError as error:
        raise Failure(str(error)) from None
    return quick


def _say(line: str) -> None:
    # The terminal may be gone, which is no reason to leave half of an interface. A hook may hold any bytes.
    with suppress(OSError):
        click.echo(f"[#] {line}".encode("utf-8", "backslashreplace").decode(), err=True)


def _ignore(line: str) -> None: ...


def _warn(sentence: str) -> None:
    with suppress(OSError):
        warn(sentence)


@click.command(
    "up",
    short_help="Bring up the interface of CONFIG, like `wg-quick up`.",
    epilog="""Starts the daemon, sets keys, addresses, MTU, DNS and routes, and runs the hooks. Needs root. An `up` that
    fails leaves nothing behind.

    \b
    wyrmhole up wg0

    \b
    LOG_LEVEL                        debug, error or silent; the log is /run/wireguard/NAME.log
    WG_ENDPOINT_RESOLUTION_RETRIES   how often to look up endpoint names, or `infinity`
    """,
)
@config_argument
@click.option("-v", "--verbose", is_flag=True, help="Let the daemon log each handshake; the log's path is printed.")
@quiet_option
def up_command(config: str, verbose: bool, quiet: bool) -> None:
    """Bring up the interface of CONFIG: a file, or the name of one in /etc/wireguard."""
    quick = _quick(config, verbose=verbose, quiet=quiet)
    for sentence in _what_is_missing(quick.config):
        _warn(sentence)
    quick.up()


def _what_is_missing(config: Config) -> Iterator[str]:
    """What may be added later, but without which nothing can be reached."""
    if config.interface.private_key is None and not config.interface.pre_up and not config.interface.post_up:
        yield "there is no PrivateKey: set one with `wyrmhole set NAME private-key FILE`"
    if not config.peers:
        yield "there is no [Peer]: nothing can be reached until one is added"
    elif config.interface.listen_port is None and all(peer.endpoint is None for peer in config.peers):
        yield "no Endpoint in any [Peer] and no ListenPort: neither side can find the other"
    if not config.interface.addresses:
        yield "there is no Address: add the one that the peer has in its AllowedIPs for this key"


@click.command("down")
@config_argument
@quiet_option
def down_command(config: str, quiet: bool) -> None:
    """Take down the interface of CONFIG, and all that `up` set.

    Works without the daemon, too, after a crash.

    \b
    wyrmhole down wg0
    """
    _quick(config, quiet=quiet).down()


@click.command("save")
@config_argument
def save_command(config: str) -> None:
    """Write the running state of the interface into CONFIG.

    Comments, and endpoints that are names, stay as they are.

    \b
    wyrmhole save wg0
    """
    _quick(config).save()


@click.command("strip")
@config_argument
def strip_command(config: str) -> None:
    """Print CONFIG without the keys that only wg-quick knows.

    The result is what setconf and syncconf read.

    \b
    wyrmhole strip wg0.conf > stripped.conf
    """
    path = config_path(config)
    text, _ = read_file(path)
    Config.parse(text, source=str(path))
    write_bytes(strip(text).encode("utf-8", "surrogateescape"))

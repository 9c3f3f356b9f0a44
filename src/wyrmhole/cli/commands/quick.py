"""up, down, save, strip: bring interfaces up and down by their files, like wg-quick(8)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

import click

from wyrmhole.cli.app import Failure, config_argument, config_path, load, warn, write_bytes
from wyrmhole.cli.commands.change import RETRIES
from wyrmhole.cli.quick.names import EndpointLookup
from wyrmhole.cli.quick.quick import Quick
from wyrmhole.cli.quick.signals import Interrupts
from wyrmhole.control.config.file import Config, read_file
from wyrmhole.control.config.strip import strip

quiet_option = click.option("-q", "--quiet", is_flag=True, help="Print only warnings and errors, not the steps.")


def _quick(config: str, *, verbose: bool = False, quiet: bool = False) -> Quick:
    if os.geteuid() != 0:
        raise Failure("cannot change interfaces and routes: only root may (use sudo, or `wyrmhole run` without it)")
    path = config_path(config)
    interrupts = Interrupts()
    interrupts.watch()
    names = EndpointLookup(os.environ.get(RETRIES, ""), _warn, interrupts)
    quick = Quick(path.absolute(), load(path), names, _ignore if quiet else _print_step, _warn, interrupts, verbose)
    try:
        _ = quick.name
    except ValueError as error:
        raise Failure(str(error)) from None
    return quick


def _print_step(line: str) -> None:
    # A closed terminal must not stop `up` halfway. A hook may contain any bytes.
    with suppress(OSError):
        click.echo(f"[#] {line}".encode("utf-8", "backslashreplace").decode(), err=True)


def _ignore(line: str) -> None: ...


def _warn(sentence: str) -> None:
    with suppress(OSError):
        warn(sentence)


@click.command(
    "up",
    short_help="Bring up the interface of CONFIG, like `wg-quick up`.",
    epilog="""Starts the daemon, sets keys, addresses, MTU, DNS and routes, and runs the hooks. Needs root. If a step
    fails, all steps before it are undone.

    \b
    wyrmhole up wg0

    \b
    LOG_LEVEL                        debug, error or silent; the log is /run/wireguard/NAME.log
    WG_ENDPOINT_RESOLUTION_RETRIES   number of attempts to resolve endpoint names, or `infinity`
    """,
)
@config_argument
@click.option("-v", "--verbose", is_flag=True, help="Log each handshake, and print the path of the daemon's log.")
@quiet_option
def up_command(config: str, verbose: bool, quiet: bool) -> None:
    """Bring up the interface of CONFIG: a path, or the name of a file in /etc/wireguard without .conf."""
    quick = _quick(config, verbose=verbose, quiet=quiet)
    for sentence in _missing_settings(quick.config):
        _warn(sentence)
    quick.up()


def _missing_settings(config: Config) -> Iterator[str]:
    """Yield a warning for each missing setting that can be added later, but without which the tunnel cannot work."""
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
    """Take down the interface of CONFIG.

    Everything that `up` added is removed. It also works if the daemon has crashed.

    \b
    wyrmhole down wg0
    """
    _quick(config, quiet=quiet).down()


@click.command("save")
@config_argument
def save_command(config: str) -> None:
    """Write the running state of the interface to CONFIG.

    Comments, and endpoints given by name, are kept.

    \b
    wyrmhole save wg0
    """
    _quick(config).save()


@click.command("strip")
@config_argument
def strip_command(config: str) -> None:
    """Print CONFIG without the wg-quick settings.

    The result is a file for setconf and syncconf.

    \b
    wyrmhole strip wg0.conf > stripped.conf
    """
    path = config_path(config)
    text, _ = read_file(path)
    Config.parse(text, source=str(path))
    write_bytes(strip(text).encode("utf-8", "surrogateescape"))

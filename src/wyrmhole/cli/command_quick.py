"""up, down, save, strip: interfaces by their files, as wg-quick(8)."""

from __future__ import annotations

import os
import signal
import sys

import click

from wyrmhole.cli.app import Failure, config_argument, config_path, load, write_bytes
from wyrmhole.cli.command_change import resolver
from wyrmhole.cli.quick import Quick
from wyrmhole.control.wg_quick import Config, read_file
from wyrmhole.control.wg_strip import strip


def _quick(config: str) -> Quick:
    if os.geteuid() != 0:
        raise Failure("interfaces and routes are root's: try again with sudo, or `wyrmhole run` without it")
    path = config_path(config)
    quick = Quick(path.absolute(), load(path), resolver(), lambda line: click.echo(f"[#] {line}", err=True))
    try:
        _ = quick.name
    except ValueError as error:
        raise Failure(str(error)) from None
    return quick


@click.command("up")
@config_argument
def up_command(config: str) -> None:
    """Bring up the interface of CONFIG: a file, or the name of one in /etc/wireguard."""
    # As Ctrl-C does, it unwinds: what was made is taken back.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    _quick(config).up()


@click.command("down")
@config_argument
def down_command(config: str) -> None:
    """Take the interface of CONFIG down, and everything that `up` set."""
    _quick(config).down()


@click.command("save")
@config_argument
def save_command(config: str) -> None:
    """Write the running state of the interface into CONFIG; comments and names stay."""
    _quick(config).save()


@click.command("strip")
@config_argument
def strip_command(config: str) -> None:
    """Print CONFIG without the keys that only wg-quick knows, for setconf and syncconf."""
    path = config_path(config)
    text, _ = read_file(path)
    Config.parse(text, source=str(path))
    write_bytes(strip(text).encode("utf-8", "surrogateescape"))

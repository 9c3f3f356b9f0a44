"""run: a program whose whole network is a tunnel."""

from __future__ import annotations

import logging
import sys

import click

from wyrmhole.cli.app import config_argument, config_path, load, warn
from wyrmhole.cli.commands.change import resolver
from wyrmhole.cli.console_log import log_options, set_up_console


@click.command(
    "run",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    short_help="Run COMMAND with a tunnel as its only network, without root.",
)
@config_argument
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@log_options
def run_command(config: str, command: tuple[str, ...], verbose: bool, quiet: bool) -> None:
    """Run COMMAND with a tunnel as its only network, without root.

    \b
    wyrmhole run wg0.conf -- curl https://intranet.example/
    wyrmhole run -v wg0.conf -- curl https://intranet.example/     why does it not connect?

    If the tunnel fails, COMMAND has no network. Names are resolved inside, by the servers that DNS = in CONFIG lists.
    Hooks are not run. The status is that of COMMAND.
    """
    # Imported here: completion and help load this module, and need no tunnel.
    from wyrmhole.cli.confined.parent import Confinement, run

    # By default only what is wrong: the terminal is the program's.
    set_up_console(verbose, quiet, logging.WARNING)
    path = config_path(config)
    parsed = load(path)
    interface = parsed.interface
    if interface.pre_up or interface.post_up or interface.pre_down or interface.post_down:
        warn("PreUp, PostUp, PreDown and PostDown are for the host's network and are not run")
    confinement = Confinement.of(parsed, _interface_name(path.stem), resolver())
    sys.exit(run(confinement, command[1:] if command[0] == "--" else command))


def _interface_name(stem: str) -> str:
    """Inside it is only a label."""
    name = "".join(
        character for character in stem if character.isascii() and (character.isalnum() or character in "_=+-")
    )
    return name[:15] if name not in ("", "lo") else "wg0"

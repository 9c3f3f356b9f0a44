"""run: run a program with a tunnel as its only network."""

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

    If the tunnel fails, COMMAND has no network. Names are resolved inside, by the servers in DNS = of CONFIG.
    Hooks are not run. The exit status is that of COMMAND.
    """
    # Imported here, because completion and help also load this module.
    from wyrmhole.cli.confined.parent import Confinement, run

    # Only warnings by default: the terminal belongs to the program.
    set_up_console(verbose, quiet, logging.WARNING)
    path = config_path(config)
    parsed = load(path)
    interface = parsed.interface
    if interface.pre_up or interface.post_up or interface.pre_down or interface.post_down:
        warn("PreUp, PostUp, PreDown and PostDown are not run: they are meant for the host's network")
    confinement = Confinement.of(parsed, _interface_name(path.stem), resolver())
    sys.exit(run(confinement, command[1:] if command[0] == "--" else command))


def _interface_name(stem: str) -> str:
    """Derive the interface's name in the namespace, where it is only a label, from the file name."""
    name = "".join(
        character for character in stem if character.isascii() and (character.isalnum() or character in "_=+-")
    )
    return name[:15] if name not in ("", "lo") else "wg0"

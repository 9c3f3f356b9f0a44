"""The frame of the command: the list of sub-commands, and the helpers that they share.

A failure that is not a bug ends as one line on stderr with status 1.
"""

from __future__ import annotations

import os
import sys
import warnings
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import click
from click.shell_completion import CompletionItem

from wyrmhole.control.config.file import Config, ConfigFileWarning
from wyrmhole.control.uapi import client
from wyrmhole.errors import WyrmholeError

CONFIG_FOLDER = Path("/etc/wireguard")

COMMAND_MODULES = {
    "addconf": "change",
    "check": "check",
    "completion": "completion",
    "doctor": "doctor",
    "down": "quick",
    "forward": "tunnel",
    "genkey": "keys",
    "genpsk": "keys",
    "proxy": "tunnel",
    "pubkey": "keys",
    "qr": "qr",
    "run": "run",
    "save": "quick",
    "set": "change",
    "setconf": "change",
    "show": "show",
    "showconf": "show",
    "strip": "quick",
    "syncconf": "change",
    "up": "quick",
}
"""The module below wyrmhole.cli.commands that defines each sub-command. It is imported only when it is used."""


class Failure(click.ClickException):
    """An expected failure: one line on stderr, status 1."""

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"wyrmhole: {self.message}", file=file, err=file is None)


class Commands(click.Group):
    """The group that imports a sub-command on first use."""

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted(COMMAND_MODULES)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMAND_MODULES:
            return None
        module = import_module(f"wyrmhole.cli.commands.{COMMAND_MODULES[name]}")
        command: click.Command = getattr(module, f"{name}_command")
        return command

    def invoke(self, context: click.Context) -> object:
        try:
            return super().invoke(context)
        except WyrmholeError as error:
            raise Failure(str(error)) from error
        except BrokenPipeError:
            raise
        except OSError as error:
            prefix = f"{os.fspath(error.filename)}: " if isinstance(error.filename, (str, Path)) else ""
            raise Failure(f"{prefix}{error.strerror or error}{_remedy(error)}") from error


def _remedy(error: OSError) -> str:
    """Return the remedy for a bare interface name, whose file only root may read."""
    name = error.filename
    if isinstance(error, PermissionError) and isinstance(name, (str, Path)) and Path(name).parent == CONFIG_FOLDER:
        return f" (run as root, or give a path such as ./{Path(name).name})"
    return ""


@click.command(
    cls=Commands,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(version("wyrmhole"), prog_name="wyrmhole")
def command() -> None:
    """Manage WireGuard tunnels: keys, configuration files, and interfaces of user-space daemons.

    \b
    wyrmhole check wg0.conf         is this file correct?
    wyrmhole doctor wg0.conf        why does this tunnel not work?
    wyrmhole up wg0                 bring it up, like wg-quick
    wyrmhole run wg0.conf -- curl http://intranet.example/

    CONFIG is a path, or the name of a file in /etc/wireguard without .conf. INTERFACE is the name of a running
    interface.
    """


# Shared by the sub-commands


def warn(sentence: str) -> None:
    click.echo(f"Warning: {sentence}", err=True)


def write(text: str) -> None:
    """Write to stdout unchanged. `click.echo` would strip colours, and the caller has decided about those."""
    sys.stdout.write(text)
    sys.stdout.flush()


def write_bytes(data: bytes) -> None:
    """Write to stdout without decoding."""
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def printable(text: str) -> str:
    """Escape bytes that are not UTF-8: names and values in files may hold them, and stdout may refuse them."""
    return text.encode("utf-8", "backslashreplace").decode()


def config_path(text: str) -> Path:
    """Return the path of CONFIG. A bare interface name stands for its file in /etc/wireguard."""
    is_name = "/" not in text and not text.endswith(".conf")
    return CONFIG_FOLDER / f"{text}.conf" if is_name else Path(text)


def load(path: Path | str) -> Config:
    """Read a file, and write its warnings to stderr. Raises ConfigFileError and OSError."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConfigFileWarning)
        config = Config.load(path)
    for warning in caught:
        warn(str(warning.message))
    return config


def complete_interface(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in client.interfaces() if name.startswith(incomplete)]


def complete_config(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete names in /etc/wireguard, then files."""
    names = sorted(path.stem for path in CONFIG_FOLDER.glob("*.conf") if path.stem.startswith(incomplete))
    return [*map(CompletionItem, names), CompletionItem(incomplete, type="file")]


interface_argument = click.argument("interface", shell_complete=complete_interface)
config_argument = click.argument("config", metavar="CONFIG", shell_complete=complete_config)

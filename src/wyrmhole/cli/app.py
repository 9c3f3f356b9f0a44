"""The command's frame: its sub-commands, loaded when used, and what they share: errors, files, names.

Every failure that is not a bug ends as one line on stderr and status 1.
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

HOMES = {
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
"""The module wyrmhole.cli.command_X of each sub-command: one that is not used costs nothing at the start."""


class Failure(click.ClickException):
    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"wyrmhole: {self.message}", file=file, err=file is None)


class Commands(click.Group):
    def list_commands(self, context: click.Context) -> list[str]:
        return sorted(HOMES)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in HOMES:
            return None
        module = import_module(f"wyrmhole.cli.commands.{HOMES[name]}")
        command: click.Command = getattr(module, f"{name}_command")
        return command

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except WyrmholeError as error:
            raise Failure(str(error)) from error
        except BrokenPipeError:
            raise
        except OSError as error:
            about = f"{os.fspath(error.filename)}: " if isinstance(error.filename, (str, Path)) else ""
            raise Failure(f"{about}{error.strerror or error}{_remedy(error)}") from error


def _remedy(error: OSError) -> str:
    """What to do about a name that stands for a file which only root may see."""
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
    """Tunnels that speak the WireGuard protocol: keys, files, and interfaces of user-space daemons.

    \b
    wyrmhole check wg0.conf         is this file right?
    wyrmhole doctor wg0.conf        why does this tunnel not work?
    wyrmhole up wg0                 bring it up, like wg-quick
    wyrmhole run wg0.conf -- curl http://intranet.example/

    CONFIG is a file, or the name of one in /etc/wireguard. INTERFACE is the name of a running interface.
    """


# Shared by the sub-commands


def warn(sentence: str) -> None:
    click.echo(f"Warning: {sentence}", err=True)


def write(text: str) -> None:
    """To stdout as it is: click takes colours out, which here is decided elsewhere."""
    sys.stdout.write(text)
    sys.stdout.flush()


def write_bytes(data: bytes) -> None:
    """To stdout, in whatever encoding they are."""
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def printable(text: str) -> str:
    """Bytes that are not UTF-8, in names and values of files, as escapes: stdout may refuse them."""
    return text.encode("utf-8", "backslashreplace").decode()


def config_path(text: str) -> Path:
    """A file, or the name of an interface, whose file is in /etc/wireguard."""
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
    """Names in /etc/wireguard, and files."""
    names = sorted(path.stem for path in CONFIG_FOLDER.glob("*.conf") if path.stem.startswith(incomplete))
    return [*map(CompletionItem, names), CompletionItem(incomplete, type="file")]


interface_argument = click.argument("interface", shell_complete=complete_interface)
config_argument = click.argument("config", metavar="CONFIG", shell_complete=complete_config)

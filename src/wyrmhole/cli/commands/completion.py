"""completion: the script with which a shell completes this command."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from wyrmhole.cli.app import command, write

PLACES = {
    "bash": "~/.local/share/bash-completion/completions/wyrmhole",
    "zsh": "a file _wyrmhole in a folder of $fpath",
    "fish": "~/.config/fish/completions/wyrmhole.fish",
}


@click.command(
    "completion",
    help="Print the completion script of a shell.\n\n\b\nwyrmhole completion bash > "
    + PLACES["bash"]
    + "\n\nWhere it belongs:\n\n\b\n"
    + "\n".join(f"{shell}: {place}" for shell, place in PLACES.items()),
)
@click.argument("shell", type=click.Choice(sorted(PLACES)))
def completion_command(shell: str) -> None:
    kind = get_completion_class(shell)
    assert kind is not None
    write(kind(command, {}, "wyrmhole", "_WYRMHOLE_COMPLETE").source() + "\n")

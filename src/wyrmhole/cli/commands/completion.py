"""completion: print the script that makes a shell complete this command."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from wyrmhole.cli.app import command, write

INSTALL_PATHS = {
    "bash": "~/.local/share/bash-completion/completions/wyrmhole",
    "zsh": "a file _wyrmhole in a folder of $fpath",
    "fish": "~/.config/fish/completions/wyrmhole.fish",
}


@click.command(
    "completion",
    help="Print the completion script for a shell.\n\n\b\nwyrmhole completion bash > "
    + INSTALL_PATHS["bash"]
    + "\n\nWhere to install it:\n\n\b\n"
    + "\n".join(f"{shell}: {path}" for shell, path in INSTALL_PATHS.items()),
)
@click.argument("shell", type=click.Choice(sorted(INSTALL_PATHS)))
def completion_command(shell: str) -> None:
    completion = get_completion_class(shell)
    assert completion is not None
    write(completion(command, {}, "wyrmhole", "_WYRMHOLE_COMPLETE").source() + "\n")

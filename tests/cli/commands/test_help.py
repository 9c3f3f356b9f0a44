"""`--help`: each command has a one-line description in the list, and shows an example."""

from __future__ import annotations

import re

import pytest
from click.testing import CliRunner

from wyrmhole.cli import app


def help_of(*words: str) -> str:
    result = CliRunner().invoke(app.command, [*words, "--help"], terminal_width=80)
    assert result.exit_code == 0
    return result.output


def test_each_description_in_the_list_is_a_sentence() -> None:
    listed = help_of().partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in listed] == sorted(app.COMMAND_MODULES)
    for line in listed:
        assert line.endswith("."), line
        assert not line.endswith("..."), line


@pytest.mark.parametrize("name", app.COMMAND_MODULES)
def test_each_command_shows_an_example(name: str) -> None:
    usage, _, rest = help_of(name).partition("\n")
    assert usage.startswith((f"Usage: wyrmhole {name} ", f"Usage: command {name} "))
    assert re.search(rf"^ +(LOG_LEVEL=\w+ |umask 077; )?wyrmhole {name}\b", rest, re.M)


@pytest.mark.parametrize("name", app.COMMAND_MODULES)
def test_help_fits_the_width_of_a_terminal(name: str) -> None:
    wide = [line for line in help_of(name).splitlines() if len(line) > 100]
    assert not wide

"""The command under test, run in this process (fast) or as a program."""

from __future__ import annotations

import sys
from pathlib import Path

import click.testing
from click.testing import CliRunner

from wyrmhole.cli.app import command

WYRMHOLE = str(Path(sys.executable).with_name("wyrmhole"))


def invoke(*words: str, text: str | None = None) -> click.testing.Result:
    return CliRunner().invoke(command, list(words), input=text, prog_name="wyrmhole", catch_exceptions=False)


def output(*words: str, text: str | None = None) -> str:
    result = invoke(*words, text=text)
    assert result.exit_code == 0, result.output
    return result.stdout


def refusal(*words: str, status: int = 1, text: str | None = None) -> str:
    """Return stderr of a failed command, which is one line unless it is about usage."""
    result = invoke(*words, text=text)
    assert result.exit_code == status, result.output
    return result.stderr

"""check: read a file as `up` would, and say what is wrong or doubtful about it."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import click

from wyrmhole.cli.app import config_argument, config_path, write
from wyrmhole.control.lint import Finding, lint
from wyrmhole.control.wg_quick import Config, interface_name, read_file

COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}


@click.command("check")
@config_argument
@click.option("--json", "as_json", is_flag=True, help="A JSON list of findings: line, level, message.")
@click.option("--strict", is_flag=True, help="Status 1 for warnings too.")
def check_command(config: str, as_json: bool, strict: bool) -> None:
    """Lint CONFIG: a file, or the name of one in /etc/wireguard. Status 1 when it has errors."""
    path = config_path(config)
    found = findings(path)
    if as_json:
        write(json.dumps([asdict(finding) for finding in found], indent=2) + "\n")
    else:
        for finding in found:
            level = click.style(finding.level, COLOURS[finding.level])
            click.echo(f"{path}{f':{finding.line}' if finding.line else ''}: {level}: {finding.message}")
        if not found:
            click.echo(f"{path}: nothing to complain about")
    bad = {"error", "warning"} if strict else {"error"}
    sys.exit(any(finding.level in bad for finding in found))


def findings(path: Path) -> list[Finding]:
    """Raises OSError, and ConfigFileError for what is no text."""
    text, exposure = read_file(path)
    config, errors = Config.parse_all(text, source=str(path))
    unreadable = [Finding(error.line, "error", error.expected) for error in errors]
    return [*_of_the_file(path, exposure), *sorted([*unreadable, *lint(config)], key=lambda finding: finding.line)]


def _of_the_file(path: Path, exposure: str | None) -> list[Finding]:
    found = []
    if exposure is not None:
        found.append(
            Finding(0, "warning", exposure.partition(": ")[0].replace(f"{path} is", "it is") + f": chmod 600 {path}")
        )
    if path.is_file() and (owner := path.stat().st_uid) not in (0, os.geteuid()):
        found.append(Finding(0, "warning", f"it belongs to user {owner}, who can have root run commands by it"))
    try:
        interface_name(path.absolute())
    except ValueError:
        message = (
            "its name is none of an interface (up to 15 of letters, digits and _=+.-, then .conf): `up` refuses it"
        )
        found.append(Finding(0, "note", message))
    return found

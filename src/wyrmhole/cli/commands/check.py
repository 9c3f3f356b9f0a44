"""check: read a file as `up` would, and say what is wrong or doubtful about it."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from dataclasses import asdict
from pathlib import Path

import click

from wyrmhole.cli.app import config_argument, config_path, printable, write
from wyrmhole.control.config.endpoint_names import look_up_host
from wyrmhole.control.config.file import Config, interface_name, read_file
from wyrmhole.control.config.lint import Finding, lint
from wyrmhole.control.config.values import ConfigEndpoint

COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}

NAME_SECONDS = 5.0
"""All names are looked up at once, and this is the longest that `check` waits for them."""

MAX_NAMES = 64
"""Names that are looked up, with a thread for each."""


@click.command("check")
@config_argument
@click.option("--json", "as_json", is_flag=True, help="A JSON list of findings: line, level, message.")
@click.option("--strict", is_flag=True, help="Status 1 for warnings, too.")
@click.option("--offline", is_flag=True, help="Do not look up the names of endpoints.")
def check_command(config: str, as_json: bool, strict: bool, offline: bool) -> None:
    """Report what is wrong or doubtful in CONFIG, line by line.

    CONFIG is a file, or the name of one in /etc/wireguard. The status is 1 if there are errors.

    \b
    wyrmhole check wg0.conf
    """
    path = config_path(config)
    found = findings(path, offline=offline)
    if as_json:
        write(json.dumps([asdict(finding) for finding in found], indent=2) + "\n")
    else:
        for finding in found:
            level = click.style(finding.level, COLOURS[finding.level])
            where = f"{path}:{finding.line}" if finding.line else str(path)
            click.echo(printable(f"{where}: {level}: {finding.message}"))
        if not found:
            click.echo(printable(f"{path}: nothing to complain about"))
    bad = {"error", "warning"} if strict else {"error"}
    sys.exit(any(finding.level in bad for finding in found))


def findings(path: Path, *, offline: bool = True) -> list[Finding]:
    """Raises OSError, and ConfigFileError for a file that is not text."""
    text, exposure = read_file(path)
    config, errors = Config.parse_all(text, source=str(path))
    found = [Finding(error.line, "error", error.expected) for error in errors]
    found += lint(config)
    found += [] if offline else unresolved(config)
    return [*_of_the_file(path, exposure), *sorted(found, key=lambda finding: finding.line)]


# Names


def unresolved(config: Config) -> list[Finding]:
    """A warning for each peer whose endpoint is a name that gives no address now."""
    named = [peer for peer in config.peers if peer.endpoint is not None and peer.endpoint.is_name]
    reasons = _look_up({peer.endpoint for peer in named if peer.endpoint is not None})
    return [
        Finding(
            config.line_of(peer, "Endpoint"),
            "warning",
            f"{peer.endpoint.host} cannot be resolved now ({reasons[peer.endpoint]}): "
            "this peer has no endpoint until it can",
        )
        for peer in named
        if peer.endpoint is not None and peer.endpoint in reasons
    ]


def _look_up(endpoints: set[ConfigEndpoint]) -> dict[ConfigEndpoint, str]:
    """The reason for each endpoint whose name gave no address within NAME_SECONDS."""
    names = sorted(endpoints, key=ConfigEndpoint.emit)[:MAX_NAMES]
    reasons = dict.fromkeys(names, f"no answer within {NAME_SECONDS:g} s")

    def look_up(endpoint: ConfigEndpoint) -> None:
        try:
            look_up_host(endpoint.host, endpoint.port)
        except socket.gaierror as error:
            reasons[endpoint] = error.strerror or str(error)
        else:
            del reasons[endpoint]

    threads = [threading.Thread(target=look_up, args=(endpoint,), daemon=True) for endpoint in names]

    def look_up_all() -> None:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    # A daemon thread that hangs in the resolver does not keep the process from ending.
    waiting = threading.Thread(target=look_up_all, daemon=True)
    waiting.start()
    waiting.join(NAME_SECONDS)
    return dict(reasons)


def _of_the_file(path: Path, exposure: str | None) -> list[Finding]:
    found = []
    if exposure is not None:
        found.append(
            Finding(0, "warning", exposure.partition(": ")[0].replace(f"{path} is", "it is") + f": chmod 600 {path}")
        )
    if path.is_file() and (owner := path.stat().st_uid) not in (0, os.geteuid()):
        found.append(Finding(0, "warning", f"it belongs to user {owner}, who can make root run commands with it"))
    try:
        interface_name(path.absolute())
    except ValueError:
        message = (
            "the file name is not the name of an interface (up to 15 letters, digits and _=+.-, then .conf): "
            "`wyrmhole up` will refuse it"
        )
        found.append(Finding(0, "note", message))
    return found

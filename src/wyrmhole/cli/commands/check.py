"""check: read a file like `up`, and report errors and doubtful settings."""

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
from wyrmhole.control.config.lint import Remark, lint
from wyrmhole.control.config.values import ConfigEndpoint

COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}

NAME_SECONDS = 5.0
"""Upper limit of the wait for names. All names are looked up at once."""

MAX_NAMES = 64
"""Upper limit of names that are looked up: each takes a thread."""


@click.command("check")
@config_argument
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of findings: line, level, message.")
@click.option("--strict", is_flag=True, help="Exit with status 1 for warnings, too.")
@click.option("--offline", is_flag=True, help="Do not look up endpoint names.")
def check_command(config: str, as_json: bool, strict: bool, offline: bool) -> None:
    """Report errors and doubtful settings in CONFIG, line by line.

    CONFIG is a path, or the name of a file in /etc/wireguard without .conf. The status is 1 if there are errors.

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
            location = f"{path}:{finding.line}" if finding.line else str(path)
            click.echo(printable(f"{location}: {level}: {finding.message}"))
        if not found:
            click.echo(printable(f"{path}: no problems found"))
    bad = {"error", "warning"} if strict else {"error"}
    sys.exit(any(finding.level in bad for finding in found))


def findings(path: Path, *, offline: bool = True) -> list[Remark]:
    """Return the findings for one file. Raises OSError, or ConfigFileError if the file is not text."""
    text, exposure = read_file(path)
    config, errors = Config.parse_all(text, source=str(path))
    found = [Remark(error.line, "error", error.expected) for error in errors]
    found += lint(config)
    found += [] if offline else unresolved(config)
    return [*_file_findings(path, exposure), *sorted(found, key=lambda finding: finding.line)]


# Names


def unresolved(config: Config) -> list[Remark]:
    """Return a warning for each peer whose endpoint name does not resolve now."""
    named = [peer for peer in config.peers if peer.endpoint is not None and peer.endpoint.is_name]
    reasons = _look_up({peer.endpoint for peer in named if peer.endpoint is not None})
    return [
        Remark(
            config.line_of(peer, "Endpoint"),
            "warning",
            f"{peer.endpoint.host} cannot be resolved now ({reasons[peer.endpoint]}): "
            "this peer has no endpoint until it resolves",
        )
        for peer in named
        if peer.endpoint is not None and peer.endpoint in reasons
    ]


def _look_up(endpoints: set[ConfigEndpoint]) -> dict[ConfigEndpoint, str]:
    """Return the reason for each endpoint whose name did not resolve within NAME_SECONDS."""
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

    # Daemon threads, so that one that hangs in the resolver does not keep the process alive.
    waiting = threading.Thread(target=look_up_all, daemon=True)
    waiting.start()
    waiting.join(NAME_SECONDS)
    return dict(reasons)


def _file_findings(path: Path, exposure: str | None) -> list[Remark]:
    found = []
    if exposure is not None:
        found.append(
            Remark(0, "warning", exposure.partition(": ")[0].replace(f"{path} is", "it is") + f": chmod 600 {path}")
        )
    if path.is_file() and (owner := path.stat().st_uid) not in (0, os.geteuid()):
        found.append(
            Remark(0, "warning", f"it belongs to user {owner}, who can change its hooks and so run commands as root")
        )
    try:
        interface_name(path.absolute())
    except ValueError:
        message = (
            "the file name is not a valid interface name (up to 15 letters, digits or _=+.-, then .conf): "
            "`wyrmhole up` will refuse it"
        )
        found.append(Remark(0, "note", message))
    return found

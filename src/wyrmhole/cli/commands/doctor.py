"""doctor: report what works and what fails on this machine or in one tunnel, with the remedy."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict

import click

import wyrmhole
from wyrmhole.cli.app import complete_config, config_path, load, write
from wyrmhole.cli.doctor.finding import Verdict
from wyrmhole.errors import WyrmholeError

MARKS = {"good": ("ok", "green"), "poor": ("--", "yellow"), "bad": ("NO", "red"), "note": ("..", "blue")}
"""The mark in front of a line: works, works with a restriction, does not work, could not be tried."""


@click.command("doctor")
@click.argument("config", required=False, shell_complete=complete_config)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of findings.")
@click.option(
    "--name",
    "names",
    multiple=True,
    metavar="HOST",
    help="Look up this name inside the tunnel, or ping this address; may be repeated.",
)
@click.option(
    "--to",
    "peer",
    metavar="PEER",
    help="Test whether GSO batches reach a peer, given by its key or an address inside the tunnel.",
)
def doctor_command(config: str | None, as_json: bool, names: tuple[str, ...], peer: str | None) -> None:
    """Find out why a tunnel, or this machine, does not work.

    \b
    wyrmhole doctor                   examine this machine
    wyrmhole doctor wg0.conf          try to reach the peers of a file; no root
    wyrmhole doctor --to 10.0.0.2     test GSO batches through a running tunnel

    Without CONFIG, it checks what tunnels need from this machine. The status is 1 if neither the daemon nor the library
    can work.

    With CONFIG (a path, or the name of a file in /etc/wireguard without .conf), it checks step by step: the endpoint's
    name and route, a handshake, then ping, path MTU and name servers inside. The status is 1 if a step fails.

    With --to, it pings a peer in bursts and one by one. The status is 1 if batches are lost while single datagrams
    arrive, and 2 if the test gives no answer.

    \b
    ok  works
    --  works, with a restriction that the line names
    NO  does not work
    ..  could not be tried
    """
    if config is not None and peer is not None:
        raise click.UsageError("give CONFIG or --to, not both")
    if config is not None:
        sys.exit(asyncio.run(_try_tunnel(config, names, as_json)))
    findings: list[Verdict] = []
    for finding in _examine() if peer is None else _probe(peer):
        findings.append(finding)
        if not as_json:
            _show(finding)
    if as_json:
        write(json.dumps([asdict(finding) for finding in findings], indent=2) + "\n")
    if peer is None:
        sys.exit(0 if can_work(findings) else 1)
    sys.exit({"good": 0, "bad": 1}.get(findings[-1].level, 2))


def _examine() -> Iterator[Verdict]:
    # Imported here, as in `_probe`, because completion and help also load this module.
    from wyrmhole.cli.doctor.checks import examine

    return examine()


def _probe(peer: str) -> Iterator[Verdict]:
    """Yield the findings of `--to`. A step that fails ends the test, and its finding gives the reason."""
    from wyrmhole.cli.doctor.train_probe import find_target, probe

    try:
        yield from probe(find_target(peer))
    except PermissionError as error:
        yield Verdict("poor", "batches", f"not tried: {error.strerror}", "run as root, which may send pings")
    except OSError as error:
        yield Verdict("poor", "batches", f"no result: {error.strerror or error}")
    except WyrmholeError as error:
        yield Verdict("poor", "batches", f"not tried: {error}")


def _show(finding: Verdict) -> None:
    _write_line(finding.level, finding.what, finding.found, finding.advice)


def _write_line(level: str, what: str, found: str, advice: str) -> None:
    mark, colour = MARKS[level]
    click.echo(f"{click.style(mark, fg=colour)}  {what:<13} {found}")
    if advice:
        click.echo(f"    {'':<13} {advice}")


async def _try_tunnel(config: str, names: tuple[str, ...], as_json: bool) -> int:
    findings = []
    async for finding in wyrmhole.diagnose(load(config_path(config)), names=names):
        findings.append(finding)
        if not as_json:
            subject = f"{finding.peer}: " if finding.peer else ""
            _write_line(finding.level, finding.step, f"{subject}{finding.found}", finding.advice)
    if as_json:
        write(json.dumps([asdict(finding) for finding in findings], indent=2) + "\n")
    return int(any(finding.level == "bad" for finding in findings))


def can_work(findings: list[Verdict]) -> bool:
    """Report whether tunnels can work: with rights and a TUN device, or without rights in namespaces."""
    bad = {finding.what for finding in findings if finding.level == "bad"}
    has_rights = any(finding.what == "rights" and finding.level == "good" for finding in findings)
    if bad & {"cipher", "clock", "TUN", "families"}:
        return False
    return has_rights or "namespaces" not in bad

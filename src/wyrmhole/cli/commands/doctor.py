"""doctor: what works on this machine, or on the way of one tunnel, what does not, and what to do about it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict

import click

import wyrmhole
from wyrmhole.cli.app import complete_config, config_path, load, write
from wyrmhole.cli.doctor.checks import Finding, examine
from wyrmhole.errors import WyrmholeError

MARKS = {"good": ("ok", "green"), "poor": ("--", "yellow"), "bad": ("NO", "red"), "note": ("..", "blue")}
"""In front of a line: it works; it works, but; it does not work; it could not be tried."""


@click.command("doctor")
@click.argument("config", required=False, shell_complete=complete_config)
@click.option("--json", "as_json", is_flag=True, help="A JSON list of findings.")
@click.option(
    "--name",
    "names",
    multiple=True,
    metavar="HOST",
    help="Look up this name inside, or ping this address; may be repeated.",
)
@click.option(
    "--to", "peer", metavar="PEER", help="Try whether GSO batches reach a peer: its key, or an address inside."
)
def doctor_command(config: str | None, as_json: bool, names: tuple[str, ...], peer: str | None) -> None:
    """Find out why a tunnel, or this machine, does not work.

    \b
    wyrmhole doctor                   examine this machine
    wyrmhole doctor wg0.conf          try to reach the peers of a file; no root
    wyrmhole doctor --to 10.0.0.2     test GSO batches through a running tunnel

    Without CONFIG it examines what tunnels need of this machine. The status is 1 if neither the daemon nor the library
    can work.

    With CONFIG (a file, or the name of one in /etc/wireguard) it goes step by step: the endpoint's name and route, a
    handshake, ping and path MTU inside, name servers. The status is 1 if a step fails.

    With --to it pings a peer in bursts and one by one. The status is 1 if batches are lost while single datagrams
    arrive, and 2 if it could not find out.

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
    findings: list[Finding] = []
    for finding in examine() if peer is None else _probe(peer):
        findings.append(finding)
        if not as_json:
            _show(finding)
    if as_json:
        write(json.dumps([asdict(finding) for finding in findings], indent=2) + "\n")
    if peer is None:
        sys.exit(0 if can_work(findings) else 1)
    sys.exit({"good": 0, "bad": 1}.get(findings[-1].level, 2))


def _probe(peer: str) -> Iterator[Finding]:
    """A step that fails ends it without a verdict, and says why."""
    from wyrmhole.cli.doctor.train_probe import find_target, probe

    try:
        yield from probe(find_target(peer))
    except PermissionError as error:
        yield Finding("poor", "batches", f"not tried: {error.strerror}", "run it as root, which may send pings itself")
    except OSError as error:
        yield Finding("poor", "batches", f"not found out: {error.strerror or error}")
    except WyrmholeError as error:
        yield Finding("poor", "batches", f"not tried: {error}")


def _show(finding: Finding) -> None:
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
            who = f"{finding.peer}: " if finding.peer else ""
            _write_line(finding.level, finding.step, f"{who}{finding.found}", finding.advice)
    if as_json:
        write(json.dumps([asdict(finding) for finding in findings], indent=2) + "\n")
    return int(any(finding.level == "bad" for finding in findings))


def can_work(findings: list[Finding]) -> bool:
    """Either with rights and a TUN, or without rights in namespaces."""
    bad = {finding.what for finding in findings if finding.level == "bad"}
    has_rights = any(finding.what == "rights" and finding.level == "good" for finding in findings)
    if bad & {"cipher", "clock", "TUN", "families"}:
        return False
    return has_rights or "namespaces" not in bad

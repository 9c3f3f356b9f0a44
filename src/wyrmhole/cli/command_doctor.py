"""doctor: what works on this machine, what does not, and what to do about it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click

from wyrmhole.cli.app import write
from wyrmhole.cli.diagnosis import Finding, examine

MARKS = {"good": ("ok", "green"), "poor": ("--", "yellow"), "bad": ("NO", "red")}


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="A JSON list of findings: level, what, found, advice.")
def doctor_command(as_json: bool) -> None:
    """Look at what tunnels need of this machine. Status 1 when neither the daemon nor the library can work."""
    findings = list(examine())
    if as_json:
        write(json.dumps([asdict(finding) for finding in findings], indent=2) + "\n")
    else:
        for finding in findings:
            _show(finding)
    sys.exit(0 if can_work(findings) else 1)


def _show(finding: Finding) -> None:
    mark, colour = MARKS[finding.level]
    click.echo(f"{click.style(mark, fg=colour)}  {finding.what:<13} {finding.found}")
    if finding.advice:
        click.echo(f"    {'':<13} {finding.advice}")


def can_work(findings: list[Finding]) -> bool:
    """Either with rights and a TUN, or without rights in namespaces."""
    bad = {finding.what for finding in findings if finding.level == "bad"}
    has_rights = any(finding.what == "rights" and finding.level == "good" for finding in findings)
    if bad & {"cipher", "clock", "TUN", "families"}:
        return False
    return has_rights or "namespaces" not in bad

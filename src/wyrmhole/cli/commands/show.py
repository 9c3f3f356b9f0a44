"""show and showconf: print the status that user-space daemons report on their UAPI sockets."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator

import click
from click.shell_completion import CompletionItem

from wyrmhole.cli import show_text
from wyrmhole.cli.app import Failure, complete_interface, interface_argument, warn, write
from wyrmhole.control.uapi import client
from wyrmhole.control.uapi.renamed import present_names
from wyrmhole.control.uapi.socket import DEFAULT_DIRECTORY
from wyrmhole.device.clock import SystemClock
from wyrmhole.device.status import DeviceStatus
from wyrmhole.errors import WyrmholeError

EPILOG = """\b
WG_COLOR_MODE=always|never   colours, also if stdout is not a terminal
WG_HIDE_KEYS=never           show secret keys
"""


def use_colours() -> bool:
    """Report whether to print colours. WG_COLOR_MODE has the same meaning as in wg(8)."""
    mode = os.environ.get("WG_COLOR_MODE", "auto")
    return mode == "always" or (mode != "never" and sys.stdout.isatty())


def _complete_what(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    words = [CompletionItem(word) for word in ("all", "interfaces") if word.startswith(incomplete)]
    return [*complete_interface(context, parameter, incomplete), *words]


@click.command("show", short_help="Show interfaces and their peers, like `wg show`.", epilog=EPILOG)
@click.argument("interface", default="all", shell_complete=_complete_what)
@click.argument("field", required=False, type=click.Choice(show_text.FIELDS))
@click.option("--json", "as_json", is_flag=True, help="Print a JSON document, without secret keys.")
@click.option(
    "--drops",
    "with_drops",
    is_flag=True,
    help="Count dropped packets by reason and peer, and explain each reason.",
)
def show_command(interface: str, field: str | None, as_json: bool, with_drops: bool) -> None:
    """Show interfaces and their peers, like `wg show`.

    INTERFACE is a name, `all` (the default), or `interfaces` for the names alone. With a field name, only that field is
    printed.

    \b
    wyrmhole show
    wyrmhole show wg0 latest-handshakes
    wyrmhole show wg0 --drops     why packets did not arrive
    wyrmhole show all --json
    """
    if field is not None and (as_json or with_drops):
        raise click.UsageError(f"{'--json' if as_json else '--drops'} cannot be combined with a field")
    if interface == "interfaces":
        _show_names(as_json)
        return
    is_all = interface == "all"
    names = client.interfaces() if is_all else [interface]
    _warn_of_renamed(names)
    statuses = _get_all(names) if is_all else iter([client.get(interface)])
    if as_json:
        document = [_document(status, with_drops) for status in statuses]
        write(json.dumps(document if is_all else document[0], indent=2) + "\n")
    elif with_drops:
        write("\n".join(map(_drops, statuses)))
    elif field is not None:
        for status in statuses:
            write(show_text.field_text(status, field, with_name=is_all))
    else:
        write("\n".join(map(_pretty, statuses)))


def _get_all(names: list[str]) -> Iterator[DeviceStatus]:
    """Yield the status of each daemon, with a warning for one that does not answer. Raises Failure if none answers."""
    answered = 0
    for name in names:
        try:
            status = client.get(name)
        except WyrmholeError as error:
            warn(str(error))
        else:
            answered += 1
            yield status
    if names and not answered:
        raise Failure("no daemon answers")


def _warn_of_renamed(names: list[str]) -> None:
    """Warn about renamed interfaces: a daemon keeps the name that its interface had when it started."""
    if missing := [name for name in names if not client.is_link(name)]:
        present = present_names(DEFAULT_DIRECTORY)
        for name in missing:
            if present.get(name, name) != name:
                warn(f"{name} is now the interface {present[name]}; its daemon still answers to {name}")


def _show_names(as_json: bool) -> None:
    names = client.interfaces()
    _warn_of_renamed(names)
    if as_json:
        write(json.dumps(names) + "\n")
    elif names:
        write(" ".join(names) + "\n")


def _document(status: DeviceStatus, with_drops: bool) -> dict[str, object]:
    document = show_text.as_json(status)
    if with_drops:
        keys = [peer.public_key for peer in status.peers]
        document = show_text.drops_json(document, client.drops(status.name), keys)
    return document


def _drops(status: DeviceStatus) -> str:
    keys = [peer.public_key for peer in status.peers]
    return _coloured(show_text.drops_text(status.name, client.drops(status.name), keys))


def _pretty(status: DeviceStatus) -> str:
    text = show_text.pretty(status, SystemClock().wall() // 10**9, os.environ.get("WG_HIDE_KEYS") != "never")
    return _coloured(text)


def _coloured(text: str) -> str:
    return text if use_colours() else show_text.plain(text)


@click.command("showconf")
@interface_argument
def showconf_command(interface: str) -> None:
    """Print the running configuration, private key included.

    The output is a file for setconf.

    \b
    umask 077; wyrmhole showconf wg0 > running.conf
    """
    write(show_text.configuration(client.get(interface)))

"""show and showconf: what user-space daemons answer on their sockets, ours or others'."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator

import click
from click.shell_completion import CompletionItem

from wyrmhole.cli import show_text
from wyrmhole.cli.app import complete_interface, interface_argument, write
from wyrmhole.control import uapi_client
from wyrmhole.device.clock import SystemClock


def use_colours() -> bool:
    """WG_COLOR_MODE as wg(8) reads it: always, never, or by whether somebody looks."""
    mode = os.environ.get("WG_COLOR_MODE", "auto")
    return mode == "always" or (mode != "never" and sys.stdout.isatty())


def _complete_what(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    words = [CompletionItem(word) for word in ("all", "interfaces") if word.startswith(incomplete)]
    return [*complete_interface(context, parameter, incomplete), *words]


@click.command("show")
@click.argument("interface", default="all", shell_complete=_complete_what)
@click.argument("field", required=False, type=click.Choice(show_text.FIELDS))
@click.option("--json", "as_json", is_flag=True, help="One JSON document, without secret keys.")
def show_command(interface: str, field: str | None, as_json: bool) -> None:
    """Show INTERFACE, `all` of them (the default), or the names of the `interfaces`; in full or one FIELD."""
    if as_json and field is not None:
        raise click.UsageError("--json shows everything: leave the field out")
    if interface == "interfaces":
        _show_names(as_json)
        return
    names = uapi_client.interfaces() if interface == "all" else [interface]
    if as_json:
        document = [show_text.as_json(uapi_client.get(name)) for name in names]
        write(json.dumps(document if interface == "all" else document[0], indent=2) + "\n")
    elif field is not None:
        for name in names:
            write(show_text.field_text(uapi_client.get(name), field, with_name=interface == "all"))
    else:
        write("\n".join(_pretty(names)))


def _show_names(as_json: bool) -> None:
    names = uapi_client.interfaces()
    if as_json:
        write(json.dumps(names) + "\n")
    elif names:
        write(" ".join(names) + "\n")


def _pretty(names: list[str]) -> Iterator[str]:
    hide_keys = os.environ.get("WG_HIDE_KEYS") != "never"
    is_colourful = use_colours()
    for name in names:
        text = show_text.pretty(uapi_client.get(name), SystemClock().wall() // 10**9, hide_keys)
        yield text if is_colourful else show_text.plain(text)


@click.command("showconf")
@interface_argument
def showconf_command(interface: str) -> None:
    """Print the running configuration of INTERFACE as a file for setconf. It holds the private key."""
    write(show_text.configuration(uapi_client.get(interface)))

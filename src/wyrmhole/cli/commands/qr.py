"""qr: draw a configuration as a QR code for the mobile apps."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from wyrmhole.cli.app import Failure, config_argument, config_path, load, warn, write
from wyrmhole.control.config.strip import for_apps

MAX_BYTES = 2953
"""Capacity of the largest QR code: version 40, error correction level L (ISO/IEC 18004)."""


@click.command("qr")
@config_argument
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Write a .png or .svg file that only its owner can read."
)
@click.option("--allow-secrets", is_flag=True, help="Allow printing private keys when stdout is not a terminal.")
def qr_command(config: str, output: Path | None, allow_secrets: bool) -> None:
    """Draw CONFIG as a QR code for the mobile apps.

    The code contains the private key: anyone who can see it can use the tunnel. Comments are left out, and so are the
    settings that the apps refuse (FwMark, Table, hooks, SaveConfig).

    \b
    wyrmhole qr phone.conf                 on the terminal
    wyrmhole qr phone.conf -o phone.png
    """
    # Imported here, because completion and help also load this module.
    import segno

    path = config_path(config)
    parsed = load(path)
    text, left_out = for_apps(parsed)
    has_secrets = parsed.interface.private_key is not None or any(peer.preshared_key for peer in parsed.peers)
    if output is None and has_secrets and not sys.stdout.isatty() and not allow_secrets:
        raise Failure("refusing to print private keys to a non-terminal; pass --allow-secrets to override")
    if len(text.encode()) > MAX_BYTES:
        raise Failure(f"{path} is larger than the {MAX_BYTES} bytes of a QR code: leave out peers or allowed ips")
    if left_out:
        warn(f"left out, because the mobile apps refuse it: {', '.join(left_out)}")
    code = segno.make_qr(text.encode(), error="l", mode="byte", boost_error=False)
    if output is None:
        code.terminal(compact=True)
    else:
        _save(code, output)


def _save(code: object, output: Path) -> None:
    kind = output.suffix.removeprefix(".").lower()
    if kind not in ("png", "svg"):
        raise Failure(f"{output}: expected a name that ends in .png or .svg")
    fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        code.save(file, kind=kind, scale=4)  # type: ignore[attr-defined]
    write(f"{output}\n")

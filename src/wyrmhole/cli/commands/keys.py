"""genkey, genpsk, pubkey. Keys pass through stdin and stdout, never through arguments, which other users can read."""

from __future__ import annotations

import os
import stat
import sys

import click

from wyrmhole.cli.app import Failure, warn
from wyrmhole.device.clock import SystemClock
from wyrmhole.protocol.keys import KEY_SIZE, PresharedKey, PrivateKey

LONGEST_INPUT = 1024
"""In bytes; a key has 44 characters. The rest of the input is not read."""


def _warn_if_world_readable() -> None:
    try:
        status = os.fstat(sys.stdout.fileno())
    except OSError:
        return
    if stat.S_ISREG(status.st_mode) and status.st_mode & 0o007:
        warn("writing a key to a world-readable file; run `umask 077` first")


@click.command("genkey")
def genkey_command() -> None:
    """Print a new private key.

    \b
    umask 077; wyrmhole genkey > private.key
    """
    _warn_if_world_readable()
    click.echo(PrivateKey(SystemClock().random(KEY_SIZE)).base64())


@click.command("genpsk")
def genpsk_command() -> None:
    """Print a new preshared key. Both peers need the same one.

    \b
    umask 077; wyrmhole genpsk > preshared.key
    """
    _warn_if_world_readable()
    click.echo(PresharedKey(SystemClock().random(KEY_SIZE)).base64())


@click.command("pubkey")
def pubkey_command() -> None:
    """Read a private key from stdin and print its public key.

    \b
    wyrmhole pubkey < private.key > public.key
    """
    text = sys.stdin.buffer.read(LONGEST_INPUT).decode("ascii", "replace").strip()
    try:
        key = PrivateKey.from_base64(text)
    except ValueError as error:
        raise Failure(f"stdin: {error}") from None
    if key.is_zero:
        raise Failure("stdin: an all-zero key is invalid")
    click.echo(key.public_key().base64())

"""The users that run the command in tests: root, or nobody on a host whose /dev/net/tun is open to all."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2]
USERS = ("root", "nobody")

NOBODY = """
folder=$(mktemp -d)
mount -t tmpfs -o mode=755 none $folder && mknod -m 666 $folder/tun c 10 200 && mount --bind $folder/tun /dev/net/tun
umount -l $folder && rmdir $folder
exec setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all --bounding-set=-all "$@"
"""
"""Runs a command in a mount namespace where /dev/net/tun is open to all, as in distributions."""


def as_nobody(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command as nobody.

    A shell comes between, because setpriv itself still has root's access when it starts its program.
    """
    words = ["setpriv", "--reuid", "65534", "--clear-groups", "sh", "-c", '"$@"', "sh", *command]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def shared_python() -> str:
    """Return an interpreter of this version that every user may run, even if the tests' own is in root's home."""
    program = "import sys; print(sys.version_info[:2])"
    for candidate in (os.path.realpath(sys.executable), "/usr/bin/python3"):
        if as_nobody(candidate, "-c", program).stdout.strip() == str(sys.version_info[:2]):
            return candidate
    pytest.skip("no Python of this version that user 65534 may run")


def skip_unless_readable(user: str) -> None:
    if user == "nobody" and as_nobody("ls", str(SOURCE / "src")).returncode:
        pytest.skip("user 65534 may not read the sources here")


def wyrmhole_of(user: str, *words: str) -> Sequence[str]:
    """Return the command as this user calls it, in an environment with `ENVIRON`."""
    module = ("-m", "wyrmhole.cli.main", *words)
    if user == "root":
        return (sys.executable, *module)
    return ("unshare", "-m", "sh", "-c", NOBODY, "sh", shared_python(), *module)


def environ() -> dict[str, str]:
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    return {"PYTHONPATH": f"{SOURCE / 'src'}:{packages}"}

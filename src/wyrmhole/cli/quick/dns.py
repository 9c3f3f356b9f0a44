"""Register a tunnel's name servers with resolvconf(8), or with systemd-resolved if resolvconf is missing.

Without either, no program manages /etc/resolv.conf, and `up` does not change the file itself.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from wyrmhole.errors import DeviceError

TIMEOUT = 20.0
"""Seconds for one run of resolvconf or resolvectl."""

INTERFACE_ORDER = Path("/etc/resolvconf/interface-order")


class NameService:
    """The name servers of an interface.

    Without servers nothing is done, even with search domains, like in wg-quick(8).
    """

    def __init__(self, interface: str, servers: Sequence[object], search: Sequence[str]) -> None:
        self._interface = interface
        self._servers = [str(server) for server in servers]
        self._search = list(search)

    def require(self) -> None:
        """Raise DeviceError if there are servers but no program to register them with."""
        if self._servers and not (shutil.which("resolvconf") or shutil.which("resolvectl")):
            raise DeviceError(
                "cannot set DNS: neither resolvconf nor resolvectl is installed"
                " (install resolvconf or openresolv, or replace DNS by a PostUp command)"
            )

    def set(self) -> None:
        if not self._servers:
            return
        if shutil.which("resolvconf"):
            lines = [f"nameserver {server}" for server in self._servers]
            lines += [f"search {' '.join(self._search)}"] if self._search else []
            _run(["resolvconf", "-a", self._record, "-m", "0", "-x"], "".join(f"{line}\n" for line in lines))
        else:
            _run(["resolvectl", "dns", self._interface, *self._servers])
            _run(["resolvectl", "domain", self._interface, "~.", *self._search])

    def unset(self) -> None:
        if not self._servers:
            return
        if shutil.which("resolvconf"):
            _run(["resolvconf", "-d", self._record, "-f"])
        elif shutil.which("resolvectl"):
            _run(["resolvectl", "revert", self._interface])

    @property
    def _record(self) -> str:
        """The name of the record. Debian's resolvconf orders records by prefixes; the first of its list comes first.

        The list may remain after a change to systemd's resolvconf, which is a link and accepts no prefixes.
        """
        program = shutil.which("resolvconf")
        is_link = program is not None and os.path.islink(program)
        return ("" if is_link else _record_prefix(INTERFACE_ORDER)) + self._interface


def _record_prefix(order: Path) -> str:
    try:
        lines = order.read_text().splitlines()
    except OSError:
        return ""
    found = (re.fullmatch(r"([A-Za-z0-9-]+)\*", line.strip()) for line in lines)
    return next((f"{match[1]}." for match in found if match), "")


def _run(arguments: list[str], text: str = "") -> None:
    try:
        result = subprocess.run(arguments, input=text, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired as error:
        raise DeviceError(f"{arguments[0]} did not end in {TIMEOUT:.0f} s") from error
    except OSError as error:
        raise DeviceError(f"{arguments[0]} cannot be run: {error.strerror}") from error
    if result.returncode:
        lines = result.stderr.strip().splitlines()
        raise DeviceError(f"{' '.join(arguments[:2])} failed: {lines[0] if lines else result.returncode}")

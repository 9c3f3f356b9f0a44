"""The firewall rules with which wg-quick(8) guards a tunnel that has the default route, word for word.

Two things: packets to the tunnel's own addresses that come in elsewhere are dropped, and the mark of the tunnel's own
UDP packets is carried over to their answers, which the reverse path filter would otherwise throw away.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable, Iterator

from wyrmhole.errors import DeviceError

TIMEOUT = 20.0
"""Seconds for one run of nft or iptables."""


def nft_rules(interface: str, version: int, mark: int, addresses: Iterable[str]) -> str:
    """A script for `nft -f`. `addresses`: the interface's own, of that IP version, without lengths."""
    family = "ip6" if version == 6 else "ip"
    table = f"{family} wg-quick-{interface}"
    guards = [
        f'add rule {table} preraw iifname != "{interface}" {family} daddr {address} fib saddr type != local drop'
        for address in addresses
    ]
    lines = [
        f"add table {table}",
        f"add chain {table} preraw {{ type filter hook prerouting priority -300; }}",
        f"add chain {table} premangle {{ type filter hook prerouting priority -150; }}",
        f"add chain {table} postmangle {{ type filter hook postrouting priority -150; }}",
        *guards,
        f"add rule {table} postmangle meta l4proto udp mark {mark} ct mark set mark",
        f"add rule {table} premangle meta l4proto udp meta mark set ct mark",
    ]
    return "".join(f"{line}\n" for line in lines)


def iptables_rules(interface: str, mark: int, addresses: Iterable[str]) -> str:
    """The same for `iptables-restore -n`, where there is no nft."""
    marker = f'-m comment --comment "wg-quick(8) rule for {interface}"'
    guards = [
        f"-I PREROUTING ! -i {interface} -d {address} -m addrtype ! --src-type LOCAL -j DROP {marker}"
        for address in addresses
    ]
    lines = [
        "*raw",
        *guards,
        "COMMIT",
        "*mangle",
        f"-I POSTROUTING -m mark --mark {mark} -p udp -j CONNMARK --save-mark {marker}",
        f"-I PREROUTING -p udp -j CONNMARK --restore-mark {marker}",
        "COMMIT",
    ]
    return "".join(f"{line}\n" for line in lines)


def require() -> None:
    """Raises DeviceError when there is no program that could set the rules."""
    if not (shutil.which("nft") or shutil.which("iptables-restore")):
        raise DeviceError("a default route through a tunnel needs firewall rules: install nftables (or iptables)")


def add(interface: str, version: int, mark: int, addresses: Iterable[str]) -> None:
    if shutil.which("nft"):
        _run(["nft", "-f", "-"], nft_rules(interface, version, mark, addresses))
    else:
        program = "ip6tables-restore" if version == 6 else "iptables-restore"
        _run([program, "-n"], iptables_rules(interface, mark, addresses))


def remove(interface: str) -> None:
    """Take back what `add` made, by nft and by iptables; nothing there is fine."""
    if shutil.which("nft"):
        tables = [line for line in _output("nft", "list", "tables") if line.endswith(f" wg-quick-{interface}")]
        if tables:
            _run(["nft", "-f", "-"], "".join(f"delete {line}\n" for line in tables))
    for program in ("iptables", "ip6tables"):
        if shutil.which(f"{program}-save") and (script := "".join(_deletions(program, interface))):
            _run([f"{program}-restore", "-n"], script)


def _deletions(program: str, interface: str) -> Iterator[str]:
    marker = f'-m comment --comment "wg-quick(8) rule for {interface}"'
    lines = _output(f"{program}-save")
    if not any(marker in line for line in lines):
        return
    for line in lines:
        if line.startswith("*") or line == "COMMIT":
            yield f"{line}\n"
        elif line.startswith("-A") and marker in line:
            yield f"-D{line[2:]}\n"


def _output(*arguments: str) -> list[str]:
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    return result.stdout.splitlines()


def _run(arguments: list[str], script: str) -> None:
    try:
        result = subprocess.run(arguments, input=script, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired as error:
        raise DeviceError(f"{arguments[0]} did not end in {TIMEOUT:.0f} s") from error
    if result.returncode:
        said = result.stderr.strip().splitlines()
        raise DeviceError(f"{arguments[0]} refused the tunnel's rules: {said[0] if said else result.returncode}")

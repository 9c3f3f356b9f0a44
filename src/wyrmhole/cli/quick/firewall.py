"""The firewall rules of wg-quick(8) for a tunnel with the default route, word for word.

They drop packets to the tunnel's addresses that arrive on other interfaces, and copy the mark of the tunnel's own UDP
packets to the answers, which the reverse path filter would otherwise drop.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator

from wyrmhole.errors import DeviceError

TIMEOUT = 20.0
"""Seconds for one run of nft or iptables, plus LINE_TIMEOUT for each line of input."""

LINE_TIMEOUT = 0.05

_MARK = re.compile(r"mark (?:set )?(0x[0-9a-f]+|\d+)")


def nft_rules(interface: str, version: int, mark: int, addresses: Iterable[str]) -> str:
    """Return a script for `nft -f`. `addresses` are the interface's own, of one IP version, without lengths."""
    family = "ip6" if version == 6 else "ip"
    table = f"{family} wg-quick-{interface}"
    guards = [
        f'add rule {table} preraw iifname != "{interface}" {family} daddr {address} fib saddr type != local drop'
        for address in addresses
    ]
    lines = [
        # Replaced in one transaction, because a table that a crash left behind has outdated rules.
        f"add table {table}",
        f"delete table {table}",
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
    """Return the same rules for `iptables-restore -n`, for hosts without nft."""
    marker = _marker(interface)
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
    """Raise DeviceError if no program can set the rules."""
    if not (shutil.which("nft") or shutil.which("iptables-restore")):
        raise DeviceError("a default route through a tunnel needs firewall rules: install nftables (or iptables)")


def add(interface: str, version: int, mark: int, addresses: Iterable[str], say: Callable[[str], None]) -> None:
    """Set the rules by nft or, if that fails (for example in a kernel without nf_tables), by iptables.

    Raises DeviceError with the errors of both. Without the rules, any host on the local network could find out the
    tunnel's addresses, and a strict reverse path filter would drop its packets.
    """
    own = list(addresses)
    program = "ip6tables-restore" if version == 6 else "iptables-restore"
    failures = []
    for arguments, script in (
        (["nft", "-f", "-"], nft_rules(interface, version, mark, own)),
        ([program, "-n"], iptables_rules(interface, mark, own)),
    ):
        if shutil.which(arguments[0]):
            say(" ".join(arguments))
            try:
                _run(arguments, script)
                return
            except DeviceError as error:
                failures.append(str(error))
        else:
            failures.append(f"{arguments[0]} is not installed")
    raise DeviceError(
        f"the firewall rules of a default route cannot be set: {'; '.join(failures)}"
        ": load nf_tables, or install iptables, or set Table = off and make routes of your own"
    )


def marks(interface: str) -> set[int]:
    """Return the marks in the rules of `add`. They outlive the interface."""
    found = set()
    for table in _tables(interface):
        found |= {int(match[1], 0) for line in _output("nft", "list", *table.split()) for match in _MARK.finditer(line)}
    for program in ("iptables", "ip6tables"):
        if shutil.which(f"{program}-save"):
            lines = [line for line in _output(f"{program}-save") if _marker(interface) in line]
            found |= {int(match[1], 0) for line in lines for match in re.finditer(r"--mark (0x[0-9a-f]+|\d+)", line)}
    return found


def remove(interface: str) -> None:
    """Remove the rules of `add`, by nft and by iptables, if there are any. Raises DeviceError."""
    if tables := _tables(interface):
        _run(["nft", "-f", "-"], "".join(f"delete {line}\n" for line in tables))
    for program in ("iptables", "ip6tables"):
        if shutil.which(f"{program}-save") and (script := "".join(_deletions(program, interface))):
            _run([f"{program}-restore", "-n"], script)


def _tables(interface: str) -> list[str]:
    """Return the interface's tables in nft's form: `table ip wg-quick-wg0`."""
    if not shutil.which("nft"):
        return []
    return [line for line in _output("nft", "list", "tables") if line.endswith(f" wg-quick-{interface}")]


def _marker(interface: str) -> str:
    return f'-m comment --comment "wg-quick(8) rule for {interface}"'


def _deletions(program: str, interface: str) -> Iterator[str]:
    marker = _marker(interface)
    lines = _output(f"{program}-save")
    if not any(marker in line for line in lines):
        return
    for line in lines:
        if line.startswith("*") or line == "COMMIT":
            yield f"{line}\n"
        elif line.startswith("-A") and marker in line:
            yield f"-D{line[2:]}\n"


def _output(*arguments: str) -> list[str]:
    """Return the output lines of a program; none if the kernel lacks the feature."""
    return _call(list(arguments), "").stdout.splitlines()


def _run(arguments: list[str], script: str) -> None:
    result = _call(arguments, script)
    if result.returncode:
        said = result.stderr.strip().splitlines()
        raise DeviceError(f"{arguments[0]} refused the tunnel's rules: {said[0] if said else result.returncode}")


def _call(arguments: list[str], script: str) -> subprocess.CompletedProcess[str]:
    timeout = TIMEOUT + LINE_TIMEOUT * script.count("\n")
    try:
        return subprocess.run(arguments, input=script, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired as error:
        raise DeviceError(f"{arguments[0]} did not end in {timeout:.0f} s") from error
    except OSError as error:
        raise DeviceError(f"{arguments[0]} cannot be run: {error.strerror}") from error

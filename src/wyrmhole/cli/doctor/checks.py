"""The examinations of `doctor`. Each yields findings, with a remedy for what does not work.

The host is not changed: a TUN is made only in temporary namespaces. `bad` means that a way of using wyrmhole is not
available, `poor` that something is slower or riskier than necessary.
"""

from __future__ import annotations

import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from wyrmhole.cli.doctor import host as diagnosis_host
from wyrmhole.cli.doctor.finding import Verdict as Verdict
from wyrmhole.cli.doctor.finding import reason
from wyrmhole.cli.doctor.namespace_probe import OFFLOADS
from wyrmhole.cli.quick.host import Host
from wyrmhole.control.uapi import client
from wyrmhole.control.uapi.socket import DEFAULT_DIRECTORY
from wyrmhole.device.clock import SystemClock, is_plausible, is_synchronised
from wyrmhole.engine.select import select_engine
from wyrmhole.namespaces import refusals
from wyrmhole.namespaces.steps import Stage
from wyrmhole.net import udp_offload
from wyrmhole.protocol.keys import KEY_SIZE
from wyrmhole.protocol.primitives import library_text, open_handshake, seal_handshake
from wyrmhole.wire.ip import IPV6_MINIMUM_MTU
from wyrmhole.wire.messages import DEFAULT_MTU, OVERHEAD_V6

CAP_NET_ADMIN = 12
PROBE_SECONDS = 20.0
GOOD_BUFFER = 1 << 20
"""The least buffer that a UDP socket should be able to request, in bytes. It holds a burst of 1 Gbit/s for 8 ms."""


Examination = Callable[[], Iterator[Verdict]]


def examine() -> Iterator[Verdict]:
    """Run all examinations. One that raises is reported, and does not prevent the others."""
    for examination in EXAMINATIONS:
        try:
            yield from examination()
        except Exception as error:
            yield Verdict("poor", examination.__name__.strip("_"), f"examination failed: {reason(error)}")


def _versions() -> Iterator[Verdict]:
    system = os.uname()
    found = f"wyrmhole {version('wyrmhole')}, Python {platform.python_version()}, {system.sysname} {system.release}"
    yield Verdict("good", "versions", f"{found} {system.machine}")


def _engine() -> Iterator[Verdict]:
    _, reason = select_engine("auto", clock=SystemClock().boottime)
    yield Verdict("good", "engine", reason)


def _cipher() -> Iterator[Verdict]:
    key, found = bytes(KEY_SIZE), f"ChaCha20-Poly1305 of {library_text()}"
    works = open_handshake(key, seal_handshake(key, b"x", b""), b"") == b"x"
    yield (
        Verdict("good", "cipher", found) if works else Verdict("bad", "cipher", f"{found} cannot open what it sealed")
    )


def _rights() -> Iterator[Verdict]:
    if os.geteuid() == 0 and not _has_capability(CAP_NET_ADMIN):
        yield Verdict("bad", "rights", "root without CAP_NET_ADMIN", "run the container with --cap-add NET_ADMIN")
    elif _has_capability(CAP_NET_ADMIN):
        yield Verdict("good", "rights", "CAP_NET_ADMIN: interfaces and routes can be made")
    else:
        advice = "use sudo for `up` and wyrmholed; the library and `wyrmhole run` need no privileges"
        yield Verdict("poor", "rights", f"user {os.geteuid()} without CAP_NET_ADMIN", advice)


def _has_capability(number: int) -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> number & 1)
    return False


def _tun() -> Iterator[Verdict]:
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
        yield Verdict("good", "TUN", "/dev/net/tun can be opened")
    except OSError as error:
        cause, remedy = refusals.explain(Stage.OPEN, error.errno or 0)
        yield Verdict("bad", "TUN", cause, remedy)


def _namespaces() -> Iterator[Verdict]:
    result = subprocess.run(
        [sys.executable, "-m", "wyrmhole.cli.doctor.namespace_probe"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PROBE_SECONDS,
        check=False,
    )
    outcome = result.stdout.strip()
    if outcome.startswith(OFFLOADS):
        found = "a tunnel without root works: user, network and mount namespace, TUN, sockets"
        yield Verdict("good", "namespaces", found)
        yield _tun_offloads(outcome.removeprefix(OFFLOADS))
        return
    name, _, number = outcome.partition(" ")
    if not number:
        found = f"a tunnel without root cannot be tested: {result.stderr.strip()[-80:] or 'the test process ended'}"
        yield Verdict("bad", "namespaces", found)
        return
    step = Stage(name)
    cause, remedy = refusals.explain(step, int(number))
    found = f"a tunnel without root fails at {refusals.TITLES[step]}: {cause}"
    yield Verdict("poor" if step is Stage.MOUNT else "bad", "namespaces", found, remedy)


def _offloads() -> Iterator[Verdict]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        has = {"UDP_SEGMENT": udp_offload.can_segment(sock), "UDP_GRO": udp_offload.enable_gro(sock)}
    release = os.uname().release
    if udp_offload.is_suspect(release):
        advice = (
            "7.0 to 7.1.4 do, unless the distribution has fixed them: a peer receives GSO batches only after TCP "
            "has shown that they arrive; test with `wyrmhole doctor --to PEER`"
        )
        yield Verdict("poor", "offloads", f"Linux {release} may damage segmented UDP", advice)
    missing = [name for name, is_there in has.items() if not is_there]
    if missing:
        advice = "Linux 5.12 and later have both, for two to five times the throughput"
        yield Verdict("poor", "offloads", f"missing: {', '.join(missing)}", advice)
    else:
        yield Verdict("good", "offloads", "UDP segmentation and GRO")


def _tun_offloads(found: str) -> Verdict:
    advice = {"none": "each packet costs a system call", "TCP": "Linux 6.2 and later have it for UDP too"}.get(
        found, ""
    )
    return Verdict("poor" if advice else "good", "TUN offloads", f"segmentation: {found}", advice)


def _buffers() -> Iterator[Verdict]:
    small = []
    for name in ("rmem_max", "wmem_max"):
        with suppress(OSError):
            size = int(Path("/proc/sys/net/core", name).read_text())
            small += [f"net.core.{name}={size}"] if size < GOOD_BUFFER else []
    if small and not _has_capability(CAP_NET_ADMIN):
        advice = f"as root: sysctl -w {' '.join(entry.partition('=')[0] + f'={4 * GOOD_BUFFER}' for entry in small)}"
        yield Verdict("poor", "buffers", f"{', '.join(small)} bytes: bursts will be dropped", advice)
    else:
        yield Verdict("good", "buffers", "UDP sockets get buffers of the requested size")


def _clock() -> Iterator[Verdict]:
    if not is_plausible(SystemClock().wall()):
        advice = "set the clock: a peer refuses handshakes with an older timestamp than the last one it accepted"
        yield Verdict("bad", "clock", "the wall clock is years behind", advice)
    elif not is_synchronised():
        advice = "run an NTP client: if the clock steps back, peers refuse handshakes until it has caught up"
        yield Verdict("poor", "clock", "plausible, but the kernel does not report it as synchronised", advice)
    else:
        yield Verdict("good", "clock", "synchronised")


def _mtu() -> Iterator[Verdict]:
    with Host("lo") as host:
        mtu = host.default_mtu()
    if not mtu:
        yield Verdict("poor", "MTU", "there is no IPv4 default route", f"tunnels will have MTU {DEFAULT_MTU}")
    elif mtu < IPV6_MINIMUM_MTU + OVERHEAD_V6:
        advice = f"IPv6 inside the tunnel needs {IPV6_MINIMUM_MTU}; its packets will be fragmented outside"
        yield Verdict("poor", "MTU", f"{mtu} on the default route leaves {mtu - OVERHEAD_V6} for the tunnel", advice)
    else:
        yield Verdict("good", "MTU", f"{mtu} on the default route leaves {mtu - OVERHEAD_V6} for the tunnel")


def _descriptors() -> Iterator[Verdict]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 1024:
        yield Verdict("poor", "descriptors", f"the limit is only {soft}", f"raise it: ulimit -n {min(hard, 65536)}")
    else:
        yield Verdict("good", "descriptors", f"the limit is {soft} (it can be raised to {hard})")


def _programs() -> Iterator[Verdict]:
    wanted = {
        "firewall": (("nft", "iptables"), "install nftables: `up` needs it for a default route"),
        "DNS": (("resolvconf", "resolvectl"), "install resolvconf or openresolv: `up` needs it for DNS ="),
        "hooks": (("bash",), "install bash: `up` runs PostUp and the other hooks with it"),
    }
    for what, (names, advice) in wanted.items():
        found = [name for name in names if shutil.which(name)]
        if found:
            yield Verdict("good", what, f"{', '.join(found)}")
        else:
            yield Verdict("poor", what, f"missing: {' or '.join(names)}", advice)


def _daemons() -> Iterator[Verdict]:
    served = client.interfaces()
    with suppress(OSError):
        stale = sorted({path.stem for path in Path(DEFAULT_DIRECTORY).glob("*.sock")} - set(served))
        if stale:
            advice = f"daemons that were killed left them: rm {DEFAULT_DIRECTORY}/{stale[0]}.sock"
            yield Verdict("poor", "daemons", f"sockets without a daemon: {', '.join(stale[:5])}", advice)
    yield Verdict("good", "daemons", f"running: {', '.join(served)}" if served else "none running")


EXAMINATIONS: tuple[Examination, ...] = (
    _versions,
    _engine,
    _cipher,
    _rights,
    _tun,
    _namespaces,
    _offloads,
    _buffers,
    _clock,
    _mtu,
    _descriptors,
    _programs,
    _daemons,
    diagnosis_host.families,
    diagnosis_host.settings,
    diagnosis_host.name_servers,
    diagnosis_host.landlock,
)

"""`wyrmhole run` from outside: one program whose whole network is a tunnel.

The program runs in a network namespace that holds nothing but the tunnel's interface (`confined_child`); the tunnel
itself runs here, in the host's network, on the TUN that the child made and handed over. Without root the namespaces
are the user's own. When this process ends, so does the program, and a tunnel that failed leaves it without network:
there is no way around.
"""

from __future__ import annotations

import array
import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from wyrmhole.cli.confined.network import Plan
from wyrmhole.cli.quick.host import Host, best_mtu
from wyrmhole.control.config.change import ResolveEndpoint, set_change
from wyrmhole.control.config.file import Config
from wyrmhole.control.uapi.format import emit_prefix
from wyrmhole.device.assemble import make_device
from wyrmhole.device.config import DeviceChange
from wyrmhole.errors import DeviceError
from wyrmhole.net.linux_tun import LinuxTun

READY_SECONDS = 20.0
"""How long the child may take without a sign of progress. It needs about 200 ms, most of it Python's start."""

FORWARDED = (signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Confinement:
    """What a program is enclosed in. `name` is that of the interface inside."""

    config: Config
    name: str
    change: DeviceChange
    mtu: int

    @classmethod
    def of(cls, config: Config, name: str, resolve: ResolveEndpoint) -> Confinement:
        """Raises DeviceError for a file that is too little for a tunnel."""
        if config.interface.private_key is None:
            raise DeviceError(f"{config.source}: no PrivateKey: make one with `wyrmhole genkey`")
        if not config.interface.addresses:
            raise DeviceError(f"{config.source}: no Address: the program would have none to send from")
        # The mark keeps a tunnel's packets out of the tunnel; here they are in another namespace.
        change = replace(set_change(config, resolve), fwmark=0)
        return cls(config, name, change, config.interface.mtu or _best_mtu(change))

    def plan(self, command: Sequence[str]) -> Plan:
        """For the child: nothing secret."""
        interface = self.config.interface
        prefixes = {prefix: None for peer in self.config.peers for prefix in peer.allowed_ips}
        return {
            "name": self.name,
            "user": os.geteuid() != 0,
            "addresses": [str(address) for address in interface.addresses],
            "routes": [emit_prefix(prefix) for prefix in sorted(prefixes, key=lambda prefix: -prefix.length)],
            "mtu": self.mtu,
            "resolv_conf": resolv_conf(self.config),
            "command": list(command),
        }


def _best_mtu(change: DeviceChange) -> int:
    with Host("lo") as host:
        return best_mtu(host, (peer.endpoint for peer in change.peers))


def resolv_conf(config: Config) -> str:
    """With no server in the file nobody is asked: names fail, they do not leak."""
    lines = ["# made by wyrmhole run"]
    lines += [f"nameserver {server}" for server in config.interface.dns_servers] or ["nameserver 0.0.0.0"]
    lines += [f"search {' '.join(config.interface.dns_search)}"] if config.interface.dns_search else []
    return "".join(f"{line}\n" for line in lines)


def run(confinement: Confinement, command: Sequence[str]) -> int:
    """The program's exit status, 128 and the signal's number if one ended it. Raises DeviceError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours:
        with theirs:
            child = subprocess.Popen(
                [sys.executable, "-m", "wyrmhole.cli.confined.child", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
            )
        try:
            with _signals_for(child):
                ours.settimeout(READY_SECONDS)
                ours.sendall(json.dumps(confinement.plan(command)).encode() + b"\n")
                tun = LinuxTun.from_fd(_receive_tun(ours))
                status = asyncio.run(_serve(confinement, tun, ours, child))
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
    return status if status >= 0 else 128 - status


@contextmanager
def _signals_for(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """The terminal's Ctrl-C reaches the program by itself; what is sent to this process is passed on."""

    def forward(number: int, _frame: object) -> None:
        with suppress(OSError):
            child.send_signal(number)

    former = {number: signal.signal(number, forward) for number in FORWARDED}
    former[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _receive_tun(channel: socket.socket) -> int:
    """The child's TUN. Raises DeviceError with what it reports instead."""
    data, ancillary = b"", list[tuple[int, int, bytes]]()
    while not data:
        try:
            received, ancillary, _, _ = channel.recvmsg(4096, socket.CMSG_SPACE(4))
        except TimeoutError:
            raise DeviceError(f"the program's namespaces were not ready after {READY_SECONDS:.0f} s") from None
        data = received.lstrip(b".")
        if not received:
            break
    if data == b"ready\n" and ancillary:
        return int(array.array("i", ancillary[0][2][:4])[0])
    reason = data.decode(errors="replace").strip() or "it ended"
    raise DeviceError(f"the program cannot be enclosed: {reason}")


async def _serve(
    confinement: Confinement, tun: LinuxTun, channel: socket.socket, child: subprocess.Popen[bytes]
) -> int:
    device = make_device(tun)
    try:
        await device.start(confinement.change)
        channel.sendall(b"go\n")
        ended = asyncio.ensure_future(asyncio.to_thread(child.wait))
        closed = asyncio.ensure_future(device.wait_closed())
        await asyncio.wait({ended, closed}, return_when=asyncio.FIRST_COMPLETED)
        closed.cancel()
        if device.failure:
            logging.getLogger("wyrmhole").error("the tunnel failed and the program has no network: %s", device.failure)
        return await ended
    finally:
        await device.close()

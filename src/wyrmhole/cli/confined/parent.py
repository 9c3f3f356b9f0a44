"""The parent process of `wyrmhole run`, which runs one program whose only network is a tunnel.

The program runs in a network namespace that has only the tunnel's interface (`child.py`). The tunnel runs in this
process, in the host's network, on the TUN that the child made and passed over. If the caller is not root, the network
namespace belongs to a new user namespace. When this process ends, the program is ended too. If the tunnel fails, the
program has no network, because nothing can bypass the tunnel.
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
"""Limit of the wait for the child's next progress report. It needs about 200 ms in total, mostly to start Python."""

FORWARDED = (signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Confinement:
    """The network of the program. `name` is the name of the interface inside."""

    config: Config
    name: str
    change: DeviceChange
    mtu: int

    @classmethod
    def of(cls, config: Config, name: str, resolve: ResolveEndpoint) -> Confinement:
        """Make the confinement of a configuration. Raises DeviceError if a required key is missing."""
        if config.interface.private_key is None:
            raise DeviceError(f"{config.source}: no PrivateKey is configured: generate one with `wyrmhole genkey`")
        if not config.interface.addresses:
            raise DeviceError(f"{config.source}: no Address is configured, so the program could not send")
        # The mark prevents a tunnel's packets from entering the tunnel; here the namespaces prevent it.
        change = replace(set_change(config, resolve), fwmark=0)
        return cls(config, name, change, config.interface.mtu or _best_mtu(change))

    def plan(self, command: Sequence[str]) -> Plan:
        """Return the instructions for the child. They contain no secrets."""
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
    """Return a resolv.conf. Without servers it names 0.0.0.0, so that look-ups fail instead of leaking."""
    lines = ["# made by wyrmhole run"]
    lines += [f"nameserver {server}" for server in config.interface.dns_servers] or ["nameserver 0.0.0.0"]
    lines += [f"search {' '.join(config.interface.dns_search)}"] if config.interface.dns_search else []
    return "".join(f"{line}\n" for line in lines)


def run(confinement: Confinement, command: Sequence[str]) -> int:
    """Run the program and return its exit status, or 128 plus the number of the signal that ended it.

    Raises DeviceError.
    """
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
    """Forward signals to the program, and ignore SIGINT, because the terminal's Ctrl-C reaches the program directly."""

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
    """Return the child's TUN. Raises DeviceError with the failure that the child reports."""
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
    reason = data.decode(errors="replace").strip() or "its process ended"
    raise DeviceError(f"cannot isolate the program: {reason}")


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
            logging.getLogger("wyrmhole").error("the tunnel failed, so the program has no network: %s", device.failure)
        return await ended
    finally:
        await device.close()

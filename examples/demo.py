"""Two wyrmhole devices on this machine: a handshake, pings, a TCP transfer, and the output of `wg show`.

Each daemon (the real wyrmholed) runs in a network namespace, joined to the other by a virtual cable. Users other than
root enter a user namespace first. If the kernel allows neither, the two devices run inside this process on memory TUNs,
and the output states this. The machine's own network is not changed, and nothing remains at the end.

usage: python examples/demo.py [--memory]
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from ipaddress import ip_interface
from tempfile import TemporaryDirectory
from typing import TypeVar

from demo_memory import PATIENCE, PINGS, Side, memory_demo, show

from wyrmhole.control.uapi import client
from wyrmhole.device.config import DeviceChange
from wyrmhole.errors import WyrmholeError
from wyrmhole.library.sockets import icmp_echo
from wyrmhole.namespaces import refusals, steps
from wyrmhole.net import link_setup, netlink
from wyrmhole.wire.endpoint import Endpoint

PORT, TRANSFER_PORT, TRANSFER_SECONDS = 51820, 5001, 3.0
T = TypeVar("T")


class Host(Side):
    """A side with a thread in a network namespace. The sockets and processes that the thread makes are there too."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.thread = ThreadPoolExecutor(1)

    def run(self, work: Callable[..., T], *arguments: object) -> T:
        return self.thread.submit(work, *arguments).result()


def main(arguments: list[str]) -> int:
    left, right = Host(0), Host(1)
    try:
        reason = "as requested" if "--memory" in arguments else enter_namespaces(left, right)
        if reason:
            print(f"wyrmhole demo: two devices on memory TUNs inside this process ({reason})")
            asyncio.run(memory_demo(left, right))
        else:
            print("wyrmhole demo: two devices, each in its own network namespace, joined by a virtual cable")
            namespace_demo(left, right)
    except (WyrmholeError, OSError) as error:
        print(f"wyrmhole demo: {error}", file=sys.stderr)
        return 1
    return 0


def enter_namespaces(*sides: Host) -> str:
    """Move the sides' threads into network namespaces with a TUN. Return the reason if that is not possible."""
    try:
        if os.geteuid() != 0:
            steps.enter_user_namespace(as_root=True)
        for side in sides:
            side.run(steps.enter_network_namespace)
            os.close(side.run(steps.make_tun, side.name))
    except steps.StepRefused as refused:
        return str(refusals.explain(refused.step, refused.errno or 0))
    return ""


def namespace_demo(left: Host, right: Host) -> None:
    other_namespace = right.run(os.open, "/proc/thread-self/ns/net", os.O_RDONLY)
    with closing(left.run(netlink.Client)) as kernel:
        link_setup.add_cable(kernel, "cable", other_namespace)
    for side in (left, right):
        side.run(set_up, "cable", side.outer)
    with daemon(right, left), daemon(left, right) as folder:
        print(f"  handshake and first ping   {left.run(ping, right.inner) * 1e3:6.2f} ms")
        times = [left.run(ping, right.inner) for _ in range(PINGS)]
        print(f"  {PINGS} pings, on average      {sum(times) / PINGS * 1e3:6.2f} ms")
        right.thread.submit(swallow, right.run(socket.create_server, (right.inner, TRANSFER_PORT)))
        count, seconds = left.run(send, right.inner)
        speed = count * 8 / seconds / 1e9
        print(f"  TCP transfer               {speed:6.2f} Gb/s  ({count / 1e6:.0f} MB in {seconds:.1f} s)")
        show(client.get(left.name, folder))


def set_up(device: str, address: str) -> None:
    with closing(netlink.Client()) as kernel:
        index = kernel.link(device, None).interface
        link_setup.claim_address(kernel, index, ip_interface(f"{address}/24"))
        link_setup.set_up(kernel, index)


@contextmanager
def daemon(side: Host, other: Host) -> Iterator[str]:
    """Run a configured wyrmholed for the side. Yields the folder of its UAPI socket."""
    command = [sys.executable, "-m", "wyrmhole.cli.wyrmholed", "-f", side.name]
    with TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/{side.name}.sock")
        listener.listen()
        environ = {**os.environ, "WG_UAPI_FD": str(listener.fileno())}
        process = side.run(lambda: subprocess.Popen(command, env=environ, pass_fds=[listener.fileno()]))
        listener.close()
        try:
            peers = (other.as_peer(Endpoint(other.outer, PORT)),)
            client.apply(side.name, DeviceChange(private_key=side.private, listen_port=PORT, peers=peers), folder)
            side.run(set_up, side.name, side.inner)
            yield folder
        finally:
            process.terminate()
            process.wait(PATIENCE)


def ping(address: str) -> float:
    """Return the seconds that an ICMP echo takes."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMP)
    return asyncio.run(asyncio.wait_for(icmp_echo.echo(sock, (address, 0), os.getpid(), 56), PATIENCE))


def swallow(server: socket.socket) -> None:
    """Receive and discard the data of one connection until its end."""
    buffer = bytearray(1 << 20)
    with server, server.accept()[0] as sock:
        while sock.recv_into(buffer):
            pass


def send(address: str) -> tuple[int, float]:
    """Send for TRANSFER_SECONDS. Return the number of bytes, and the seconds until all of them had arrived."""
    count, block, start = 0, bytes(1 << 20), time.perf_counter()
    with socket.create_connection((address, TRANSFER_PORT), timeout=PATIENCE) as sock:
        while time.perf_counter() - start < TRANSFER_SECONDS:
            sock.sendall(block)
            count += len(block)
        sock.shutdown(socket.SHUT_WR)
        sock.recv(1)
    return count, time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

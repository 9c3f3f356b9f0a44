"""Two wyrmhole devices on this machine: a handshake, pings, a TCP transfer, and what `wg show` would show.

Each daemon (the real wyrmholed) runs in a network namespace of its own, joined to the other by a virtual cable. As root
that works everywhere; without root a user namespace is tried. Where the kernel allows neither, the two devices run
inside this process on memory TUNs, and the output says so. Nothing on the machine is changed, and everything is gone
at the end. Needs nothing but Python: namespaces, cable and addresses are made by system call and netlink.

usage: python examples/demo.py [--memory]
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wyrmhole.control.uapi.format import emit_get
from wyrmhole.net.linux_tun import LinuxTun, TunError
from wyrmhole.net.memory_tun import MemoryTun
from wyrmhole.protocol.keys import PrivateKey, PublicKey

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
RTM_NEWLINK, RTM_NEWADDR = 16, 20
NLM_REQUEST_ACK, NLM_CREATE_EXCL = 0x5, 0x600
IFLA_ADDRESS_LOCAL, IFLA_IFNAME, IFLA_LINKINFO, IFLA_NET_NS_PID = 2, 3, 18, 19
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER = 1, 2, 1
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1

PORT = 51820
TRANSFER_PORT = 5001
TRANSFER_SECONDS = 3.0
PINGS = 5


class DemoError(Exception):
    """One sentence for the person who typed `make demo`."""


@dataclass(frozen=True)
class Side:
    """One end: its interface, its addresses outside and inside the tunnel, its key."""

    name: str
    outer: str
    inner: str
    private: PrivateKey

    @property
    def public(self) -> PublicKey:
        return self.private.public_key()


def main(arguments: list[str]) -> int:
    left = Side("demo0", "192.168.77.1", "10.77.0.1", PrivateKey(os.urandom(32)))
    right = Side("demo1", "192.168.77.2", "10.77.0.2", PrivateKey(os.urandom(32)))
    try:
        reason = "as asked" if "--memory" in arguments else why_not_namespaces()
        if reason:
            print(f"wyrmhole demo: two devices on memory TUNs inside this process ({reason})")
            asyncio.run(memory_demo(left, right))
        else:
            enter_namespaces()
            print("wyrmhole demo: two devices, each in a network namespace of its own, joined by a virtual cable")
            namespace_demo(left, right)
    except (DemoError, OSError) as error:
        print(f"wyrmhole demo: {error}", file=sys.stderr)
        return 1
    return 0


# Namespaces


def why_not_namespaces() -> str:
    """Why the demo cannot have namespaces and a TUN here, or nothing. A child tries, since there is no way back."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            enter_namespaces()
            LinuxTun.create("demo0").close()
            reason = ""
        except OSError as error:
            reason = str(error.strerror) if isinstance(error, TunError) else f"no namespaces here: {error.strerror}"
        os.write(writer, reason.encode()[:4096])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        reason = pipe.read().decode()
    os.waitpid(child, 0)
    return reason


def enter_namespaces() -> None:
    """Be in throwaway namespaces where networks may be made. Raises OSError."""
    uid, gid = os.geteuid(), os.getegid()
    flags = CLONE_NEWNET if uid == 0 else CLONE_NEWUSER | CLONE_NEWNET
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    if uid != 0:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")


def unshare_network() -> None:
    if ctypes.CDLL(None).unshare(CLONE_NEWNET) != 0:
        raise DemoError("a second network namespace could not be made")


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def netlink(kind: int, body: bytes) -> None:
    """One rtnetlink request and its answer (rtnetlink(7))."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
        sock.bind((0, 0))
        sock.send(struct.pack("=IHHII", 16 + len(body), kind, NLM_REQUEST_ACK | NLM_CREATE_EXCL, 1, 0) + body)
        error = struct.unpack_from("=i", sock.recv(65536), 16)[0]
    if error:
        raise DemoError(f"the cable could not be set up: {os.strerror(-error)}")


def make_cable(device: str, other_pid: int) -> None:
    """A veth pair: one end here, the other, of the same name, in the namespace of that process."""
    link = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, 0, 0, 0)
    peer = link + attribute(IFLA_IFNAME, device.encode() + b"\0")
    peer += attribute(IFLA_NET_NS_PID, struct.pack("=I", other_pid))
    info = attribute(IFLA_INFO_KIND, b"veth") + attribute(IFLA_INFO_DATA, attribute(VETH_INFO_PEER, peer))
    netlink(RTM_NEWLINK, link + attribute(IFLA_IFNAME, device.encode() + b"\0") + attribute(IFLA_LINKINFO, info))


def set_up(device: str, address: str | None = None) -> None:
    """Give the interface an address in a /24 and bring it up."""
    if address is not None:
        packed = socket.inet_aton(address)
        body = struct.pack("=BBBBi", socket.AF_INET, 24, 0, 0, socket.if_nametoindex(device))
        netlink(RTM_NEWADDR, body + attribute(1, packed) + attribute(IFLA_ADDRESS_LOCAL, packed))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sH14x", device.encode(), 0)
        flags = struct.unpack("16xH14x", fcntl.ioctl(sock, SIOCGIFFLAGS, request))[0]
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sH14x", device.encode(), flags | IFF_UP))


def namespace_demo(left: Side, right: Side) -> None:
    """This process is the left host; a child is the right one. They talk over a socket pair, line by line."""
    here, there = socket.socketpair()
    child = os.fork()
    if child == 0:
        here.close()
        os._exit(right_host(right, left, there))
    there.close()
    talk = here.makefile("rw")
    try:
        expect(talk, "namespace")
        make_cable("cable", child)
        set_up("lo")
        set_up("cable", left.outer)
        tell(talk, "cable")
        expect(talk, "ready")
        with daemon(left, right) as control:
            measure(left, right)
            show(left.name, ask(control, "get=1\n\n"))
        tell(talk, "done")
        expect(talk, "gone")
    finally:
        here.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)


def right_host(side: Side, other: Side, sock: socket.socket) -> int:
    talk = sock.makefile("rw")
    try:
        unshare_network()
        tell(talk, "namespace")
        expect(talk, "cable")
        set_up("lo")
        set_up("cable", side.outer)
        with daemon(side, other), transfer_sink(side.inner):
            tell(talk, "ready")
            expect(talk, "done")
        tell(talk, "gone")
    except DemoError as error:
        tell(talk, f"error {error}")
        return 1
    return 0


def tell(talk: object, word: str) -> None:
    talk.write(word + "\n")  # type: ignore[attr-defined]
    talk.flush()  # type: ignore[attr-defined]


def expect(talk: object, word: str) -> None:
    line = talk.readline().strip()  # type: ignore[attr-defined]
    if line != word:
        raise DemoError(line.removeprefix("error ") or "the other host ended early")


# The daemon and its control socket


@contextlib.contextmanager
def daemon(side: Side, other: Side) -> Iterator[Path]:
    """A wyrmholed for the side, configured and up; gives the path of its UAPI socket."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        path = Path(folder, f"{side.name}.sock")
        listener.bind(str(path))
        listener.listen()
        process = subprocess.Popen(
            [sys.executable, "-m", "wyrmhole.cli.daemon.main", "-f", side.name],
            env={**os.environ, "WG_UAPI_FD": str(listener.fileno())},
            pass_fds=[listener.fileno()],
            stderr=subprocess.PIPE,
            text=True,
        )
        listener.close()
        try:
            configure(process, path, side, other)
            set_up(side.name, side.inner)
            yield path
        finally:
            process.terminate()
            process.communicate(timeout=10)


def configure(process: subprocess.Popen[str], path: Path, side: Side, other: Side) -> None:
    text = (
        f"set=1\nprivate_key={side.private.hex()}\nlisten_port={PORT}\npublic_key={other.public.hex()}\n"
        f"endpoint={other.outer}:{PORT}\nallowed_ip={other.inner}/32\n\n"
    )
    try:
        reply = ask(path, text)
    except OSError:
        reply = ""
    if reply.strip() != "errno=0":
        process.terminate()
        _, complaint = process.communicate(timeout=10)
        raise DemoError(complaint.strip().removeprefix("wyrmholed: ") or "the daemon did not take its configuration")


def ask(path: Path, text: str) -> str:
    """One operation of the UAPI; the reply up to its blank line."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(path))
        sock.sendall(text.encode())
        reply = b""
        while not reply.endswith(b"\n\n"):
            chunk = sock.recv(65536)
            if not chunk:
                raise OSError("the daemon closed the connection")
            reply += chunk
    return reply.decode()


def show(name: str, reply: str) -> None:
    """The layout of `wg show`, from a reply of the UAPI."""
    values = [line.partition("=") for line in reply.splitlines() if line]
    shown = {key: value for key, _, value in values}
    private = PrivateKey.from_hex(shown["private_key"])
    print(f"\ninterface: {name}\n  public key: {private.public_key().base64()}\n  private key: (hidden)")
    print(f"  listening port: {shown['listen_port']}\n\npeer: {PublicKey.from_hex(shown['public_key']).base64()}")
    print(f"  endpoint: {shown['endpoint']}\n  allowed ips: {shown['allowed_ip']}")
    age = max(0, int(time.time()) - int(shown["last_handshake_time_sec"]))
    print(f"  latest handshake: {age} seconds ago" if age else "  latest handshake: now")
    print(f"  transfer: {size(int(shown['rx_bytes']))} received, {size(int(shown['tx_bytes']))} sent")


def size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.2f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


# Traffic


def measure(left: Side, right: Side) -> None:
    first = ping(right.inner, 0, wait=10.0)
    print(f"  handshake and first ping   {first * 1e3:6.2f} ms")
    times = [ping(right.inner, number) for number in range(1, PINGS + 1)]
    print(f"  {len(times)} pings, on average      {sum(times) / len(times) * 1e3:6.2f} ms")
    count, seconds = transfer(right.inner)
    print(
        f"  TCP transfer               {count * 8 / seconds / 1e9:6.2f} Gb/s  ({count / 1e6:.0f} MB in {seconds:.1f} s)"
    )


def ping(address: str, number: int, wait: float = 5.0) -> float:
    """Seconds that an ICMP echo takes (RFC 792)."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        identity = os.getpid() & 0xFFFF
        message = struct.pack(">BBHHH", 8, 0, 0, identity, number)
        total = sum(struct.unpack(">4H", message)) % 0xFFFF
        message = struct.pack(">BBHHH", 8, 0, 0xFFFF - total, identity, number)
        start = time.perf_counter()
        sock.sendto(message, (address, 0))
        while (left := start + wait - time.perf_counter()) > 0 and select.select([sock], [], [], left)[0]:
            answer = sock.recv(1500)
            if struct.unpack_from(">BBHHH", answer, 20)[::3] == (0, identity) and answer[26:28] == message[6:8]:
                return time.perf_counter() - start
    raise DemoError(f"no answer from {address} within {wait:.0f} s")


@contextlib.contextmanager
def transfer_sink(address: str) -> Iterator[None]:
    """A child process that swallows what one connection sends, and then tells how much it was."""
    with socket.create_server((address, TRANSFER_PORT)) as server:
        child = os.fork()
        if child == 0:
            with contextlib.suppress(OSError):
                swallow(server.accept()[0])
            os._exit(0)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def swallow(sock: socket.socket) -> None:
    count, buffer = 0, bytearray(1 << 20)
    while size_ := sock.recv_into(buffer):
        count += size_
    sock.sendall(struct.pack(">Q", count))
    sock.close()


def transfer(address: str) -> tuple[int, float]:
    """Send for some seconds; bytes that arrived, and how long until the last of them had."""
    block = bytes(1 << 20)
    with socket.create_connection((address, TRANSFER_PORT), timeout=10) as sock:
        start = time.perf_counter()
        while time.perf_counter() - start < TRANSFER_SECONDS:
            sock.sendall(block)
        sock.shutdown(socket.SHUT_WR)
        count = struct.unpack(">Q", sock.recv(8))[0]
        return count, time.perf_counter() - start


# Memory


async def memory_demo(left: Side, right: Side) -> None:
    """The same protocol and engine between two memory TUNs and two UDP sockets on loopback."""
    from wyrmhole.device.assemble import make_device
    from wyrmhole.device.config import AllowedIPChange, DeviceChange, PeerChange
    from wyrmhole.wire.endpoint import Endpoint
    from wyrmhole.wire.prefix import Prefix

    tuns = [MemoryTun("demo0"), MemoryTun("demo1")]
    devices = [make_device(tun) for tun in tuns]
    try:
        for device, side in zip(devices, (left, right), strict=True):
            await device.start(DeviceChange(private_key=side.private))
        for number, other in enumerate((right, left)):
            endpoint = Endpoint("127.0.0.1", devices[1 - number].status().listen_port)
            allowed = (AllowedIPChange(Prefix.parse(f"{other.inner}/32")),)
            devices[number].configure(
                DeviceChange(peers=(PeerChange(other.public, endpoint=endpoint, allowed_ips=allowed),))
            )
        await memory_traffic(tuns, left, right)
        show(left.name, emit_get(devices[0].status()).decode())
    finally:
        for device in devices:
            await device.close()


async def memory_traffic(tuns: list[MemoryTun], left: Side, right: Side) -> None:
    """Packets there and back by themselves, then many in one direction; there is no TCP without a kernel's TUN."""
    there = inner_packet(left, right, 84)
    back = inner_packet(right, left, 84)
    times = []
    for _ in range(PINGS + 1):
        start = time.perf_counter()
        for tun, other, packet in ((tuns[0], tuns[1], there), (tuns[1], tuns[0], back)):
            tun.inject(packet)
            await arrival(other, 1)
        times.append(time.perf_counter() - start)
    print(f"  handshake and first packet {times[0] * 1e3:6.2f} ms")
    print(f"  {PINGS} packets there and back   {sum(times[1:]) / PINGS * 1e3:6.2f} ms")
    count, window, packet = 20_000, 64, inner_packet(left, right, 1400)
    start = time.perf_counter()
    for _ in range(count // window):
        for _ in range(window):
            tuns[0].inject(packet)
        await arrival(tuns[1], window)
    seconds = time.perf_counter() - start
    print(f"  transfer of packets        {count * 1400 * 8 / seconds / 1e9:6.2f} Gb/s  ({count} of 1400 bytes)")


def inner_packet(source: Side, destination: Side, size_: int) -> bytes:
    header = struct.pack(">BBHHHBBH", 0x45, 0, size_, 0, 0, 64, 253, 0)
    return header + socket.inet_aton(source.inner) + socket.inet_aton(destination.inner) + bytes(size_ - 20)


async def arrival(tun: MemoryTun, count: int) -> None:
    """Wait until that many packets came out of the tunnel, and take them."""
    deadline = time.perf_counter() + 10
    while count:
        try:
            tun.pop()
            count -= 1
        except IndexError:
            if time.perf_counter() > deadline:
                raise DemoError("a packet did not arrive within 10 s") from None
            await asyncio.sleep(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Compare us with wireguard-go on many unusual lines of a set: the same errno, and the same values where both accept.

EXCEPTIONS lists the intended differences, each with its reason.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.host import until
from wyrmhole.control.uapi.format import SetOperation, UapiParser
from wyrmhole.control.uapi.status import parse_get
from wyrmhole.device.config import DeviceChange
from wyrmhole.device.status import DeviceStatus

pytestmark = pytest.mark.network

KEY = "ab" * 32
PEER = f"public_key={KEY}\n"

NUMBERS = (
    *("0", "00", "051820", "65535", "65536", "2147483648", "4294967295", "4294967296", "18446744073709551616"),
    *("+5", "-0", "-1", " 5", "5 ", "5\t", "5_0", "1e3", "0x10", "", "٥", "²", "5\r", "5\r\r", "5\0", "0" * 50 + "7"),
)
PREFIXES = (
    *(
        "10.0.0.0/8",
        "10.0.0.0/08",
        "10.0.0.0/00",
        "10.0.0.0/0",
        "10.0.0.0",
        "10.0.0.0/",
        "/8",
        "10.0.0/8",
        "10.0.0.1/8",
    ),
    *("010.0.0.0/8", "10.0.0.0/33", "::/0", "::/00", "::/129", "fd00::/64", "fd00::1", "fd00::%1/64", "FD00::/64"),
    *("::ffff:1.2.3.4/120", "::1.2.3.4/128", "1:2:3:4:5:6:7:8/128", "1:2:3:4:5:6:7::/128", "::2:3:4:5:6:7:8/128"),
    *("1::2::3/64", "00001::/64", "+10.0.0.0/8", "-10.0.0.0/8", "--10.0.0.0/8", "10.0.0.0/8,10.1.0.0/16"),
    *(" 10.0.0.0/8", "10.0.0.0/8 ", "10.0.0.0 /8", "10.0.0.0/ 8", "10.0.0.0/+8", "10.0.0.0/-8", "0x0a.0.0.0/8"),
    *("10.0.0.256/8", "10.0.0.0.0/8", "10.0.0.0/8/8", "::/٠", "1.2.3.4./32", ".1.2.3.4/32", "::1.2.3/128"),
    *("::01.2.3.4/128", ":1:2:3:4:5:6:7:8/64", "1:2:3:4:5:6:7:8:/64", ":::/0", "1:::/0", "fe80::/10"),
)
ENDPOINTS = (
    *("1.2.3.4:5", "1.2.3.4:0", "1.2.3.4:65536", "1.2.3.4:", "1.2.3.4", "1.2.3.4:05", "1.2.3.4:+5", "1.2.3.4: 5"),
    *(
        "[::1]:5",
        "::1:5",
        "[1.2.3.4]:5",
        "[::1]",
        "[::1]5",
        "[::ffff:1.2.3.4]:5",
        "[::1]:0",
        "[::1]:00007",
        "[::1]:5:5",
    ),
    *("[fe80::1%lo]:5", "[fe80::1%1]:5", "[fe80::1%]:5", "[::1%1]:5", "[fe80::1%01]:5", "[fe80::1%nowhere0]:5"),
    *("[fe80::1%99999999999]:5", "[fe80::1%٣]:5", "[fe80::1%-1]:5", "[fe80::1%+1]:5", "[::%a%b]:5", "1.2.3.4%1:5"),
    *("localhost:5", "01.2.3.4:5", "1.2.3.4:5 ", " 1.2.3.4:5", "[ ::1]:5", "1.2.3:5", "0x1.2.3.4:5", "[[::1]]:5"),
    *("[1.2.3.4%1]:5", "0.0.0.0:5", "[::]:5", "255.255.255.255:5", "224.0.0.1:5", "1.2.3.4:٥", "16909060:5"),
)
KEYS = (KEY, KEY.upper(), KEY[:-1], f"{KEY}0", f"0x{KEY[2:]}", f" {KEY}", f"{KEY} ", "g" * 64, "", "00" * 32, "ａ" * 64)
FLAGS = ("true", "True", "1", "false", "", "TRUE", " true", "true ")
DEVICE_LINES = (
    *(f"{name}={value}" for name in ("listen_port", "fwmark") for value in NUMBERS),
    *(f"{name}={value}" for name in ("private_key", "public_key") for value in KEYS),
    *(f"replace_peers={value}" for value in FLAGS),
    *("foo", "=", "=1", "listen_port", "listen_port =5", " listen_port=5", "LISTEN_PORT=5", "listen_port==5", "\0"),
    *(f"preshared_key={KEY}", "allowed_ip=1.2.3.4/32", "x" * 5000, "x=" + "y" * 5000, "\r", "\rfoo", "remove=true"),
    *("update_only=true", "listen_port=5\u2028", "listen_port=5\x85"),
)
PEER_LINES = (
    *(f"persistent_keepalive_interval={value}" for value in NUMBERS),
    *(f"allowed_ip={value}" for value in PREFIXES),
    *(f"endpoint={value}" for value in ENDPOINTS),
    *(f"preshared_key={value}" for value in KEYS),
    *(f"{name}={value}" for name in ("update_only", "remove", "replace_allowed_ips") for value in FLAGS),
    *(f"protocol_version={value}" for value in ("1", "01", "2", "", "1 ")),
    *("replace_peers=true", "listen_port=5", "fwmark=5", f"private_key={KEY}", "foo=bar", "foo"),
)
BYTES = (b"\xff", b"\xff=1", b"listen_port=5\xff", b"\xc3", b"\xe2\x82", b"\x80=\x80")
LINES = (
    *(line.encode() for line in DEVICE_LINES),
    *(f"{PEER}{line}".encode() for line in PEER_LINES),
    *BYTES,
    *(PEER.encode() + line for line in BYTES),
)

_NO_SCOPE = "a scope must be an interface of this host; wireguard-go notices only when it sends"
EXCEPTIONS = {
    f"{PEER}endpoint=[{host}]:5".encode(): (0, -errno.EINVAL, _NO_SCOPE)
    for host in ("fe80::1%nowhere0", "fe80::1%99999999999", "fe80::1%٣", "fe80::1%-1", "fe80::1%+1", "::%a%b")
} | {
    b"x=" + b"y" * 5000: (
        -errno.EINVAL,
        -errno.EPROTO,
        "our lines are limited to 4 KiB, those of wireguard-go to 64 KiB",
    ),
}
"""By line: the errno of wireguard-go, ours, and the reason."""


class Reference:
    """A running wireguard-go, which takes one set per connection."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def ask(self, operation: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(20)
            connection.connect(str(self.path))
            connection.sendall(operation)
            connection.shutdown(socket.SHUT_WR)
            reply = bytearray()
            try:
                while data := connection.recv(1 << 16):
                    reply += data
            except ConnectionResetError:
                # wireguard-go closes the connection with bytes of the refused operation unread.
                pass
            return bytes(reply)

    def set(self, lines: bytes) -> int:
        reply = self.ask(b"set=1\n" + lines + b"\n\n")
        return int(reply.partition(b"errno=")[2].partition(b"\n")[0])

    def status(self) -> DeviceStatus:
        reply = self.ask(b"get=1\n\n").decode().partition("errno=")[0]
        return parse_get("reference", reply.splitlines())


@pytest.fixture(scope="module")
def reference() -> Iterator[Reference]:
    program = shutil.which("wireguard")
    if program is None:
        pytest.skip("wireguard-go is not installed")
    namespace, name = f"wyrm-uapi-{os.getpid()}", f"wyu{os.getpid()}"
    path = Path(f"/var/run/wireguard/{name}.sock")
    subprocess.run(["ip", "netns", "add", namespace], check=True)
    try:
        command = ["ip", "netns", "exec", namespace, program, "-f", name]
        with subprocess.Popen(
            command, env={**os.environ, "LOG_LEVEL": "silent"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as daemon:
            try:
                until(path.exists)
                yield Reference(path)
            finally:
                daemon.terminate()
                daemon.wait(20)
    finally:
        subprocess.run(["ip", "netns", "del", namespace], check=True)


def ours(lines: bytes) -> tuple[int, DeviceChange | None]:
    operation, *_ = UapiParser(socket.if_nametoindex).feed(b"set=1\n" + lines + b"\n\n")
    if isinstance(operation, SetOperation):
        return 0, operation.change
    assert not hasattr(operation, "change")
    return -operation.error.errno_value, None  # type: ignore[union-attr]


def test_every_line_has_the_errno_of_wireguard_go(reference: Reference) -> None:
    differing = {}
    for line in LINES:
        reference.set(b"replace_peers=true\nfwmark=0")
        theirs, (mine, change) = reference.set(line), ours(line)
        if (theirs, mine) != EXCEPTIONS.get(line, (theirs, theirs, ""))[:2]:
            differing[line[-60:]] = (theirs, mine)
        elif theirs == 0 and change is not None:
            compare(reference.status(), change, line)
    assert differing == {}
    assert len(LINES) > 250


def compare(status: DeviceStatus, change: DeviceChange, line: bytes) -> None:
    """Check that wireguard-go's status shows the change that we parsed."""
    assert status.fwmark == (change.fwmark or 0), line
    if change.listen_port:
        assert status.listen_port == change.listen_port, line
    if not status.peers:
        assert not change.peers or change.peers[0].remove or change.peers[0].update_only, line
        return
    (peer,), (section,) = status.peers, change.peers
    assert peer.public_key == section.public_key, line
    assert peer.endpoint == section.endpoint or b"%" in line, line
    assert peer.persistent_keepalive == (section.persistent_keepalive or 0), line
    assert list(peer.allowed_ips) == [change.prefix for change in section.allowed_ips if not change.remove], line
    if section.preshared_key is not None:
        assert peer.preshared_key == section.preshared_key, line


def test_each_exception_has_a_reason_and_a_line() -> None:
    assert set(EXCEPTIONS) <= set(LINES)
    assert all(reason for _, _, reason in EXCEPTIONS.values())

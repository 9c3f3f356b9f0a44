"""Compare us with `wg setconf` and `wg-quick` on many unusual files: the same are accepted, with the same meaning.

`wg` writes to a socket that only records, so nothing is configured. Of wg-quick, only the parser of the installed
script runs. EXCEPTIONS lists the intended differences, each with its reason.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from wyrmhole.control.config.change import set_change
from wyrmhole.control.config.endpoint_names import NameResolver
from wyrmhole.control.config.file import Config, read_file
from wyrmhole.control.config.strip import strip
from wyrmhole.control.uapi.format import SetOperation, UapiParser
from wyrmhole.device.config import DeviceChange
from wyrmhole.errors import WyrmholeError

pytestmark = pytest.mark.network

OWN = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk="
KEY = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
INTERFACE = "[Interface]\n"
PEER = f"[Peer]\nPublicKey = {KEY}\n"

PORTS = (
    *("", "5", "05", "+5", "-5", "-0", "65535", "65536", "70000", "-1", "domain", "openvpn", "OPENVPN"),
    *(
        "no-such-thing",
        "0x10",
        "5_0",
        "1e3",
        " 5 ",
        "5 0",
        "٥",
        "²",
        "9" * 20,
        "0" * 20 + "5",
        "5;",
        '"5"',
        "off",
        "\u00a05",
        "5\x85",
    ),
)
MARKS = (
    *("", "0", "off", "OFF", "0x10", "0X10", "0x", "0xffffffff", "0x100000000", "4294967295", "4294967296"),
    *(
        "2147483648",
        "-1",
        "+1",
        "010",
        "1 2",
        "0x1 0",
        "0x" + "0" * 12 + "12",
        "0" * 20 + "12",
        "0xg",
        "1_0",
        "0x-1",
        "0x 1",
        "٥",
    ),
)
KEEPALIVES = (
    *("", "0", "off", "Off", "o f f", "25", "025", "65535", "65536", "+25", "-1", "0x19", "25s", "2 5"),
    "0" * 20 + "25",
)
PREFIXES = (
    *("", "10.0.0.0/8", "10.0.0.0/08", "10.0.0.1/8", "10.0.0.0", "fd00::1", "FD00::/64", "10.0.0.0/8,", "/8"),
    *(",10.0.0.0/8", "10.0.0.0/8,fd00::/64", "10.0.0.0/8 10.1.0.0/16", "10.0.0.0 / 8", "10.0.0.0/8;10.1.0.0/16"),
    *("10/8", "10.0.0/8", "0/0", "0.0.0.0/0", "::/0", "*", "10.0.0.0/+8", "10.0.0.0/", "10.0.0.0/33", "::/129"),
    *("010.0.0.0/8", "::ffff:10.0.0.0/104", "10.0.0.0/255.0.0.0", "fe80::1%lo/64", "10.0.0.0/" + "0" * 20 + "8"),
    *("10.0.0.0/8,10.0.0.0/8", "+10.0.0.0/8", "-10.0.0.0/8", "10.0.0.0/8,-10.0.0.0/8", "10.0.0.0/٨"),
)
ENDPOINTS = (
    *("", "1.2.3.4:5", "1.2.3.4", "1.2.3.4:", "1.2.3.4:0", "1.2.3.4:65536", "1.2.3.4:70000", "1.2.3.4:+5"),
    *(
        "1.2.3.4:-1",
        "1.2.3.4:05",
        "1.2.3.4:domain",
        "[1.2.3.4]:5",
        "[::1]:5",
        "::1:5",
        "2001:db8::1:51820",
        "[2001:db8::1]51820",
    ),
    *("[2001:db8::1]", "[2001:db8::1]:", "[localhost]:5", "localhost:5", "localhost.:5", "127.1:5", "2130706433:5"),
    *("0x7f.1:5", "010.0.0.1:5", "1.2.3.256:5", "1.2.3.4.5:5", "0:5", ":5", "[]:5", "[fe80::1%lo]:5", "[fe80::1%1]:5"),
    *("fe80::1%lo:5", "[fe80::1%nowhere]:5", "[fe80::1]:5", "[::ffff:1.2.3.4]:5", "1.2.3.4 : 5", "[::1]x:5"),
    *(
        "[::1]]:5",
        "[[::1]]:5",
        "http://1.2.3.4:5",
        "1.2.3.4:5/udp",
        "1.2.3.4:5:6",
        "user@1.2.3.4:5",
        "255.255.255.255:5",
    ),
    *("0x7f000001:5", "1.2.3.4:0x10", "1.2.3.4:5x", "[1.2.3.4:5", "1.2.3.4]:5", "[127.1]:5", "%lo:5", "127.0.0.1%lo:5"),
    *("[::1%lo]:5", "[::1%1]:5", "loc*lhost:5", "1:2", "[::1]:http", "[::1]:domain", "099.1.1.1:5"),
)
KEYS = (
    *("", OWN, OWN[:-1], f"{OWN}=", f"{OWN[:20]} {OWN[20:]}", OWN.replace("+", "-"), f"{OWN[:-2]}l=", f'"{OWN}"'),
    *(f"{'A' * 43}=", f"{'A' * 42}B=", OWN.lower(), OWN[4:], "ａ" * 44),
)
SHAPES = (
    *("", "\n", "#c\n", " \t\n", INTERFACE, "[interface]\nlistenport=5", "[INTERFACE]\nLISTENPORT=5\n"),
    *("[ Interface ]\nListenPort=5\n", "[Inter face]\nListen Port = 5\n", "[Interface] # c\nListenPort=5 # c\n"),
    *("[Interface]ListenPort=5\n", "[Interface];\n", "[Interfaces]\n", "Interface\n", "ListenPort=5\n", "[Peer]\n"),
    *(f"[Peer]\n{PEER}", PEER + PEER, f"{INTERFACE}ListenPort=5\n{PEER}{INTERFACE}FwMark=5\n"),
    f"{PEER}AllowedIPs=10.0.0.0/8\nEndpoint=1.2.3.4:5\n{PEER}AllowedIPs=10.1.0.0/16\n",
    *(f"{INTERFACE}ListenPort=5\nListenPort=6\n", f"{INTERFACE}ListenPort=5\n{INTERFACE}ListenPort=6\n"),
    *(f"{PEER}AllowedIPs=10.0.0.0/8\nAllowedIPs=10.1.0.0/16\n", f"{PEER}Endpoint=1.2.3.4:5\nEndpoint=1.2.3.5:6\n"),
    *(f"[Peer]\nPublicKey={OWN}\nPublicKey={KEY}\n", f"[Peer]\nAllowedIPs=10.0.0.0/8\nPublicKey={KEY}\n"),
    *(f"{INTERFACE}{line}\n" for line in ("ListenPort 5", "ListenPort: 5", "= 5", "Foo=5", "ListenPort==5", "Jc=5")),
    *(f"{INTERFACE}{line}\n" for line in ("\tListenPort\t=\t5\t", "ListenPort=5;c", "; comment", "// comment")),
    *(f"{INTERFACE}{line}\n" for line in ("ListenPort=5\v", "\fListenPort=5", "ListenPort=5\0", "ListenPort=5\0x")),
    *(f"{INTERFACE}{line}\n" for line in ("ListenPort\u00a0= 5", "\u3000ListenPort = 5", "ListenPort=5\x1c", "\\")),
    *(f"{INTERFACE}{line}\n" for line in ("#ListenPort=5", "ListenPort=#5", "ListenPort#=5", "Listen#Port=5")),
    *(f"{INTERFACE}{line}\n" for line in ("ListenPort=\\\n5", 'ListenPort="5"', f"PublicKey={KEY}")),
    f"{INTERFACE}Address=10.0.0.1/8\n",
    *(f"{INTERFACE}{line}\n" for line in ("IncludedApplications=foo", "\u2028ListenPort=5", "\u200bListenPort=5")),
    *(f"{PEER}ListenPort=5\n", "[Foo]\nx=y\n", f"{INTERFACE}[Foo]\nx=y\n", "[Interface]\n\n\n\nListenPort=5"),
    (f"{INTERFACE}ListenPort=5\n{PEER}").replace("\n", "\r\n"),
    *("[Interface]\rListenPort=5\n", f"\ufeff{INTERFACE}ListenPort=5\n", f"[Peer]\nPublicKey={KEY}#c\n"),
)
TEXTS = (
    *(f"{INTERFACE}ListenPort = {value}\n" for value in PORTS),
    *(f"{INTERFACE}FwMark = {value}\n" for value in MARKS),
    *(f"{INTERFACE}PrivateKey = {value}\n" for value in KEYS),
    *(f"[Peer]\nPublicKey = {value}\n" for value in KEYS),
    *(f"{PEER}PresharedKey = {value}\n" for value in KEYS),
    *(f"{PEER}PersistentKeepalive = {value}\n" for value in KEEPALIVES),
    *(f"{PEER}AllowedIPs = {value}\n" for value in PREFIXES),
    *(f"{PEER}Endpoint = {value}\n" for value in ENDPOINTS),
    *SHAPES,
)
LATIN = (
    *(f"{INTERFACE}# Büro\nListenPort=5 # é\n", f"{INTERFACE}ListenPort=ü\n", f"{INTERFACE}üListenPort=5\n"),
    *(f"{INTERFACE}ListenPortü=5\n", f"{PEER}Endpoint=bücher.invalid:5\n", f"#ÿ\n{PEER}AllowedIPs = 10.0.0.0/8 #ÿ\n"),
)
FILES = (*(text.encode() for text in TEXTS), *(text.encode("latin-1") for text in LATIN), INTERFACE.encode("utf-16"))

_WRAPS = "wg reduces a port modulo 65536 and reads -0 as 0, which nobody intends"
_EMPTY = "an empty list can only mean no allowed ips; wg refuses it, as `check` warns"
_SIGN = "wireguard-tools 1.0.20250521 accepts the + and - of `wg set` in files too; here a file states a whole list"
_NUL = "wg ends the line at a NUL and wg-quick drops the NUL, so the meaning is ambiguous"
_QUICK_KEY = "every command accepts the keys of wg-quick, because wg-quick and wg read the same file"
_APP_KEY = "a key of the mobile apps is kept and has no effect here"
_BOM = "a byte order mark is skipped, and `check` warns"
EXCEPTIONS = {
    **dict.fromkeys((f"{INTERFACE}ListenPort = {port}\n" for port in ("-0", "65536", "70000")), _WRAPS),
    **dict.fromkeys((f"{PEER}Endpoint = 1.2.3.4:{port}\n" for port in ("65536", "70000")), _WRAPS),
    f"{PEER}AllowedIPs = \n": _EMPTY,
    **dict.fromkeys((f"{PEER}AllowedIPs = {ip}\n" for ip in PREFIXES if "+1" in ip or "-1" in ip), _SIGN),
    **dict.fromkeys((f"{INTERFACE}ListenPort=5\0\n", f"{INTERFACE}ListenPort=5\0x\n"), _NUL),
    f"{INTERFACE}Address=10.0.0.1/8\n": _QUICK_KEY,
    f"{INTERFACE}IncludedApplications=foo\n": _APP_KEY,
    f"\ufeff{INTERFACE}ListenPort=5\n": _BOM,
}


class Recorder:
    """A daemon that accepts every request and remembers the last set."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = Path(f"/var/run/wireguard/{name}.sock")
        self.path.parent.mkdir(exist_ok=True)
        self.received = b""
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection:
                    data = b""
                    while not data.endswith(b"\n\n") and (piece := connection.recv(1 << 16)):
                        data += piece
                    if data:
                        self.received = data
                        connection.sendall(b"errno=0\n\n")

    def setconf(self, file: Path) -> DeviceChange | None:
        """Return the change that `wg setconf` requested, or None if it refused the file."""
        self.received = b""
        done = subprocess.run(
            ["wg", "setconf", self.name, str(file)],
            env={**os.environ, "WG_ENDPOINT_RESOLUTION_RETRIES": "0"},
            capture_output=True,
            timeout=60,
            check=False,
        )
        if done.returncode:
            return None
        (operation,) = UapiParser(socket.if_nametoindex).feed(self.received)
        assert isinstance(operation, SetOperation), (self.received, operation)
        return operation.change

    def close(self) -> None:
        self.path.unlink()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(20)


@pytest.fixture(scope="module")
def recorder() -> Iterator[Recorder]:
    recorder = Recorder(f"wyd{os.getpid()}")
    try:
        yield recorder
    finally:
        recorder.close()


def ours(file: Path) -> DeviceChange | None:
    resolve = NameResolver(0, lambda seconds: None, lambda sentence: None)
    try:
        return set_change(Config.parse(read_file(file)[0]), resolve)
    except (WyrmholeError, OSError):
        return None


def test_every_file_means_the_same_to_wg(recorder: Recorder, tmp_path: Path) -> None:
    exceptions = {text.encode() for text in EXCEPTIONS}
    differing = {}
    for data in FILES:
        file = tmp_path / "file"
        file.write_bytes(data)
        theirs, mine = recorder.setconf(file), ours(file)
        if theirs != mine and data not in exceptions:
            differing[data] = (theirs, mine)
    assert differing == {}
    assert len(FILES) > 250 and exceptions <= set(FILES)


def test_every_file_is_written_back_byte_for_byte(tmp_path: Path) -> None:
    for data in (*FILES, *(text.encode() for text in QUICK_TEXTS)):
        text = data.decode("utf-8", "surrogateescape")
        config, _ = Config.parse_all(text)
        assert config.emit().encode("utf-8", "surrogateescape") == data


# wg-quick

QUICK_LINES = (
    *("Address = 10.0.0.1/8", "Address = 10.0.0.1/8,fd00::1/64", "Address=10.0.0.1/8 , 10.0.0.2/8\tfd00::1"),
    *(
        "Address = ",
        "Address = 10.0.0.1",
        "Address = 10.0.0.1/8,",
        "aDDress = 10.0.0.1/8 # c",
        "Address = 10.0.0.1/255.0.0.0",
    ),
    *("MTU = ", "MTU = 1400", "MTU = 1400\nMTU = 1300", "MTU = 1400\nMTU = ", "mtu=1400#c", "MTU = 0x500"),
    *("Table = ", "Table = off", "Table = auto", "Table = 7", "Table = 0x10", "Table = main", "Table = 0"),
    *(
        "Table = Off",
        "DNS = ",
        "DNS = 10.0.0.53",
        "DNS = 10.0.0.53, ~corp.example",
        "DNS = 10.0.0.53,lan corp.example",
        "DNS = ~.",
    ),
    *("DNS = fd00::53\nDNS = 10.0.0.53", "DNS = fe80::53%lo", "DNS = lan", "DNS = , ,", "dns=10.0.0.53\tlan"),
    *("SaveConfig = true", "SaveConfig = FALSE", "SaveConfig = True\nSaveConfig = false", "saveconfig=true # c"),
    *("PreUp = ", "PostUp = a; b", "PostUp = a\nPostUp = b\nPreDown = c\nPostDown = d", "PostUp=a = b", "postup = A"),
    *("PreUp = \nPostUp = \nPreDown = \nPostDown = ", "PostUp =\ta  b\t", "PostUp = \u00a0a", "PostUp = echo é"),
    *(
        "PostUp = a\\",
        "PostUp = [ -e x ]",
        "PostUp = [Peer]",
        "# PostUp = a",
        " PostUp = a",
        "PostUp = a\r",
        "MTU = 1400\r",
    ),
)
QUICK_TEXTS = (
    *(f"[Interface]\n{line}\n" for line in QUICK_LINES),
    *(f"[interface] # c\n{line}" for line in QUICK_LINES),
    f"[Interface]\nMTU = 1400\n{PEER}[Interface]\nMTU = 1300\nAddress = 10.0.0.1/8\n",
    f"[Interface]\nListenPort = 5\n\n# name = x\n  {PEER}# Address = 1\n\n\n",
    *("[Interface]\n\tMTU = 1400", "[Interface]\r\nMTU = 1400\r\nPostUp = a\r\n"),
)
_END_OF_FUNCTIONS = "# ~~ function override insertion point ~~"
_PRINT = r"""
parse_options "$1"
for each in "MTU $MTU" "TABLE $TABLE" "SAVE $SAVE_CONFIG"; do printf '%s\0' "$each"; done
for each in "${ADDRESSES[@]}"; do printf 'ADDRESS %s\0' "$each"; done
for each in "${DNS[@]}" "${DNS_SEARCH[@]}"; do printf 'DNS %s\0' "$each"; done
for each in "${PRE_UP[@]}"; do printf 'PREUP %s\0' "$each"; done
for each in "${POST_UP[@]}"; do printf 'POSTUP %s\0' "$each"; done
for each in "${PRE_DOWN[@]}"; do printf 'PREDOWN %s\0' "$each"; done
for each in "${POST_DOWN[@]}"; do printf 'POSTDOWN %s\0' "$each"; done
"""


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a script with the functions of the installed wg-quick that prints the parsed values."""
    program = shutil.which("wg-quick")
    assert program is not None
    script = tmp_path_factory.mktemp("reader") / "wg-quick"
    functions, found, _ = Path(program).read_text().partition(_END_OF_FUNCTIONS)
    assert found, "this is not the wg-quick for Linux"
    script.write_text(functions + _PRINT)
    return script


def theirs_of_quick(reader: Path, file: Path) -> list[str] | None:
    done = subprocess.run(["bash", str(reader), str(file)], capture_output=True, timeout=60, check=False)
    if done.returncode:
        return None
    return done.stdout.decode("utf-8", "surrogateescape").split("\0")[:-1]


def ours_of_quick(file: Path) -> list[str] | None:
    """Return our reading in wg-quick's variables, which hold the text of the file."""
    try:
        interface = Config.parse(read_file(file)[0]).interface
    except WyrmholeError:
        return None
    table = "" if interface.table is None else str(interface.table)
    hooks = {
        "PREUP": interface.pre_up,
        "POSTUP": interface.post_up,
        "PREDOWN": interface.pre_down,
        "POSTDOWN": interface.post_down,
    }
    return [
        f"MTU {interface.mtu or ''}",
        f"TABLE {table}",
        f"SAVE {int(interface.save_config)}",
        *(f"ADDRESS {address}" for address in interface.addresses),
        *(f"DNS {entry}" for entry in (*interface.dns_servers, *interface.dns_domains)),
        *(f"{name} {command}" for name, commands in hooks.items() for command in commands),
    ]


def normalised(printed: list[str] | None) -> list[str] | None:
    """Return wg-quick's output with numbers and addresses in normal form, and without empty hooks."""
    if printed is None:
        return None
    words = [line.partition(" ")[::2] for line in printed]
    numbers = {"0x500": "1280", "0x10": "16"}
    masks = {"10.0.0.1/255.0.0.0": "10.0.0.1/8", "10.0.0.1": "10.0.0.1/32", "fd00::1": "fd00::1/128"}
    return [
        f"{name} {masks.get(value, value) if name == 'ADDRESS' else numbers.get(value, value)}"
        for name, value in words
        if value or name in ("MTU", "TABLE")
    ]


@pytest.mark.parametrize("text", QUICK_TEXTS)
def test_every_key_of_wg_quick_is_read_like_wg_quick(reader: Path, tmp_path: Path, text: str) -> None:
    file = tmp_path / "wg0.conf"
    file.touch(0o600)
    file.write_bytes(text.encode())
    assert ours_of_quick(file) == normalised(theirs_of_quick(reader, file))


@pytest.mark.parametrize("command", ["a # b", "# nothing", "echo 'a#b'", "a#b"])
def test_hash_in_a_command_is_read_like_wg_quick_of_2026(reader: Path, tmp_path: Path, command: str) -> None:
    file = tmp_path / "wg0.conf"
    file.touch(0o600)
    file.write_text(f"[Interface]\nPostUp = {command}\n")
    theirs = theirs_of_quick(reader, file)
    is_older = "unstripped_value" not in reader.read_text()
    assert theirs is not None
    assert theirs[-1] == f"POSTUP {command.partition('#')[0].strip() if is_older else command}"
    assert ours_of_quick(file) == [*theirs[:-1], f"POSTUP {command}"]


@pytest.mark.parametrize("data", [*(text.encode() for text in (*SHAPES, *QUICK_TEXTS)), *FILES[len(TEXTS) :]])
def test_strip_prints_the_same_as_wg_quick_strip(tmp_path: Path, data: bytes) -> None:
    """Two differences: Bash drops a NUL, and we remove a byte order mark, because wg refuses it."""
    file = tmp_path / "wg0.conf"
    file.touch(0o600)
    file.write_bytes(data)
    done = subprocess.run(
        ["wg-quick", "strip", str(file)], stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
    )
    ours = strip(read_file(file)[0]) if not data.startswith(b"\xff\xfe") else ""
    if done.returncode == 0 and ours:
        expected = done.stdout.removeprefix(b"\xef\xbb\xbf")
        assert ours.encode("utf-8", "surrogateescape").replace(b"\0", b"") == expected

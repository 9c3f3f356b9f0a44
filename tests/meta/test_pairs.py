"""The Rust core and its Python twins: each file names its twin, and both have the same types and numbers."""

from __future__ import annotations

import ast
import contextlib
import importlib
import re
from pathlib import Path

import pytest

from wyrmhole.wire import ip

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src"
CORE = ROOT / "rust" / "core" / "src"
NATIVE = ROOT / "rust" / "native" / "src"

WITHOUT_TWIN = {
    "handshake_queues": "datapath/reports.py has these queues: in Python only the control thread takes from them",
    "lib": "the list of the others",
    "sharing": "the portable engine has one thread, so no other thread can help it",
    "sync": "see tickets",
    "tickets": "see sharing",
    "patience": "a Python thread does not spin, because it would keep the interpreter from the others",
}
OTHER_NAMES = {
    "responder": "protocol/exchange.py also sends initiations and reads responses, which stay in Python",
    "sending": "net/udp_socket.py also opens and reads the socket, which is the extension's io/sys.rs",
    "edges": "net/bind.py and net/tun.py are contracts of whole edges; the core needs five calls of them",
}
"""Files that differ in name from their twin, each with the reason."""
FORMATS_WITHOUT_TWIN = {
    "buffer": "a Python type",
    "datagram": "inbound.rs has an Arrival, whose bytes stay in the receive slot",
    "endpoint": "the standard library's SocketAddr",
    "prefix": "allowed_ips.rs has it, because only that file needs it",
    "probes": "only the control plane sends probes",
}

ELSEWHERE = {
    "SessionLimits": "protocol.data_plane",
    "Address": "wire.ip: bytes",
    "KeypairParams": "protocol.data_plane",
    "Marks": "protocol.data_plane",
    "Prefix": "wire.prefix",
    "Report": "protocol.data_plane",
    "Source": "protocol.data_plane",
}
"""Types of the core whose Python form is in a lower module than the twin."""
RUST_ONLY = {
    "Answer": "Exchange's Accepted and Reply",
    "AwsLc": "a cipher library",
    "CryptoError": "InvalidTag and ZeroSharedSecret",
    "ExchangeKey": "the library's X25519PrivateKey",
    "Refusal": "InvalidTag, ZeroSharedSecret and UnknownPeer",
    "Responder": "the half of Exchange that answers",
    "StaticKey": "PrivateKey, in protocol.keys",
    "Aead": "in Rust the cipher library can be chosen",
    "Arrival": "wire.datagram.Received without the bytes, which stay in the receive slot",
    "Drops": "a Counter in Python",
    "Edges": "the calls of Bind and Tun that the core needs",
    "Flush": "other threads stage while one sends what was staged",
    "Gather": "coalesce.Frame over parts of the receive slot",
    "Key": "one trie for numbers of 32 and of 128 bits",
    "LastBatch": "see Flush",
    "Oddities": "a Counter in Python",
    "Opening": "decrypting apart from delivery, because another thread may do it",
    "Part": "a place in the receive slot; a view in Python",
    "PeerState": "the locked part of an EnginePeer",
    "RawSocket": "the kernel's socket, which tests replace",
    "RetryingSender": "the part of UdpSocket that sends",
    "Segments": "segments are laid down in the wire buffer; a list of packets in Python",
    "SendError": "errno in Python",
    "TrainLimits": "constants in Python, whose binds split longer trains by themselves",
    "TransportHeader": "a struct layout in Python",
    "Trie": "private in Python",
    "Turn": "attributes of the step in Python",
}
PYTHON_ONLY = {
    "Accepted": "see Answer",
    "Completed": "responses are read above the seam",
    "CookieChecker": "functions in Rust, whose gate keeps the secret",
    "CookieGenerator": "cookies for us are read above the seam",
    "Exchange": "see Responder",
    "InitiationBody": "a part of the message's bytes in Rust",
    "Reply": "see Answer",
    "ResponseBody": "a part of the message's bytes in Rust",
    "Symmetric": "private in Rust",
    "UnknownPeer": "see Refusal",
    "ZeroSharedSecret": "see CryptoError",
    "Bind": "see edges.rs",
    "BindCounters": "the extension counts nothing of its own",
    "CookieReply": "handshake messages are read above the seam",
    "Frame": "see Gather",
    "Initiation": "handshake messages are read above the seam",
    "KernelBind": "see edges.rs",
    "KernelSocket": "see edges.rs",
    "MessageError": "a DropReason in Rust",
    "Phase": "private in Rust",
    "Response": "handshake messages are read above the seam",
    "SocketOptions": "sockets are opened in Python",
    "Timings": "timers are above the seam",
    "TooShort": "a DropReason in Rust",
    "TrainPool": "a vector in Rust",
    "UdpSocket": "see RetryingSender",
    "UnknownType": "a DropReason in Rust",
    "WrongLength": "a DropReason in Rust",
}

_TWIN = re.compile(r"//! Twin: wyrmhole/([\w/]+\.py)[.,]")


def pairs(folder: Path) -> dict[str, str]:
    """Return the twin that the first line of each Rust file names."""
    found = {}
    for path in sorted(folder.glob("*.rs")):
        twin = _TWIN.match(path.read_text())
        if twin is not None:
            found[path.stem] = twin[1]
    return found


PAIRS = pairs(CORE)


def test_each_core_file_names_a_twin_with_the_same_name() -> None:
    files = {path.stem for path in CORE.glob("*.rs")}
    assert files - set(PAIRS) == set(WITHOUT_TWIN)
    assert {stem for stem, twin in PAIRS.items() if Path(twin).stem != stem} == set(OTHER_NAMES)
    assert all((SRC / "wyrmhole" / twin).is_file() for twin in PAIRS.values())
    assert len(set(PAIRS.values())) == len(PAIRS)


def test_each_file_of_the_packet_path_has_a_twin() -> None:
    path = {each.name for each in (SRC / "wyrmhole" / "datapath").glob("*.py")} - {"__init__.py"}
    assert {f"datapath/{name}" for name in path} <= set(PAIRS.values())
    formats = {each.stem for each in (SRC / "wyrmhole" / "wire").glob("*.py")} - {"__init__"}
    assert {stem for stem in formats if f"wire/{stem}.py" not in PAIRS.values()} == set(FORMATS_WITHOUT_TWIN)


def test_extension_files_name_their_twins() -> None:
    assert pairs(NATIVE) == {"worker": "engine/loop.py", "engine": "engine/portable.py"}


def types_of(stem: str) -> tuple[set[str], set[str]]:
    """Return the public types of a pair, in Rust and in Python."""
    rust = set(re.findall(r"^ *pub (?:struct|enum|trait) (\w+)", (CORE / f"{stem}.rs").read_text(), re.MULTILINE))
    tree = ast.parse((SRC / "wyrmhole" / PAIRS[stem]).read_text())
    return rust, {node.name for node in tree.body if isinstance(node, ast.ClassDef) and node.name[0] != "_"}


def test_twins_have_the_same_types() -> None:
    rust_only: set[str] = set()
    python_only: set[str] = set()
    for stem in PAIRS:
        rust, python = types_of(stem)
        shared = {name.casefold() for name in rust} & {name.casefold() for name in python}
        rust_only |= {name for name in rust if name.casefold() not in shared}
        python_only |= {name for name in python if name.casefold() not in shared}
    assert rust_only == set(ELSEWHERE) | set(RUST_ONLY)
    assert python_only == set(PYTHON_ONLY)


def numbers_of(stem: str, known: dict[str, object]) -> dict[str, object]:
    """Evaluate the numeric constants of a Rust file in Python, and add them to those already known."""
    text = (CORE / f"{stem}.rs").read_text().partition("#[cfg(test)]")[0]
    found = re.findall(r"^(?:pub )?const (\w+): [\w\[\]; ]+ = ([^;]+);", text, re.MULTILINE)
    # Two passes, because a constant may precede those that it is computed from.
    for name, value in found * 2:
        expression = re.sub(r" as \w+", "", value).replace("virtio::", "").replace("/", "//")
        with contextlib.suppress(SyntaxError, NameError, AttributeError, TypeError):
            known[name] = eval(expression, {}, known)
    return {name: known[name] for name, _ in found if name in known}


@pytest.fixture(scope="module")
def shared() -> dict[str, object]:
    known: dict[str, object] = {}
    for stem in ("constants", "ip", "messages", "virtio"):
        numbers_of(stem, known)
    return known


def test_twins_have_the_same_numbers(shared: dict[str, object]) -> None:
    compared = []
    for stem in PAIRS:
        twin = importlib.import_module("wyrmhole." + PAIRS[stem].removesuffix(".py").replace("/", "."))
        for name, value in numbers_of(stem, dict(shared)).items():
            expected = getattr(twin, name, getattr(twin, f"_{name}", None))
            if isinstance(expected, (int, tuple)):
                assert value == (list(expected) if isinstance(expected, tuple) else expected), f"{stem}.rs: {name}"
                compared.append(f"{stem}.{name}")
    assert len(compared) > 50, compared


@pytest.mark.parametrize(
    ("function", "extensions"),
    [
        ("is_walkable_extension", ip.WALKABLE_EXTENSIONS),
        ("is_quotable_extension", ip.QUOTABLE_EXTENSIONS),
        ("is_extension", ip.ANY_EXTENSION),
    ],
)
def test_twins_know_the_same_ipv6_extensions(
    function: str, extensions: frozenset[int], shared: dict[str, object]
) -> None:
    text = (CORE / "ip.rs").read_text()

    def members(name: str) -> set[object]:
        body = text.split(f"fn {name}(", 1)[1].split("\n}", 1)[0]
        found = {shared[constant] for constant in re.findall(r"\b[A-Z][A-Z0-9_]+\b", body)}
        return found | (members("is_walkable_extension") if "is_walkable_extension(" in body else set())

    assert members(function) == extensions

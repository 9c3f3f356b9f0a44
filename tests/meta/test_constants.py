"""Each protocol constant is defined in one file of `src`, so that a change, or a mistake, affects only one place.

Independent checks repeat values on purpose: tests do, and so does the simulator's model of an engine.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src" / "wyrmhole"
RUST = Path(__file__).parents[2] / "rust"

NAMES = {
    r"_?PROTOCOL_(TCP|UDP|ICMP|ICMPV6)|_?(TCP|UDP)": "wire/ip.py",
    r"\w*EXTENSIONS?": "wire/ip.py",
    r"_?(IP)?V[46]_HEADER\w*|_?(TCP|UDP)_HEADER\w*": "wire/ip.py",
    r"\w*MIN\w*_MTU\w*V6|\w*V6\w*MIN\w*_MTU": "wire/ip.py",
    r"\w*OVERHEAD\w*": "wire/messages.py",
    r"_?(MAC|TAG|INITIATION|RESPONSE|COOKIE_REPLY|TRANSPORT_HEADER)_SIZE": "wire/messages.py",
    r"_?(DEFAULT|USUAL)\w*_MTU": "wire/messages.py",
    r"_?GSO_\w+": "wire/virtio.py",
    r"_?F_(NEEDS_CSUM|DATA_VALID)": "wire/virtio.py",
    r"_?(VIRTIO_)?HEADER_(SIZE|BYTES)": "wire/virtio.py",
    r"_?KEY_SIZE": "protocol/keys.py",
    r"_?WINDOW_(BITS|SIZE)": "datapath/replay.py",
}
"""Patterns of the names of such constants, each with the only file that may assign a number to one."""

NUMBERS = {
    "1280": {"wire/ip.py"},
    "1420": set(),
    "148": {"wire/messages.py"},
    "92": {"wire/messages.py"},
    "8128": set(),
    "65535": {"wire/ip.py", "wire/endpoint.py", "control/config/values.py"},
    "65507": set(),
}
"""Decimal numbers that have one meaning in all code, and the files that may contain them. 65,535 has three: a
packet's length, a port and a keepalive."""

INDEPENDENT = {
    "simulation/model/shadow_peer.py": "the model of an engine, which must not share the engine's mistakes",
    "simulation/world/attacker.py": "lengths around each boundary",
    "simulation/world/scenario.py": "path MTUs and packet sizes to draw from",
}


def has_number(node: ast.expr) -> bool:
    """Return whether the expression is or contains a number. An expression of names only reuses other constants."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int)
    if isinstance(node, ast.BinOp):
        return has_number(node.left) or has_number(node.right)
    if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
        return any(map(has_number, node.elts))
    if isinstance(node, ast.Dict):
        return any(map(has_number, node.values))
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "frozenset" and any(map(has_number, node.args))


def definitions(source: str) -> Iterator[str]:
    """Yield the upper-case names to which a number is assigned."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (ast.Assign, ast.AnnAssign)) or node.value is None:
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        pairs = [(target, node.value)]
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            pairs = list(zip(target.elts, node.value.elts, strict=True))
        for name, value in pairs:
            if isinstance(name, ast.Name) and name.id.isupper() and has_number(value):
                yield name.id


def decimals(source: str) -> Iterator[str]:
    """Yield the numbers in code, not those in strings or comments, without underscores."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NUMBER:
            yield token.string.replace("_", "")


def findings(path: str, source: str) -> list[str]:
    found = []
    for name in definitions(source):
        homes = [home for pattern, home in NAMES.items() if re.fullmatch(pattern, name)]
        if homes and path not in homes:
            found.append(f"{path} defines {name}, which {homes[0]} has")
    for number in decimals(source):
        if path not in NUMBERS.get(number, {path}):
            found.append(f"{path} writes {number}")
    return found


def test_each_protocol_constant_is_defined_once() -> None:
    for file in SRC.rglob("*.py"):
        path = file.relative_to(SRC).as_posix()
        if path not in INDEPENDENT:
            assert not findings(path, file.read_text())


def test_files_of_constants_and_exceptions_exist() -> None:
    for path in {*NAMES.values(), *INDEPENDENT, *(home for homes in NUMBERS.values() for home in homes)}:
        assert (SRC / path).is_file(), path
    for pattern, path in NAMES.items():
        assert any(re.fullmatch(pattern, name) for name in re.findall(r"(?m)^(\w+) = ", (SRC / path).read_text())), (
            pattern
        )


@pytest.mark.parametrize(
    "line",
    [
        "_TCP, _UDP = 6, 17",
        "_V6_EXTENSIONS = frozenset({0, 43, 60, 135})",
        "_EXTENSIONS = frozenset({HOP_BY_HOP, 43})",
        "OVERHEAD = 32",
        "OVERHEAD = IPV6_HEADER_SIZE + 8 + 32",
        "OVERHEAD = {False: 60, True: 80}",
        "_GSO_ECN = 0x80",
        "_GSO_TCP = (1, 4)",
        "MAC_SIZE = 16",
        "_V4_HEADER = 20",
        "_HEADER_BYTES = 10",
        "MIN_MTU_V6: int = 576",
        "if mtu < 1280: pass",
        "HANDSHAKES = {1: 148, 2: 92, 3: 64}",
        "LARGEST = 65_535",
    ],
)
def test_second_definition_is_found(line: str) -> None:
    assert findings("net/other.py", line)

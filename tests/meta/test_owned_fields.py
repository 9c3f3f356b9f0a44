"""Some fields have one writer. Other modules of `src` read them, and call methods to change them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from wyrmhole.protocol.timers import PeerTimers

SRC = Path(__file__).parents[2] / "src" / "wyrmhole"

MUTATORS = {"clear", "pop", "popitem", "setdefault", "update"}


def written(source: str, fields: set[str]) -> Iterator[tuple[str, int]]:
    """Yield each field of an object other than `self` that is assigned, deleted or changed in place, with its line."""
    for node in ast.walk(ast.parse(source)):
        place: ast.expr | None = None
        if isinstance(node, (ast.Attribute, ast.Subscript)) and not isinstance(node.ctx, ast.Load):
            place = node.value if isinstance(node, ast.Subscript) else node
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATORS:
            place = node.func.value
        if isinstance(place, ast.Attribute) and place.attr in fields and ast.unparse(place.value) != "self":
            yield place.attr, place.lineno


def test_fields_of_peer_timers_are_written_in_timers_only() -> None:
    for file in SRC.rglob("*.py"):
        if file != SRC / "protocol" / "timers.py":
            assert not list(written(file.read_text(), set(PeerTimers.__slots__))), file


def test_prefixes_of_a_peer_are_written_in_prefix_owners_only() -> None:
    for room in ("protocol", "device", "simulation"):
        for file in (SRC / room).rglob("*.py"):
            if file != SRC / "protocol" / "prefix_owners.py":
                assert not list(written(file.read_text(), {"allowed_ips"})), file


@pytest.mark.parametrize(
    "line",
    [
        "peer.timers.attempts += 1",
        "timers.attempts, timers.trying_since = 0, now",
        "timers.retransmit_at = timers.initiate_at = NEVER",
        "del peer.allowed_ips[prefix]",
        "peer.allowed_ips[prefix] = None",
        "peer.allowed_ips.clear()",
    ],
)
def test_write_is_found(line: str) -> None:
    assert list(written(line, {*PeerTimers.__slots__, "allowed_ips"}))

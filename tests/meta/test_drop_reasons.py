"""The names of drops are the same in Python and in Rust."""

from __future__ import annotations

import re
from pathlib import Path

from wyrmhole.protocol.drops import DropReason

RUST = Path(__file__).parents[2] / "rust" / "core" / "src" / "drops.rs"
CONTROL_ONLY = {
    DropReason.UNDER_LOAD,
    DropReason.BAD_COOKIE,
    DropReason.BAD_HANDSHAKE,
    DropReason.UNKNOWN_PEER,
    DropReason.REPLAYED_HANDSHAKE,
    DropReason.HANDSHAKE_FLOOD,
}
"""Counted where handshakes are decided, which is Python with either engine."""


def test_a_reason_is_in_both_languages_unless_only_handshakes_have_it() -> None:
    block = RUST.read_text().partition("\nreasons! {")[2].partition("\n}")[0]
    names = re.findall(r'(\w+) = "(\w+)"', block)
    assert len(names) > 20
    assert {name for _, name in names} == {reason.value for reason in set(DropReason) - CONTROL_ONLY}
    for variant, name in names:
        assert variant == name.title().replace("_", ""), "a variant is called as its name"

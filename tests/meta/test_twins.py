"""Lists that exist in Python and in Rust, and must stay equal."""

from __future__ import annotations

import re
from pathlib import Path

from wyrmhole.datapath import refusals
from wyrmhole.protocol.constants import SECOND
from wyrmhole.protocol.drops import MEANINGS, DropReason, Oddity

CORE = Path(__file__).parents[2] / "rust" / "core" / "src"

PROTOCOLS_OWN = {DropReason.BAD_COOKIE}
"""Reasons that occur above the seam: only Python reads received cookie replies, so engines do not define these."""


def names_in(begin: str) -> list[tuple[str, str]]:
    """Return the variants in a block of the macro, each with its text."""
    text = (CORE / "drops.rs").read_text()
    block = text.split(begin, 1)[1].split("\n}", 1)[0]
    return re.findall(r"(\w+) = \"(\w+)\"", block)


def test_both_engines_have_the_same_drop_reasons() -> None:
    native = names_in("\nreasons! {")
    python = {reason.value for reason in DropReason}
    assert {name for _, name in native} == python - {reason.value for reason in PROTOCOLS_OWN}
    assert len(native) > 20
    for variant, name in native:
        assert variant == name.title().replace("_", ""), "a variant is named after its reason"


def test_both_engines_have_the_same_oddities() -> None:
    text = (CORE / "drops.rs").read_text()
    names = re.findall(r'"(\w+)"', text.split("const ODDITIES", 1)[1].split(";", 1)[0])
    assert names == [oddity.value for oddity in Oddity]


def test_each_drop_reason_has_a_meaning_in_words() -> None:
    assert set(MEANINGS) == set(DropReason)
    assert all(meaning and not meaning.endswith(".") and meaning[0].islower() for meaning in MEANINGS.values())
    assert len(set(MEANINGS.values())) == len(MEANINGS)


def test_both_engines_report_refusals_at_the_same_rate() -> None:
    text = (CORE / "refusals.rs").read_text()
    assert f"SECOND / {SECOND // refusals.INTERVAL};" in text
    assert f"BURST: u64 = {refusals.BURST};" in text

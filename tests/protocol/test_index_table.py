from __future__ import annotations

import itertools
import random

from wyrmhole.protocol.index_table import IndexTable


def test_indices_are_unique_and_zero_is_never_drawn() -> None:
    """This holds even if the random source repeats itself (M9, I14)."""
    draws = iter([b"\0\0\0\0", b"\1\0\0\0", b"\1\0\0\0", b"\2\0\0\0"])
    table: IndexTable[str] = IndexTable(lambda size: next(draws))
    assert (table.insert("a"), table.insert("b")) == (1, 2)
    assert (table.get(1), table.get(2), table.get(3)) == ("a", "b", None)


def test_a_freed_index_finds_nothing() -> None:
    table: IndexTable[str] = IndexTable(random.Random(1).randbytes)
    index = table.insert("a")
    table.replace(index, "b")
    assert table.get(index) == "b"
    table.remove(index)
    table.remove(index)
    assert index not in table
    assert len(table) == 0


def test_indices_are_uniformly_distributed() -> None:
    """A chi-square test of each byte over 1e5 draws; consecutive indices are not predictable either (M9)."""
    table: IndexTable[int] = IndexTable(random.Random(2).randbytes)
    drawn = [table.insert(number) for number in range(100_000)]
    for shift in (0, 8, 16, 24):
        counts = [0] * 256
        for index in drawn:
            counts[index >> shift & 255] += 1
        expected = len(drawn) / 256
        chi_square = sum((count - expected) ** 2 / expected for count in counts)
        # 255 degrees of freedom: mean 255, deviation 22.6. The source is seeded, so the result is always the same.
        assert 160 < chi_square < 350
    differences = [(later - earlier) & 0xFFFFFFFF for earlier, later in itertools.pairwise(drawn)]
    assert len(set(differences)) > 0.9999 * len(differences)

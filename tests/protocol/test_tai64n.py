from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wyrmhole.protocol import tai64n
from wyrmhole.protocol.constants import SECOND

YEAR = 365 * 24 * 3600 * SECOND


def test_known_timestamps_are_emitted() -> None:
    """The timestamp of 1970 is 2^62 plus 10 leap seconds, big endian (M11)."""
    assert tai64n.emit(0).hex() == "400000000000000a00000000"
    assert tai64n.emit(1_700_000_000 * SECOND + 999_999_999).hex() == "400000006553f10a" + "3b000000"


@given(st.integers(0, 200 * YEAR))
def test_the_low_24_bits_of_the_nanoseconds_are_clear(wall: int) -> None:
    """Timestamps do not reveal the exact clock (M12)."""
    stamp = tai64n.emit(wall)
    assert stamp[9:] == bytes(3)
    assert 0 <= wall - tai64n.parse(stamp) < tai64n.STEP


@given(st.lists(st.integers(0, 100 * YEAR), min_size=1, max_size=50))
def test_timestamps_increase_for_any_wall_clock(walls: list[int]) -> None:
    """They increase even if it goes back, or advances by less than one step (M12, I10, L7)."""
    last: bytes | None = None
    for wall in walls:
        stamp = tai64n.next_stamp(wall, last)
        assert last is None or stamp > last
        assert stamp[9:] == bytes(3)
        last = stamp


def test_two_timestamps_within_one_step_differ() -> None:
    first = tai64n.next_stamp(SECOND, None)
    assert tai64n.next_stamp(SECOND + 1, first) > first


def test_a_clock_before_1970_is_treated_as_1970() -> None:
    assert tai64n.emit(-5) == tai64n.emit(0)

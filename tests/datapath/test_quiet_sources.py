from __future__ import annotations

from wyrmhole.datapath.quiet_sources import WINDOW, QuietSources
from wyrmhole.protocol.constants import SECOND


def test_a_source_is_quiet_until_it_speaks_and_again_after_the_window() -> None:
    sources = QuietSources()
    assert sources.was_quiet(b"\x0a\0\0\1", 5)
    assert not sources.was_quiet(b"\x0a\0\0\1", 5)
    assert not sources.was_quiet(b"\x0a\0\0\1", WINDOW)
    assert sources.was_quiet(b"\x0a\0\0\2", WINDOW)
    assert sources.was_quiet(b"\x0a\0\0\1", 3 * WINDOW)


def test_a_retransmission_of_the_honest_is_heard() -> None:
    for start in range(0, 2 * WINDOW, WINDOW // 10):
        sources = QuietSources()
        sources.was_quiet(b"tick", 0)
        assert sources.was_quiet(b"\x0a\0\0\1", start)
        for step in range(10):
            sources.was_quiet(b"tick", start + step * SECOND // 2)
        assert sources.was_quiet(b"\x0a\0\0\1", start + 5 * SECOND)


def test_who_never_pauses_stays_known() -> None:
    """However long it lasts."""
    sources = QuietSources()
    sources.was_quiet(b"\x0a\0\0\1", 0)
    assert not any(sources.was_quiet(b"\x0a\0\0\1", at) for at in range(0, 60 * SECOND, WINDOW - 1))


def test_after_a_long_silence_nothing_is_known() -> None:
    sources = QuietSources()
    sources.was_quiet(b"\x0a\0\0\1", 0)
    assert sources.was_quiet(b"\x0a\0\0\1", 10**18)


def test_a_stranger_among_65536_sources_is_nearly_always_heard() -> None:
    sources = QuietSources()
    for number in range(1 << 16):
        sources.was_quiet(number.to_bytes(4), 0)
    unheard = sum(not sources.was_quiet((1 << 24 | number).to_bytes(4), 1) for number in range(2000))
    assert unheard < 40

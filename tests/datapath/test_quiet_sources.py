from __future__ import annotations

from wyrmhole.datapath.quiet_sources import WINDOW, QuietSources
from wyrmhole.protocol.constants import SECOND


def test_a_source_is_quiet_again_after_the_window() -> None:
    sources = QuietSources()
    assert sources.was_quiet(b"\x0a\0\0\1", 5)
    assert not sources.was_quiet(b"\x0a\0\0\1", 5)
    assert not sources.was_quiet(b"\x0a\0\0\1", WINDOW)
    assert sources.was_quiet(b"\x0a\0\0\2", WINDOW)
    assert sources.was_quiet(b"\x0a\0\0\1", 3 * WINDOW)


def test_a_retransmission_after_5_s_counts_as_quiet() -> None:
    for start in range(0, 2 * WINDOW, WINDOW // 10):
        sources = QuietSources()
        sources.was_quiet(b"tick", 0)
        assert sources.was_quiet(b"\x0a\0\0\1", start)
        for step in range(10):
            sources.was_quiet(b"tick", start + step * SECOND // 2)
        assert sources.was_quiet(b"\x0a\0\0\1", start + 5 * SECOND)


def test_a_source_that_never_pauses_is_never_quiet() -> None:
    """This holds for any length of time."""
    sources = QuietSources()
    sources.was_quiet(b"\x0a\0\0\1", 0)
    assert not any(sources.was_quiet(b"\x0a\0\0\1", at) for at in range(0, 60 * SECOND, WINDOW - 1))


def test_a_long_silence_forgets_every_source() -> None:
    sources = QuietSources()
    sources.was_quiet(b"\x0a\0\0\1", 0)
    assert sources.was_quiet(b"\x0a\0\0\1", 10**18)


def test_a_new_source_among_65536_is_rarely_taken_as_known() -> None:
    sources = QuietSources()
    for number in range(1 << 16):
        sources.was_quiet(number.to_bytes(4), 0)
    unheard = sum(not sources.was_quiet((1 << 24 | number).to_bytes(4), 1) for number in range(2000))
    assert unheard < 40

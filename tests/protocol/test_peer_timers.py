"""The transitions of a peer's timers: each arms and disarms the right timers, and none fires twice."""

from __future__ import annotations

import pytest

from wyrmhole.protocol.constants import SECOND, Timings
from wyrmhole.protocol.data_plane import NEVER, Marks
from wyrmhole.protocol.timers import PeerTimers, Timer

QUIET = Marks(0, 0, 0, 0)
TIMINGS = Timings()


def due(timers: PeerTimers, marks: Marks, now: int) -> set[Timer]:
    return {timer for at, timer in timers.deadlines(marks, TIMINGS) if at <= now}


@pytest.mark.parametrize("timer", Timer)
def test_a_handled_timer_is_not_due_again(timer: Timer) -> None:
    now, marks = 700 * SECOND, Marks(1, 1, 1, 1)
    timers = PeerTimers()
    timers.set_persistent_interval(1)
    timers.start_persistent(0)
    timers.sent_initiation(1)
    timers.postpone(1)
    timers.began_session(1)
    assert due(timers, marks, now) == set(Timer)
    timers.expired(timer, marks, now)
    assert due(timers, marks, now) == set(Timer) - {timer}
    assert timers.next_deadline(marks, TIMINGS) <= now


def test_a_postponed_initiation_belongs_to_its_series() -> None:
    timers = PeerTimers()
    timers.begin_series(7)
    timers.postpone(9)
    assert timers.is_trying and not timers.handshake_under_way
    timers.sent_initiation(20)
    assert timers.handshake_under_way
    assert timers.deadlines(QUIET, TIMINGS) == [(20, Timer.RETRANSMIT_HANDSHAKE)]


def test_a_series_ends_by_number_of_attempts_or_by_time() -> None:
    timers = PeerTimers()
    timers.begin_series(0)
    for _ in range(TIMINGS.max_retries + 1):
        assert not timers.is_exhausted(1, TIMINGS)
        timers.begin_attempt()
    assert timers.is_exhausted(1, TIMINGS)
    timers.begin_series(0)
    assert not timers.is_exhausted(TIMINGS.give_up_after - 1, TIMINGS)
    assert timers.is_exhausted(TIMINGS.give_up_after, TIMINGS)


def test_a_completed_handshake_clears_its_series() -> None:
    timers = PeerTimers()
    timers.begin_series(0)
    timers.begin_attempt()
    timers.sent_initiation(20)
    timers.postpone(5)
    timers.completed()
    assert (timers.attempts, timers.is_trying) == (0, False)


def test_giving_up_arms_key_erasure_but_never_delays_it() -> None:
    timers = PeerTimers()
    timers.gave_up(540)
    assert timers.deadlines(QUIET, TIMINGS) == [(540, Timer.ZERO_KEYS)]
    timers.gave_up(900)
    assert timers.deadlines(QUIET, TIMINGS) == [(540, Timer.ZERO_KEYS)]
    timers.began_session(1000)
    assert timers.next_deadline(QUIET, TIMINGS) == 1000


def test_a_reset_keeps_only_the_configured_interval() -> None:
    timers = PeerTimers()
    assert timers.set_persistent_interval(25)
    assert not timers.set_persistent_interval(30)
    timers.start_persistent(0)
    timers.began_session(1)
    timers.reset()
    assert timers.persistent_interval == 30
    assert timers.next_deadline(QUIET, TIMINGS) == NEVER

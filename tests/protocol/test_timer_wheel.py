"""The timer wheel, compared with a dictionary of deadlines."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wyrmhole.protocol.timer_wheel import TICK_SHIFT, TimerWheel

TICK = 1 << TICK_SHIFT
SECOND = 1_000_000_000

times = st.one_of(
    st.integers(0, 70 * TICK), st.integers(0, 10_000 * TICK), st.integers(0, 20 * 24 * 3600 * SECOND), st.just(0)
)
steps = st.one_of(
    st.tuples(st.just("arm"), st.integers(0, 9), times),
    st.tuples(st.just("cancel"), st.integers(0, 9), times),
    st.tuples(st.just("advance"), st.integers(0, 9), times),
)


@given(st.integers(0, 1 << 55), st.lists(steps, max_size=60))
def test_timers_expire_never_early_and_at_most_a_tick_late(start: int, script: list[tuple[str, int, int]]) -> None:
    wheel: TimerWheel[int] = TimerWheel(start)
    naive: dict[int, int] = {}
    now = start
    for step, key, amount in script:
        if step == "arm":
            wheel.arm(key, now + amount)
            naive[key] = now + amount
        elif step == "cancel":
            wheel.cancel(key)
            naive.pop(key, None)
        else:
            now += amount
            expired = wheel.expire(now)
            assert len(set(expired)) == len(expired)
            for gone in expired:
                assert naive.pop(gone) <= now
            assert all(deadline > now - TICK for deadline in naive.values())
        assert set(naive) == {key for key in range(10) if key in wheel}
        assert len(wheel) == len(naive)


@given(st.integers(0, 1 << 55), st.lists(times, min_size=1, max_size=20))
def test_next_deadline_expires_all_timers_in_order_with_few_calls(start: int, delays: list[int]) -> None:
    wheel: TimerWheel[int] = TimerWheel(start)
    for key, delay in enumerate(delays):
        wheel.arm(key, start + delay)
    now, calls, order = start, 0, []
    while (deadline := wheel.next_deadline()) is not None:
        assert deadline > now or calls == 0 or deadline >= now - TICK
        now = max(now, deadline)
        order += wheel.expire(now)
        calls += 1
        assert calls <= 5 * len(delays) + 1
    assert sorted(order) == list(range(len(delays)))
    rounded = [-(-(start + delays[key]) // TICK) for key in order]
    assert rounded == sorted(rounded)


def test_an_empty_wheel_has_no_deadline() -> None:
    """Idle peers cause no wake-ups."""
    wheel: TimerWheel[str] = TimerWheel(5 * SECOND)
    assert wheel.next_deadline() is None
    wheel.arm("a", 6 * SECOND)
    wheel.cancel("a")
    assert wheel.next_deadline() is None


def test_a_deadline_in_the_past_expires_at_the_next_call() -> None:
    wheel: TimerWheel[str] = TimerWheel(100 * SECOND)
    wheel.arm("late", 1 * SECOND)
    assert wheel.expire(100 * SECOND) == ["late"]


def test_a_jump_over_days_loses_no_timer() -> None:
    wheel: TimerWheel[int] = TimerWheel(0)
    for key in range(200):
        wheel.arm(key, key * 3600 * SECOND)
    assert sorted(wheel.expire(400 * 3600 * SECOND)) == list(range(200))
    assert len(wheel) == 0

"""The replay window, compared with a naive set, and the verdicts that the kernel's self-test checks (M24)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wyrmhole.datapath.replay import WINDOW_SIZE, ReplayWindow


class NaiveWindow:
    """Remembers every counter."""

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.greatest = -1

    def accept(self, counter: int) -> bool:
        if counter in self.seen or counter <= self.greatest - WINDOW_SIZE:
            return False
        self.seen.add(counter)
        self.greatest = max(self.greatest, counter)
        return True


near = st.integers(0, 40)
far = st.integers(0, 3 * WINDOW_SIZE)
edge = st.sampled_from(
    [0, 63, 64, WINDOW_SIZE - 1, WINDOW_SIZE, WINDOW_SIZE + 1, 2 * WINDOW_SIZE, 1 << 60, (1 << 64) - 1]
)


@given(st.lists(near | far | edge, max_size=200))
def test_the_window_equals_a_naive_set_for_any_order(counters: list[int]) -> None:
    window, naive = ReplayWindow(), NaiveWindow()
    for counter in counters:
        assert window.would_accept(counter) == (counter not in naive.seen and counter > naive.greatest - WINDOW_SIZE)
        assert window.accept(counter) == naive.accept(counter)


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 64)), max_size=60))
def test_the_window_equals_a_naive_set_for_runs_of_counters(runs: list[tuple[int, int]]) -> None:
    window, naive = ReplayWindow(), NaiveWindow()
    for first, count in runs:
        for counter in range(first, first + count):
            assert window.accept(counter) == naive.accept(counter)


def test_the_window_is_8128_wide() -> None:
    """The oldest counter that still passes, and the first that does not (M24)."""
    window = ReplayWindow()
    assert window.accept(WINDOW_SIZE)
    assert WINDOW_SIZE == 8128
    assert window.accept(1)
    assert not window.accept(0)


def test_the_verdicts_of_the_kernel_s_self_test() -> None:
    """First, duplicate, jump, late and too late; then the same again at high counters (M24)."""
    for base in (0, 1 << 32, 1 << 63):
        window = ReplayWindow()
        verdicts = [
            (base, True),
            (base, False),
            (base + 1, True),
            (base + 1, False),
            (base + 9, True),
            (base + 8, True),
            (base + 7, True),
            (base + 7, False),
            (base + WINDOW_SIZE, True),
            (base + WINDOW_SIZE - 1, True),
            (base + WINDOW_SIZE - 1, False),
            (base + 2, True),
            (base + WINDOW_SIZE + 16, True),
            (base + 3, False),
            (base + 16, False),
            (base + 17, True),
            (base + 17, False),
        ]
        for counter, verdict in verdicts:
            assert window.accept(counter) is verdict, (base, counter)


def test_every_counter_is_accepted_once_in_either_direction() -> None:
    forwards, backwards = ReplayWindow(), ReplayWindow()
    assert all(forwards.accept(counter) for counter in range(3 * WINDOW_SIZE))
    assert not any(forwards.accept(counter) for counter in range(3 * WINDOW_SIZE))
    assert all(backwards.accept(counter) for counter in reversed(range(WINDOW_SIZE)))
    assert not any(backwards.accept(counter) for counter in range(WINDOW_SIZE))

"""The sliding window, compared with a set that keeps all counters."""

from __future__ import annotations

from fuzz.reader import Reader
from wyrmhole.datapath.replay import WINDOW_SIZE, ReplayWindow

_STEPS = (1, 2, 63, 64, WINDOW_SIZE - 1, WINDOW_SIZE, WINDOW_SIZE + 1, 1 << 20, 1 << 60)
_LIMIT = (1 << 64) - 1


class Model:
    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.greatest = -1

    def accept(self, counter: int) -> bool:
        if counter in self.seen or counter <= self.greatest - WINDOW_SIZE:
            return False
        self.seen.add(counter)
        self.greatest = max(self.greatest, counter)
        return True


def read_counter(reader: Reader, greatest: int) -> int:
    kind = reader.byte()
    step = _STEPS[kind % len(_STEPS)] if kind & 64 else kind & 63
    counter = reader.integer(8) if kind == 255 else greatest - step if kind & 128 else greatest + step
    return min(max(counter, 0), _LIMIT)


def TestOneInput(data: bytes) -> None:
    """`accept` and `would_accept` agree with the model (I9)."""
    reader, window, model = Reader(data), ReplayWindow(), Model()
    for _ in range(400):
        if reader.is_done:
            return
        counter = read_counter(reader, model.greatest)
        if reader.byte() & 7 == 7:
            for following in range(counter, min(counter + 1 + reader.byte(), _LIMIT)):
                assert window.accept(following) == model.accept(following), following
            continue
        could = window.would_accept(counter)
        expected = model.accept(counter)
        assert could == expected == window.accept(counter), counter
        assert window.greatest == model.greatest

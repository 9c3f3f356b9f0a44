"""Virtual time: one heap of all planned events, each a (time, place, call, arguments)."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator
from typing import Any

Call = Callable[..., object]
Arguments = tuple[Any, ...]


class Schedule:
    """The planned events.

    `now` is the world's time in ns; of two events at the same time, the first planned runs first.
    """

    def __init__(self, now: int) -> None:
        self.now = now
        self._heap: list[tuple[int, int, Call, Arguments]] = []
        self._order = itertools.count()

    def __len__(self) -> int:
        return len(self._heap)

    def at(self, when: int, call: Call, *arguments: object) -> None:
        heapq.heappush(self._heap, (max(when, self.now), next(self._order), call, arguments))

    def after(self, delay: int, call: Call, *arguments: object) -> None:
        self.at(self.now + delay, call, *arguments)

    def reserve(self, count: int) -> int:
        """Reserve `count` places in the order for `at_place`, before all events planned later.

        Return the first place.
        """
        first = next(self._order)
        self._order = itertools.count(first + count)
        return first

    def at_place(self, when: int, place: int, call: Call, *arguments: object) -> None:
        heapq.heappush(self._heap, (max(when, self.now), place, call, arguments))

    def run_until(self, end: int) -> None:
        heap = self._heap
        while heap and heap[0][0] <= end:
            self.now, _, call, arguments = heapq.heappop(heap)
            call(*arguments)
        self.now = max(self.now, end)

    def next_of(self, call: Call) -> Arguments | None:
        """Return the arguments of the next event if it is this call and due now, otherwise None."""
        heap = self._heap
        return heap[0][3] if heap and heap[0][0] == self.now and heap[0][2] == call else None

    def drop_next(self) -> None:
        heapq.heappop(self._heap)

    def planned(self, call: Call) -> Iterator[Arguments]:
        """Yield the arguments of each planned event that is this call."""
        return (arguments for _, _, each, arguments in self._heap if each == call)

    def keep_only(self, call: Call) -> None:
        """Cancel all events except those that are this call."""
        self._heap = [event for event in self._heap if event[2] == call]
        heapq.heapify(self._heap)

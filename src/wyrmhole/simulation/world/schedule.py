"""Virtual time: one heap of (time, order, call), in which all that will happen waits."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator
from typing import Any

Call = Callable[..., object]
Arguments = tuple[Any, ...]


class Schedule:
    """`now` is the world's time in ns. Of two events at one time, the one that was planned first happens first."""

    def __init__(self, now: int) -> None:
        self.now = now
        self._heap: list[tuple[int, int, Call, Arguments]] = []
        self._order = itertools.count()

    def __len__(self) -> int:
        return len(self._heap)

    def at(self, when: int, call: Call, *arguments: Any) -> None:
        heapq.heappush(self._heap, (max(when, self.now), next(self._order), call, arguments))

    def after(self, delay: int, call: Call, *arguments: Any) -> None:
        self.at(self.now + delay, call, *arguments)

    def reserve(self, count: int) -> int:
        """Keep so many places in the order free for `at_place`. Returns the first; events planned later come after."""
        first = next(self._order)
        self._order = itertools.count(first + count)
        return first

    def at_place(self, when: int, place: int, call: Call, *arguments: Any) -> None:
        heapq.heappush(self._heap, (max(when, self.now), place, call, arguments))

    def run_until(self, end: int) -> None:
        heap = self._heap
        while heap and heap[0][0] <= end:
            self.now, _, call, arguments = heapq.heappop(heap)
            call(*arguments)
        self.now = max(self.now, end)

    def next_of(self, call: Call) -> Arguments | None:
        """The arguments of the next event, if it is this call and due now."""
        heap = self._heap
        return heap[0][3] if heap and heap[0][0] == self.now and heap[0][2] == call else None

    def drop_next(self) -> None:
        heapq.heappop(self._heap)

    def planned(self, call: Call) -> Iterator[Arguments]:
        """The arguments of each event that is this call."""
        return (arguments for _, _, each, arguments in self._heap if each == call)

    def keep_only(self, call: Call) -> None:
        """Cancel all events but those that are this call."""
        self._heap = [event for event in self._heap if event[2] == call]
        heapq.heapify(self._heap)

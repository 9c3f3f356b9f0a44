"""Virtual time: the world's clock runs evenly, a host's boottime clock drifts and its wall clock jumps."""

from __future__ import annotations

from collections.abc import Callable

SECOND = 1_000_000_000
MILLISECOND = 1_000_000
YEAR = 365 * 24 * 3600 * SECOND
_MILLION = 1_000_000
EPOCH = 1_700_000_000 * SECOND
"""The initial value of every wall clock."""


class HostClock:
    """The clocks of one host.

    `world` returns the world's time in ns; `drift` is in parts per million, and a positive drift runs fast.
    """

    def __init__(self, world: Callable[[], int], drift: int = 0) -> None:
        self._world = world
        self.drift = drift
        self.wall_offset = EPOCH

    def boottime(self) -> int:
        return self._world() * (_MILLION + self.drift) // _MILLION

    def wall(self) -> int:
        return self.boottime() + self.wall_offset

    def world_time(self, boottime: int) -> int:
        """Return the first world time at which the host's clock shows at least `boottime`."""
        return -(-boottime * _MILLION // (_MILLION + self.drift))

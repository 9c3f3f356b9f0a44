"""Run wyrmholed with shorter timings, or with clocks that jump. Only tests use this.

usage: daemon.py TIMINGS SKEW [wyrmholed's arguments]

TIMINGS is a key of `TIMINGS`. SKEW is a file of two numbers, added to the boottime and the wall clock (nanoseconds,
each a signed 64-bit word in native byte order), or - for none. The file may change at any time. Send SIGUSR1 after a
jump of boottime: alarms that are due then ring, like the kernel's after a suspension.
"""

from __future__ import annotations

import functools
import mmap
import signal
import struct
import sys
from pathlib import Path

from wyrmhole.cli.daemon.main import main
from wyrmhole.device import assemble, clock, driver
from wyrmhole.protocol.constants import MILLISECOND, SECOND, Timings

TIMINGS = {
    "real": Timings(),
    "short": Timings(
        rekey_after=2 * SECOND,
        reject_after=3 * SECOND,
        rekey_attempt=90 * SECOND,
        rekey_timeout=200 * MILLISECOND,
        keepalive=500 * MILLISECOND,
    ),
    "hasty": Timings(
        rekey_after=80 * MILLISECOND,
        reject_after=1 * SECOND,
        rekey_attempt=90 * SECOND,
        rekey_timeout=50 * MILLISECOND,
        keepalive=200 * MILLISECOND,
    ),
}
SKEW = struct.Struct("=qq")


class Skew:
    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), SKEW.size, prot=mmap.PROT_READ)

    def boottime(self) -> int:
        return int(SKEW.unpack(self._map)[0])

    def wall(self) -> int:
        return int(SKEW.unpack(self._map)[1])


def skew_clocks(skew: Skew) -> None:
    class SkewedBoottime(clock.Boottime):
        is_boottime = False

        def __call__(self) -> int:
            return super().__call__() + skew.boottime()

    class SkewedClock(clock.SystemClock):
        boottime = SkewedBoottime()

        def wall(self) -> int:
            return super().wall() + skew.wall()

    class SkewedAlarm(clock.Alarm):
        def __init__(self) -> None:
            super().__init__()
            self._deadline: int | None = None
            signal.signal(signal.SIGUSR1, lambda *_: self.set(self._deadline))

        def set(self, deadline: int | None) -> None:
            self._deadline = deadline
            super().set(None if deadline is None else deadline - skew.boottime())

    setattr(assemble, "SystemClock", SkewedClock)  # noqa: B010
    setattr(driver, "Alarm", SkewedAlarm)  # noqa: B010


if __name__ == "__main__":
    timings, file, *arguments = sys.argv[1:]
    make_device = functools.partial(assemble.make_device, timings=TIMINGS[timings])
    setattr(assemble, "make_device", make_device)  # noqa: B010
    if file != "-":
        skew_clocks(Skew(Path(file)))
    sys.exit(main(arguments))

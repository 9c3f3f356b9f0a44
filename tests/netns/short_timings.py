"""Run wyrmholed with all session timings divided by sixty, so that rekeys take seconds. Only tests use this."""

from __future__ import annotations

import functools
import sys

from wyrmhole.cli.daemon.main import main
from wyrmhole.device import assemble
from wyrmhole.protocol.constants import MILLISECOND, SECOND, Timings

TIMINGS = Timings(
    rekey_after=2 * SECOND,
    reject_after=3 * SECOND,
    rekey_attempt=10 * SECOND,
    rekey_timeout=200 * MILLISECOND,
    keepalive=500 * MILLISECOND,
)

if __name__ == "__main__":
    setattr(assemble, "make_device", functools.partial(assemble.make_device, timings=TIMINGS))  # noqa: B010
    sys.exit(main())

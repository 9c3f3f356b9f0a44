"""wyrmholed with the protocol's times shortened together, for tests of renewal under load.

Rekey-After-Time 2 s, Reject-After-Time 6 s, Rekey-Attempt-Time 6 s, Rekey-Timeout 1 s, Keepalive-Timeout 1 s.
"""

from __future__ import annotations

import sys

from wyrmhole.cli import wyrmholed
from wyrmhole.protocol import interface
from wyrmhole.protocol.constants import SECOND, Timings

SHORT = Timings(2 * SECOND, 6 * SECOND, 6 * SECOND, SECOND, SECOND)

if __name__ == "__main__":
    setattr(interface, "Timings", lambda: SHORT)  # noqa: B010
    sys.exit(wyrmholed.main())

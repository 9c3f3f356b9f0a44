"""wyrmholed beside a thread that never lets go of the interpreter by itself. Only tests start this."""

from __future__ import annotations

import sys
import threading

from wyrmhole.cli.daemon.main import main


def spin() -> None:
    while True:
        pass


if __name__ == "__main__":
    threading.Thread(target=spin, daemon=True).start()
    # Its hold is then as long as that of any program: the portable engine would ask for a shorter one.
    sys.exit(main())

"""Run wyrmholed beside a thread that never releases the interpreter voluntarily. Only tests use this."""

from __future__ import annotations

import sys
import threading

from wyrmhole.cli.daemon.main import main


def spin() -> None:
    while True:
        pass


if __name__ == "__main__":
    threading.Thread(target=spin, daemon=True).start()
    # The native engine keeps Python's default switch interval; the portable engine would shorten it.
    sys.exit(main())

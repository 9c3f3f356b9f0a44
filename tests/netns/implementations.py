"""The daemons that the tests start, and how each is called."""

from __future__ import annotations

import os
import sys
from pathlib import Path

SUBJECT = os.environ.get("WYRMHOLE_TEST_IMPL", "wyrmhole")
"""What stands in the place of wyrmhole. Setting it to another implementation tests the tests."""

OTHERS = ("wireguard-go", "boringtun", "gotatun")
PEERS = (SUBJECT, *OTHERS)

WYRMHOLED = Path(sys.executable).with_name("wyrmholed")

COMMANDS: dict[str, tuple[str, ...]] = {
    "wyrmhole": (str(WYRMHOLED), "-f"),
    "wyrmhole-short": (sys.executable, str(Path(__file__).with_name("short_timings.py")), "-f"),
    "wireguard-go": ("wireguard", "-f"),
    "boringtun": ("boringtun-cli", "-f", "--disable-drop-privileges"),
    "gotatun": ("gotatun", "-f", "--disable-drop-privileges"),
}
"""Each in the foreground, with the interface name to come as the last word."""

ENVIRON = {"WG_PROCESS_FOREGROUND": "1", "LOG_LEVEL": "verbose"}

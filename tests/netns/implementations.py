"""The daemons that the tests start, and their command lines."""

from __future__ import annotations

import os
import sys
from pathlib import Path

SUBJECT = os.environ.get("WYRMHOLE_TEST_IMPL", "wyrmhole")
"""The implementation under test. Setting it to another one tests the tests."""

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
"""Commands that run in the foreground; the interface name is appended."""

ENVIRON = {"WG_PROCESS_FOREGROUND": "1", "LOG_LEVEL": "verbose"}

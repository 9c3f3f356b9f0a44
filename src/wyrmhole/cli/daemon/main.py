"""wyrmholed: the daemon that wg(8) and wg-quick(8) use instead of wireguard-go.

    wyrmholed [-f|--foreground] [--engine auto|portable|native] [--workers N] [--aead auto|aws-lc|vector]
              [--without WHAT[,WHAT]...] [--user NAME] [--no-sandbox] INTERFACE

The environment is that of wireguard-go: LOG_LEVEL (verbose, debug, error, silent), WG_PROCESS_FOREGROUND=1, WG_TUN_FD
(an open TUN), WG_UAPI_FD (a listening Unix socket). wg-quick passes no options, so each has a variable too:
WYRMHOLE_ENGINE, WYRMHOLE_WORKERS, WYRMHOLE_AEAD, WYRMHOLE_WITHOUT, WYRMHOLE_USER, WYRMHOLE_SANDBOX=off. It ends with
status 0 on SIGTERM and SIGINT, when the interface is deleted, and when its socket file is removed.

After the start, it gives up all rights that it does not need (see docs/security.md), and reports to a service manager.

This file only parses. What opens the interface is in `start`, and what runs the loop in `serve`: --help and --version
import neither.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from wyrmhole.cli.daemon.settings import parse_settings
from wyrmhole.errors import DeviceError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the daemon and return its status: 0 at a normal end, 1 for a missing resource or argument, 2 for a bad
    option."""
    settings = parse_settings(sys.argv[1:] if arguments is None else arguments, os.environ)
    from wyrmhole.cli.daemon.start import run

    try:
        return run(settings)
    except DeviceError as error:
        print(f"wyrmholed: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

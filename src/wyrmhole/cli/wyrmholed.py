"""`python -m wyrmhole.cli.wyrmholed`: the daemon, under the name by which `ps` and `pgrep` show it."""

import sys

from wyrmhole.cli.daemon.main import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())

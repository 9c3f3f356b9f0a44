"""`python -m wyrmhole` is the command `wyrmhole`."""

from __future__ import annotations

from wyrmhole.cli.main import main

if __name__ == "__main__":
    main()

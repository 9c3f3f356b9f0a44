"""Entry point of the command `wyrmhole`, which needs the extra `cli`.

This file only reports a missing extra; the command itself is in `wyrmhole.cli.app`.
"""

from __future__ import annotations

import sys

from wyrmhole.errors import how_to_install

MISSING = """wyrmhole: {name} is not installed: {remedy}
The daemon wyrmholed and the library do not need it."""

EXTRA = {"click", "segno"}


def main() -> None:
    """Run the command and exit with its status: 0 for success, 1 for a failure, 2 for wrong usage."""
    try:
        from wyrmhole.cli.app import command

        command(prog_name="wyrmhole")
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in EXTRA:
            raise
        print(MISSING.format(name=name, remedy=how_to_install("cli")), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()

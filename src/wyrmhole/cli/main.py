"""wyrmhole: the command for people. It needs the extra `cli`; this file only says so when that is missing.

The command itself begins in `wyrmhole.cli.app`.
"""

from __future__ import annotations

import sys

from wyrmhole.errors import how_to_install

MISSING = """wyrmhole: this command needs {name}, which is not installed: {remedy}
The daemon wyrmholed and the library work without it."""

EXTRA = {"click", "pyroute2", "segno"}


def main() -> None:
    """Ends the process: 0 done, 1 it failed, 2 wrong usage."""
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

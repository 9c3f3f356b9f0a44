"""Run one target under atheris: `python -m fuzz.one TARGET [libFuzzer options] [corpus folders]`."""

from __future__ import annotations

import importlib
import os
import sys


def main() -> None:
    # Imported here, because the corpus can be replayed without the fuzzer.
    atheris = importlib.import_module("atheris")
    name = sys.argv.pop(1)
    with atheris.instrument_imports(include=["wyrmhole", "fuzz.targets"]):
        target = importlib.import_module(f"fuzz.targets.{name}")
    # To merge, libFuzzer starts its program again, which would be this file without the name of the target.
    command = os.environ.get("FUZZ_COMMAND", sys.argv[0])
    atheris.Setup([command, *sys.argv[1:]], target.TestOneInput)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

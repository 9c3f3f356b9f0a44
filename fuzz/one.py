"""Runs one target under atheris: `python -m fuzz.one TARGET [libFuzzer options] [corpus folders]`."""

from __future__ import annotations

import importlib
import os
import sys


def main() -> None:
    # Only this file needs the fuzzer: the corpus is replayed without it.
    atheris = importlib.import_module("atheris")
    name = sys.argv.pop(1)
    with atheris.instrument_imports(include=["wyrmhole", "fuzz.targets"]):
        target = importlib.import_module(f"fuzz.targets.{name}")
    # To merge, libFuzzer starts its own program again, and would start this file without its target.
    command = os.environ.get("FUZZ_COMMAND", sys.argv[0])
    atheris.Setup([command, *sys.argv[1:]], target.TestOneInput)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

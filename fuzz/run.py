"""Run the targets one after the other, each from the corpus in the repository and the inputs found before.

    python -m fuzz.run [--seconds 60] [--runs 1000000] [--minimize] [TARGET ...]

New inputs are kept under ~/.cache/wyrmhole/fuzz. `--minimize` selects a few inputs that together reach all coverage and
writes them to the repository. A failing input is written to `fuzz/failures`, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fuzz import seeds, targets

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
FAILURES = HERE / "failures"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wyrmhole" / "fuzz"
LONGEST = 2048
"""The maximum size of an input in bytes. No target reads more."""
MOST_KEPT = 40
"""The maximum number of inputs per target in the repository, because every `make test` replays them."""
MEMORY_MIB = 2048


def names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(targets.__path__))


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("fuzz.run", description="Run the Python fuzz targets.")
    parser.add_argument("--seconds", type=int, default=0, help="time limit for each target (0: none)")
    parser.add_argument("--runs", type=int, default=-1, help="number of executions of each target")
    parser.add_argument(
        "--minimize", action="store_true", help="rewrite the corpus of the repository instead of fuzzing"
    )
    parser.add_argument("targets", nargs="*", default=names(), metavar="TARGET")
    given = parser.parse_args()
    unknown = set(given.targets) - set(names())
    if unknown:
        parser.error(f"unknown target {', '.join(sorted(unknown))}: choose from {', '.join(names())}")
    return given


def command_of(name: str) -> list[str]:
    return [sys.executable, "-m", "fuzz.one", name]


def call(name: str, *words: str, restart: str | None = None) -> subprocess.CompletedProcess[str]:
    environ = os.environ if restart is None else {**os.environ, "FUZZ_COMMAND": restart}
    return subprocess.run(
        [*command_of(name), *words],
        cwd=HERE.parent,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


@contextmanager
def seeded(name: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds.of(name):
            write(Path(folder), seed)
        yield Path(folder)


def write(folder: Path, data: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


def fuzz(name: str, seconds: int, runs: int) -> bool:
    """Fuzz one target and print one line. Return whether no input failed."""
    found = CACHE / name
    for folder in (found, FAILURES, CORPUS / name):
        folder.mkdir(parents=True, exist_ok=True)
    with seeded(name) as made:
        limits = [f"-max_total_time={seconds}", f"-runs={runs}", f"-max_len={LONGEST}", f"-rss_limit_mb={MEMORY_MIB}"]
        words = [
            *limits,
            "-timeout=20",
            f"-artifact_prefix={FAILURES / name}-",
            str(found),
            str(CORPUS / name),
            str(made),
        ]
        result = call(name, *words)
    done = re.search(r"Done (\d+) runs? in (\d+) second", result.stdout)
    if result.returncode or done is None:
        print(f"{name:16} FAILED, see {FAILURES}\n{result.stdout[-3000:]}", flush=True)
        return False
    coverage = re.findall(r"cov: (\d+)", result.stdout)
    print(
        f"{name:16} {done[1]:>9} executions in {done[2]:>5} s, coverage {coverage[-1] if coverage else '?'}", flush=True
    )
    return True


def minimize(name: str) -> bool:
    """Write a selection of the merged inputs to the repository. Return whether that succeeded."""
    with seeded(name) as made, tempfile.TemporaryDirectory() as folder:
        merged, restart = Path(folder) / "merged", Path(folder) / name
        merged.mkdir()
        restart.write_text(f'#!/bin/sh\nexec {shlex.join(command_of(name))} "$@"\n')
        restart.chmod(0o755)
        sources = [str(path) for path in (CORPUS / name, CACHE / name, made) if path.exists()]
        result = call(name, "-merge=1", f"-max_len={LONGEST}", str(merged), *sources, restart=str(restart))
        found = sorted((path.read_bytes() for path in merged.iterdir()), key=len)
    # Select evenly from small to large, because small inputs alone do not reach deep states.
    kept = found[:: max(1, -(-len(found) // MOST_KEPT))]
    if result.returncode or not kept:
        print(f"{name:16} FAILED\n{result.stdout[-3000:]}", flush=True)
        return False
    shutil.rmtree(CORPUS / name, ignore_errors=True)
    for data in {*kept, *seeds.of(name)}:
        write(CORPUS / name, data)
    print(f"{name:16} {len(kept)} inputs kept", flush=True)
    return True


def main() -> int:
    given = options()
    results = [minimize(name) if given.minimize else fuzz(name, given.seconds, given.runs) for name in given.targets]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Runs the targets, one after the other, each from the corpus in the repository and what was found before.

    python -m fuzz.run [--seconds 60] [--runs 1000000] [--minimize] [TARGET ...]

What is found is kept under ~/.cache/wyrmhole/fuzz; `--minimize` writes back to the repository the few inputs that reach
what all of them reach. An input that fails is written to `fuzz/failures`, and the status is 1.
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
"""Bytes of an input: what any target reads of it."""
MOST_KEPT = 40
"""Inputs of a target in the repository: they are replayed with every `make test`."""
MEMORY_MIB = 2048


def names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(targets.__path__))


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("fuzz.run", description="Run the Python fuzz targets.")
    parser.add_argument("--seconds", type=int, default=0, help="for each target; 0: no limit")
    parser.add_argument("--runs", type=int, default=-1, help="executions of each target")
    parser.add_argument("--minimize", action="store_true", help="rewrite the corpus of the repository instead")
    parser.add_argument("targets", nargs="*", default=names(), metavar="TARGET")
    given = parser.parse_args()
    unknown = set(given.targets) - set(names())
    if unknown:
        parser.error(f"no such target: {', '.join(sorted(unknown))}; there are {', '.join(names())}")
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
    """Whether all went well. Prints one line."""
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
    """Put few of the inputs that together reach everything into the repository."""
    with seeded(name) as made, tempfile.TemporaryDirectory() as folder:
        merged, restart = Path(folder) / "merged", Path(folder) / name
        merged.mkdir()
        restart.write_text(f'#!/bin/sh\nexec {shlex.join(command_of(name))} "$@"\n')
        restart.chmod(0o755)
        sources = [str(path) for path in (CORPUS / name, CACHE / name, made) if path.exists()]
        result = call(name, "-merge=1", f"-max_len={LONGEST}", str(merged), *sources, restart=str(restart))
        found = sorted((path.read_bytes() for path in merged.iterdir()), key=len)
    # Evenly from small to large: the small ones alone would never get deep.
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

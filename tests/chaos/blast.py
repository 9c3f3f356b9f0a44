"""Floods of prebuilt frames, sent by the benchmark's blaster."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from tests.netns.host import Host, end

BLASTER = Path(__file__).parents[2] / "bench" / "blaster.py"


def _load() -> ModuleType:
    """Load the blaster by path, because `bench` is not a package."""
    spec = spec_from_file_location("blaster", BLASTER)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_blaster = _load()


def mac_of(host: Host, link: str) -> bytes:
    (status,) = json.loads(host.ip("-j", "link", "show", link))
    return bytes.fromhex(status["address"].replace(":", ""))


def frame(macs: tuple[bytes, bytes], source: tuple[str, int], destination: tuple[str, int], payload: bytes) -> bytes:
    made: bytes = _blaster.udp_frame(macs, source, destination, payload)
    return made


def blast(host: Host, link: str, frames: Iterable[bytes], file: Path, *, rate: float, seconds: float) -> int:
    """Send the frames repeatedly, and return how many were sent."""
    with blasting(host, link, frames, file, rate=rate, seconds=seconds) as process:
        assert process.stdout is not None
        return int(process.stdout.read().split()[0])


@contextmanager
def blasting(
    host: Host, link: str, frames: Iterable[bytes], file: Path, *, rate: float, seconds: float
) -> Iterator[subprocess.Popen[str]]:
    """Do the same in the background; the body runs once the flood has started."""
    _blaster.write_frames(file, frames)
    words = (sys.executable, str(BLASTER), link, str(file), str(rate), str(seconds))
    process = host.spawn(*words, output=subprocess.PIPE)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        end(process)

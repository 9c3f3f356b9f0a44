"""Which files a process may read under Landlock, tried on the running kernel."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from wyrmhole.sandbox import landlock
from wyrmhole.system import libc

CONFINED = """
import errno, os, sys, threading
from wyrmhole.sandbox.confine import drop_privileges
from wyrmhole.sandbox.landlock import allow_reading_only, needed_paths
drop_privileges(None)
try:
    allow_reading_only([*needed_paths(), *sys.argv[1:]])
except OSError:
    sys.exit(77)
def fails(call):
    try: call()
    except OSError as error: return error.errno
"""


def confined(program: str, readable: str = "/usr/lib") -> None:
    words = [sys.executable, "-c", CONFINED + program, readable]
    result = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, cwd="/")
    if result.returncode == 77:
        pytest.skip("this kernel has no Landlock")
    assert (result.returncode, result.stderr) == (0, "")


def test_files_of_the_host_are_no_longer_readable(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    confined(f"""
for path in ("/etc/passwd", "/proc/1/status", {str(tmp_path / "secret")!r}):
    assert fails(lambda: open(path).read()) == errno.EACCES, path
    assert fails(lambda: open("/proc/self/root" + path).read()) == errno.EACCES, path
seen = []
thread = threading.Thread(target=lambda: seen.append(fails(lambda: open("/etc/passwd"))))
thread.start(); thread.join()
assert seen == [errno.EACCES], "threads inherit it"
""")


def test_readable_folder_cannot_be_changed(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("x")
    confined(
        f"""
folder = {str(tmp_path)!r}
attempts = (
    lambda: open(folder + "/kept", "w"), lambda: open(folder + "/new", "w"), lambda: os.unlink(folder + "/kept"),
    lambda: os.mkdir(folder + "/d"), lambda: os.symlink("x", folder + "/l"), lambda: os.truncate(folder + "/kept", 0),
)
assert open(folder + "/kept").read() == "x"
assert [fails(attempt) for attempt in attempts] == [errno.EACCES] * len(attempts)
""",
        readable=str(tmp_path),
    )
    assert os.listdir(tmp_path) == ["kept"]
    assert (tmp_path / "kept").read_text() == "x"


def test_interpreter_still_works() -> None:
    """Late imports of the standard library and of packages succeed, and tracebacks can read sources."""
    confined("""
import colorsys, decimal, sqlite3, time, traceback
import wyrmhole.simulation.runs.run, cryptography.x509
time.tzset(), time.localtime()
assert "CapEff" in open("/proc/self/status").read()
try: decimal.Decimal("x")
except decimal.InvalidOperation as error: traceback.format_exception(error)
os.close(os.open("/dev/null", os.O_RDONLY))
""")


def test_root_and_current_directory_are_never_readable_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", "/", str(tmp_path), "/opt/packages"])
    monkeypatch.setenv("LD_LIBRARY_PATH", ":/opt/libraries")
    paths = landlock.needed_paths()
    assert not {"", "/", str(tmp_path), os.getcwd()} & set(paths)
    assert {"/opt/packages", "/opt/libraries", "/usr/lib"} <= set(paths)
    assert str(Path(landlock.__file__).parents[1]) in paths


@pytest.mark.parametrize(("version", "size", "bits"), [(1, 8, 13), (2, 8, 14), (3, 8, 15), (4, 16, 15), (9, 24, 16)])
def test_older_kernel_gets_only_the_rights_that_it_knows(
    monkeypatch: pytest.MonkeyPatch, version: int, size: int, bits: int
) -> None:
    asked: list[tuple[int, int]] = []

    def call(number: int, *arguments: object) -> int:
        if number == 444 and arguments[0] is None:
            return version
        if number == 444:
            attributes, length = arguments[0], arguments[1]
            assert isinstance(attributes, bytes) and isinstance(length, int)
            asked.append((length, int.from_bytes(attributes[:8], sys.byteorder)))
            return os.open("/dev/null", os.O_RDONLY)
        return 0

    monkeypatch.setattr(libc, "syscall", call)
    assert landlock.allow_reading_only([]) == version
    assert asked == [(size, (1 << bits) - 1)]

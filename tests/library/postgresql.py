"""A real PostgreSQL server on a host of a test. Its cluster exists only during the test."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.netns.host import Host, end, until

USER, PASSWORD = "ada", "lovelace"
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
"""The server refuses to run as root."""


def programs() -> Path:
    """Return the folder of `initdb` and `postgres`, which is not in PATH on Debian."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: float(path.parts[4]))
    if found:
        return found[-1].parent
    if (other := shutil.which("postgres")) is not None:
        return Path(other).parent
    if os.environ.get("CI") == "true":
        pytest.fail("CI must have PostgreSQL: run `make test-deps`")
    pytest.skip("no PostgreSQL: run `make test-deps`")


@contextmanager
def database(host: Host, *addresses: str) -> Iterator[None]:
    """Run a server on port 5432 of the host. `USER` can log in with `PASSWORD` from any address."""
    tools, folder = programs(), Path(tempfile.mkdtemp(prefix="wyrmhole-postgresql-"))
    try:
        _make_cluster(tools, folder)
        settings = {"listen_addresses": ",".join(addresses), "unix_socket_directories": "", "fsync": "off"}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with (folder / "log").open("w") as log:
            process = host.spawn(*NOBODY, str(tools / "postgres"), "-D", str(folder / "data"), *options, output=log)
        try:
            until(lambda: process.poll() is not None or "is ready to accept" in log_of(folder), "PostgreSQL is ready")
            assert process.poll() is None, log_of(folder)
            yield
        finally:
            end(process)
    finally:
        shutil.rmtree(folder)


def log_of(folder: Path) -> str:
    return (folder / "log").read_text()


def _make_cluster(tools: Path, folder: Path) -> None:
    (folder / "password").write_text(PASSWORD)
    for path in (folder, folder / "password"):
        shutil.chown(path, 65534, 65534)
    words = (
        *NOBODY, str(tools / "initdb"), "-D", str(folder / "data"), "-U", USER, "--auth=scram-sha-256",
        f"--pwfile={folder / 'password'}", "--no-sync", "--locale=C",
    )  # fmt: skip
    done = subprocess.run(words, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with (folder / "data" / "pg_hba.conf").open("a") as rules:
        rules.write("host all all 0.0.0.0/0 scram-sha-256\nhost all all ::/0 scram-sha-256\n")

"""The same tests as a user without privileges, and errors of restricted systems.

The user is 65534 (nobody), who has no capability and cannot gain any. As on most systems, every user may open
/dev/net/tun, which is in a mount namespace of the test.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cryptography
import pytest

import wyrmhole
from tests.support.nobody import NOBODY, interpreter

pytestmark = pytest.mark.network

ROOT = Path(__file__).parents[2]
WORLD_TUN = 'mount -t tmpfs none /dev/net && mknod -m 666 /dev/net/tun c 10 200 && exec "$@"'
OPEN = """
import asyncio, sys, wyrmhole
try:
    asyncio.run(wyrmhole.open(sys.argv[1]).open())
except OSError as error:
    print(type(error).__name__, error.stage, error)
"""
CONFIG = "[Interface]\nPrivateKey = wGnWAvYZK0gN0cTKl0Vxvxgk8LSBVUBTlKp2w0mTGHo=\nAddress = 10.66.0.1/24\n"


def as_nobody(*command: str, mount: str = WORLD_TUN) -> subprocess.CompletedProcess[str]:
    paths = {str(Path(module.__file__ or "").parents[1]) for module in (wyrmhole, cryptography, pytest)}
    return subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", mount, "sh", *NOBODY, *command],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": ":".join([*sorted(paths), str(ROOT)]),
            "WYRMHOLE_TESTS_AS_USER": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": "/nonexistent",
        },
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.parametrize(
    "name",
    [
        "sockets/test_verbs.py",
        "test_ends.py",
        "stacks/test_helper.py",
        "stacks/test_kernels.py",
        "test_endpoint_names.py",
        "test_peers.py",
        "test_sync.py",
        "test_one_key.py",
        "common/test_explanations.py",
        "diagnosis/test_diagnosis.py",
    ],
)
def test_library_needs_no_privileges(name: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents[:3]:
        parent.chmod(0o755)
    done = as_nobody(
        interpreter(), "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'mine'}",
        *map(str, (ROOT / "tests" / "library").rglob(name)),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


@pytest.mark.parametrize(
    ("mount", "stage", "expected"),
    [
        ('mount -t tmpfs none /dev/net && exec "$@"', "open", "there is no /dev/net/tun"),
        (WORLD_TUN.replace("666", "600"), "open", "not readable and writable"),
        (WORLD_TUN.replace("c 10 200", "c 10 199"), "open", "module is not loaded"),
    ],
    ids=["no device", "device of root", "no driver"],
)
def test_missing_or_private_tun_device_is_reported(mount: str, stage: str, expected: str) -> None:
    done = as_nobody(interpreter(), "-c", OPEN, CONFIG, mount=mount)
    assert done.stdout.startswith(f"NamespaceError {stage} "), done.stdout + done.stderr
    assert expected in done.stdout
    assert "no traffic bypasses it" in done.stdout


def test_disabled_user_namespaces_are_reported() -> None:
    """The test makes a user namespace in which no further ones are allowed."""
    inside = "echo 0 > /proc/sys/user/max_user_namespaces && exec " + '"$@"'
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "sh", "-c", inside, "sh", sys.executable, "-c", OPEN, CONFIG],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.startswith("NamespaceError unshare "), done.stdout + done.stderr
    assert "max_user_namespaces" in done.stdout

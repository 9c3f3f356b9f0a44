"""A key in use is known within one network namespace. Apart from `test_one_key.py`, because it needs rights."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.library.one_key import HOLD, warnings
from tests.support.namespaces import Namespace
from tests.support.tunnels import generate
from wyrmhole.library.one_key import claim


@pytest.mark.network
def test_names_are_those_of_a_network_namespace(caplog: pytest.LogCaptureFixture) -> None:
    """Another process in another namespace is on another host, for a peer; in this process the table knows."""
    key = generate().public_key()
    other = Namespace()
    try:
        with other.entered():
            process = subprocess.Popen(
                [sys.executable, "-c", HOLD, key.raw.hex()], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        with process:
            assert process.stdout is not None
            process.stdout.readline()
            held = claim(key)
            assert not warnings(caplog)
            with other.entered():
                claim(key).release()
            assert len(warnings(caplog)) == 1
            held.release()
            process.kill()
    finally:
        other.delete()

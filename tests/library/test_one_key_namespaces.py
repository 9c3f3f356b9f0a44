"""A key in use is known within one network namespace. Separate from `test_one_key.py`, because this needs root."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.library.one_key import HOLD, warnings
from tests.support.namespaces import Namespace
from tests.support.tunnels import generate
from wyrmhole.library.one_key import claim


@pytest.mark.network
def test_claim_is_visible_within_one_network_namespace(caplog: pytest.LogCaptureFixture) -> None:
    """To a peer, a process in another namespace is another host. Within this process, a table is used."""
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

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.cli.host import Host


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host(f"wyrm-cli-{os.getpid()}", f"wyc{os.getpid()}")
    subprocess.run(["ip", "netns", "add", host.namespace], check=True)
    try:
        host.get("ip", "link", "set", "lo", "up")
        yield host
        host.end()
    finally:
        subprocess.run(["ip", "netns", "del", host.namespace], check=True)

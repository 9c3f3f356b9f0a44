"""Both kinds of tunnels for a scenario: a namespace of the program's own, and an interface of the host."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.support import tunnels
from tests.support.namespaces import Namespace

STACKS = ("netns",) if "WYRMHOLE_TESTS_AS_USER" in os.environ else ("netns", "tun")
"""An interface needs rights."""


@pytest.fixture(params=STACKS)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """What the near end of `tunnels` is made with, by the name of its stack.

    The host of the interface is a namespace of the test's own: this thread is in it, and so is every thread that the
    scenario starts.
    """
    if request.param == "netns":
        yield request.param
        return
    host = Namespace()
    try:
        with host.entered():
            monkeypatch.setitem(tunnels.NEAR_OPTIONS, "device", "tun")
            yield request.param
    finally:
        host.delete()

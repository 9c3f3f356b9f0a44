"""Both kinds of tunnels for a scenario: in a namespace of the program, and as an interface of the host."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.support import tunnels
from tests.support.namespaces import Namespace

STACKS = ("netns",) if "WYRMHOLE_TESTS_AS_USER" in os.environ else ("netns", "tun")
"""The interface requires root."""


@pytest.fixture(params=STACKS)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Set the options of the near end of `tunnels`, by the name of its stack.

    The host of the interface is a new namespace. This thread and all threads that the scenario starts are in it.
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

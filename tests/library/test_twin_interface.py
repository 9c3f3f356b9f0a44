"""`wyrmhole.Tunnel` and `wyrmhole.sync.Tunnel` have the same methods and arguments, except for a written list."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from wyrmhole.library import opening, peers, sync, tunnel

ASYNC_ONLY = {
    "create_connection": "its twin has the arguments of socket.create_connection, as blocking code expects them",
    "create_datagram_endpoint": "asyncio's own: blocking code takes `socket`",
    "create_server": "its twin has the arguments of socket.create_server",
    "connect_socket": "its twin is another name for create_connection",
    "explain": "for adapters, which use the tunnel itself",
    "listen": "its twin is create_server",
    "open_connection": "asyncio's own: blocking code takes `create_connection`",
    "open_socket": "`socket` may block in blocking code",
    "stack": "for adapters and services",
    "start_server": "asyncio's own: blocking code takes `create_server`",
    "when_ended": "for `sync` itself",
}
SYNC_ONLY = {
    "asynchronous": "the tunnel itself",
    "connect_socket": "see above",
    "create_connection": "see above",
    "create_server": "see above",
    "loop": "the loop that the tunnel belongs to",
}
"""Names in one twin only, or with different arguments, each with its reason."""


def public(kind: type) -> dict[str, Any]:
    """Return public methods and properties by name."""
    return {name: value for name, value in inspect.getmembers(kind) if not name.startswith("_")}


def shape(method: Callable[..., Any]) -> list[tuple[str, object, object]]:
    """Return name, kind and default of each argument."""
    return [(each.name, each.kind, each.default) for each in inspect.signature(method).parameters.values()]


def compared(left: type, right: type, ignored: set[str]) -> None:
    ours, theirs = public(left), public(right)
    assert set(ours) - ignored == set(theirs) - ignored
    for name in set(ours) - ignored:
        if callable(ours[name]):
            assert shape(ours[name]) == shape(theirs[name]), name


def test_tunnels_have_the_same_names_and_arguments() -> None:
    compared(tunnel.Tunnel, sync.Tunnel, {*ASYNC_ONLY, *SYNC_ONLY, "config", "peers"})


def test_config_and_peers_exist_on_both() -> None:
    """In one twin they are attributes of the instance, which the class does not show."""
    for kind in (tunnel.Tunnel, sync.Tunnel):
        source = inspect.getsource(kind.__init__) + " ".join(public(kind))
        assert "config" in source and "peers" in source


def test_each_exception_is_still_needed() -> None:
    ours, theirs = public(tunnel.Tunnel), public(sync.Tunnel)
    for name in {*ASYNC_ONLY} - {"stack"}:
        assert name in ours and (name not in theirs or shape(ours[name]) != shape(theirs[name])), name
    for name in {*SYNC_ONLY} - {"asynchronous"}:
        assert name in theirs and (name not in ours or shape(ours[name]) != shape(theirs[name])), name


@pytest.mark.parametrize("name", ["Peer", "Peers"])
def test_peers_have_the_same_names_and_arguments(name: str) -> None:
    compared(getattr(peers, name), getattr(sync, name), {"name", "public_key"})


def test_both_open_with_the_same_arguments() -> None:
    assert shape(opening.open) == shape(sync.open)

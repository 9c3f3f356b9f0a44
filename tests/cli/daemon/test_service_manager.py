"""Notifications for a service manager, on a real socket and with a loop that the test drives."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from wyrmhole.cli.daemon.service_manager import ALIVE, READY, ServiceManager

PID = 4711


class Manager:
    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.settimeout(20)

    def hear(self) -> str:
        return self.socket.recv(4096).decode()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(str(tmp_path / "notify"))
    with manager.socket:
        yield manager


def environ_for(manager: Manager, **more: str) -> dict[str, str]:
    return {"NOTIFY_SOCKET": manager.socket.getsockname(), **more}


def test_state_is_sent_and_the_variable_removed(manager: Manager) -> None:
    environ = environ_for(manager, WATCHDOG_USEC="3000000", WATCHDOG_PID=str(PID), HOME="/")
    service = ServiceManager.take(environ, PID)
    service.report(READY)
    assert manager.hear() == "READY=1"
    assert service.watchdog_seconds == 3.0
    assert environ == {"HOME": "/"}
    service.close()


def test_address_may_be_abstract(manager: Manager) -> None:
    with Manager(f"\0wyrmhole-test-{id(manager)}").socket as abstract:
        name = abstract.getsockname().decode().replace("\0", "@")
        service = ServiceManager.take({"NOTIFY_SOCKET": name}, PID)
        service.report(READY)
        assert abstract.recv(100) == b"READY=1"
        service.close()


@pytest.mark.parametrize("address", ["", "vsock:2:1", "/nobody/listens/here"])
def test_missing_manager_is_ignored(address: str) -> None:
    service = ServiceManager.take({"NOTIFY_SOCKET": address}, PID)
    service.report(READY)
    service.close()
    service.close()


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(PID + 1)},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "-1"},
        {"WATCHDOG_USEC": "٣"},
        {"WATCHDOG_USEC": "soon"},
    ],
)
def test_watchdog_of_another_process_is_not_fed(manager: Manager, variables: dict[str, str]) -> None:
    service = ServiceManager.take(environ_for(manager, **variables), PID)

    async def prove() -> None:
        raise AssertionError("no proof was requested")

    asyncio.run(service.feed(prove))
    service.close()


def test_watchdog_is_fed_only_by_proofs(manager: Manager) -> None:
    """Two round trips through the engine succeed, the third never ends."""
    rounds = 0
    stuck = asyncio.Event()

    async def prove() -> None:
        nonlocal rounds
        rounds += 1
        if rounds > 2:
            stuck.set()
            await asyncio.Event().wait()

    async def scenario() -> None:
        service = ServiceManager.take(environ_for(manager, WATCHDOG_USEC="3000"), PID)
        feeding = asyncio.ensure_future(service.feed(prove))
        await stuck.wait()
        feeding.cancel()
        service.report("the end")
        service.close()

    asyncio.run(scenario())
    assert [manager.hear() for _ in range(3)] == [ALIVE, ALIVE, "the end"]

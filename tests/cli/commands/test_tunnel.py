"""`proxy` and `forward` with a fake library: the calls that they make on a tunnel, and how they end."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import wyrmhole
from tests.cli.wyrmhole_command import invoke, refusal
from wyrmhole.cli.app import Failure
from wyrmhole.cli.commands.tunnel import read_users
from wyrmhole.errors import OpenProxyError


class FakeService:
    addresses = (("127.0.0.1", 1080), ("::1", 1080))

    async def wait_closed(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.Event().wait()


class FakeTunnel:
    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []
        self.is_closed = False

    async def proxy(self, listen: str, **options: object) -> FakeService:
        self.asked.append(("proxy", listen, options))
        return FakeService()

    async def forward(self, listen: str, target: str, **options: object) -> FakeService:
        if listen == "nonsense":
            raise ValueError("nonsense is not HOST:PORT")
        self.asked.append(("forward", listen, target, options))
        return FakeService()


@pytest.fixture
def tunnel(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTunnel]:
    tunnel = FakeTunnel()

    @asynccontextmanager
    async def opened(config: wyrmhole.Config) -> Any:
        assert config.peers == []
        yield tunnel
        tunnel.is_closed = True

    monkeypatch.setattr(wyrmhole, "open", opened, raising=False)
    yield tunnel


@pytest.fixture
def conf(tmp_path: Path) -> str:
    path = tmp_path / "wg0.conf"
    path.touch(0o600)
    path.write_text("[Interface]\n")
    return str(path)


def test_proxy_is_opened_announced_and_closed_by_a_signal(tunnel: FakeTunnel, conf: str, tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.write_text("# who\nann:a:b\n\nbob:secret\n")
    result = invoke("proxy", conf, "--listen", "[::]:1080", "--users", str(users))
    assert result.exit_code == 0 and tunnel.is_closed
    assert result.stderr == "listening on 127.0.0.1:1080\nlistening on [::1]:1080\n"
    options = {"users": {"ann": "a:b", "bob": "secret"}, "allow_open": False}
    assert tunnel.asked == [("proxy", "[::]:1080", options)]


@pytest.mark.parametrize(("more", "proto"), [([], "tcp"), (["--udp"], "udp")])
def test_forward_passes_its_arguments_to_the_tunnel(tunnel: FakeTunnel, conf: str, more: list[str], proto: str) -> None:
    assert invoke("forward", conf, "127.0.0.1:5432", "db.internal:5432", *more).exit_code == 0
    assert tunnel.asked == [("forward", "127.0.0.1:5432", "db.internal:5432", {"proto": proto})]


def test_error_of_the_library_is_one_line(tunnel: FakeTunnel, conf: str) -> None:
    assert refusal("forward", conf, "nonsense", "b:1") == "wyrmhole: nonsense is not HOST:PORT\n"


def test_refusal_of_an_open_proxy_names_the_options_of_the_command(
    tunnel: FakeTunnel, conf: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(listen: str, **_: object) -> None:
        raise OpenProxyError(listen)

    monkeypatch.setattr(tunnel, "proxy", refuse, raising=False)
    text_printed = refusal("proxy", conf, "--listen", "0.0.0.0:1080")
    assert "refusing to open a proxy on 0.0.0.0:1080: without passwords" in text_printed
    assert "(list users with --users FILE, listen on 127.0.0.1, or pass --allow-open to override)" in text_printed


@pytest.mark.parametrize("text", ["ann\n", ":secret\n", "ann:\n", ""])
def test_invalid_users_are_refused_without_repeating_passwords(tmp_path: Path, text: str) -> None:
    path = tmp_path / "users"
    path.write_text(text)
    with pytest.raises(Failure) as caught:
        read_users(path)
    assert "secret" not in caught.value.message

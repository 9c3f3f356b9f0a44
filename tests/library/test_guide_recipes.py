"""Recipes for frameworks and the tables of docs/guide.md: blocks run unchanged, exceptions raised as listed.

FastAPI, gunicorn and pytest are real. The notebook is simulated: like IPython, the test compiles each cell with
top-level await, and runs all cells on one loop.
"""

from __future__ import annotations

import ast
import asyncio
import errno
import fcntl
import importlib.util
import re
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

import wyrmhole
from tests.library.guide import BLOCKS, GUIDE, RECIPES
from tests.support.tunnels import FAR_V4, NEAR_V4, echo, far_config, generate, near_config, run, tunnels

SECOND_V4 = "10.66.0.3"
"""The address of a second worker, which has its own key."""
APPLICATION = """
tunnel = None


def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    with tunnel.create_connection(("10.66.0.2", 7000), timeout=10) as sock:
        sock.sendall(sock.getsockname()[0].encode())
        return [sock.recv(100)]
"""


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def run_cell(name: str, names: dict[str, Any]) -> None:
    code = compile(BLOCKS[name], name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(code, names)
    if result is not None:
        await result


def test_every_recipe_of_the_guide_is_run() -> None:
    assert set(RECIPES) <= set(BLOCKS)


@pytest.mark.network
def test_pytest_fixture_of_the_guide_works(tmp_path: Path) -> None:
    (tmp_path / "test_block.py").write_text(BLOCKS["pytest"])
    words = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", "test_block.py")
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert "1 passed" in done.stdout, done.stdout


@pytest.mark.network
def test_repeated_notebook_cell_closes_the_former_tunnel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "wg0.conf"
    path.write_text(near_config(generate(), generate(), 9))
    monkeypatch.chdir(tmp_path)

    async def scenario() -> None:
        names: dict[str, Any] = {"wyrmhole": wyrmhole}
        await run_cell("notebook", names)
        first = names["tunnel"]
        assert not first.closed
        await run_cell("notebook", names)
        assert first.closed
        await names["tunnel"].close()

    run(scenario())


@pytest.mark.network
def test_application_has_one_tunnel_for_its_lifetime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastapi", reason="the framework of the recipe")
    (tmp_path / "site_app.py").write_text(BLOCKS["fastapi"])
    monkeypatch.chdir(tmp_path)

    async def scenario() -> None:
        near_key, far_key = generate(), generate()
        async with wyrmhole.open(far_config(far_key, near_key)) as far:
            Path("wg0.conf").write_text(near_config(near_key, far_key, far.stats().listen_port))
            app = load(tmp_path / "site_app.py").app
            transport = httpx.ASGITransport(app)
            async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport) as client:
                answer = await client.get("http://site/ping")
                assert 0 < answer.json()["seconds"] < 10
                tunnel = app.state.tunnel
            assert tunnel.closed

    run(scenario())


def write_keys(folder: Path, far_port: int, first: Any, second: Any, far: Any) -> None:
    """Write two configurations: for the near end's usual address, and for SECOND_V4."""
    folder.mkdir()
    text = near_config(first, far, far_port)
    (folder / "1.conf").write_text(text)
    text = near_config(second, far, far_port)
    (folder / "2.conf").write_text(text.replace(f"{NEAR_V4}/24, fd66::1/64", f"{SECOND_V4}/24"))


@pytest.mark.network
def test_gunicorn_worker_takes_an_unused_key(tmp_path: Path) -> None:
    pytest.importorskip("gunicorn", reason="the server of the recipe")
    (tmp_path / "keys.py").write_text(BLOCKS["workers"])
    (tmp_path / "gunicorn.conf.py").write_text(BLOCKS["gunicorn"])
    (tmp_path / "application.py").write_text(APPLICATION)

    async def scenario() -> None:
        first, second, far_key = generate(), generate(), generate()
        more = f"[Peer]\nPublicKey = {second.public_key().base64()}\nAllowedIPs = {SECOND_V4}/32\n"
        async with wyrmhole.open(far_config(far_key, first) + more) as far:
            write_keys(tmp_path / "keys", far.stats().listen_port, first, second, far_key)
            async with await far.start_server(echo, port=7000):
                with (tmp_path / "keys" / "1.conf").open() as used:
                    fcntl.flock(used, fcntl.LOCK_EX)  # held like by another worker
                    assert await ask_gunicorn(tmp_path) == SECOND_V4

    run(scenario(), patience=60)


async def ask_gunicorn(folder: Path) -> str:
    """Run the application with one worker, and return the body of one page."""
    words = ("-m", "gunicorn", "-w", "1", "-b", "unix:site.sock", "application:application")
    server = await asyncio.create_subprocess_exec(
        sys.executable, *words, cwd=folder, stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL
    )
    try:
        assert server.stderr is not None
        log = ""
        # The arbiter listens before its workers run, so an early request waits in the kernel.
        while "Listening at" not in log:
            line = await server.stderr.readline()
            assert line, log
            log += line.decode()
        async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(folder / "site.sock"))) as client:
            answer = await client.get("http://site/", timeout=30)
        assert answer.status_code == 200, log
        return answer.text
    finally:
        with suppress(ProcessLookupError):
            server.terminate()
        await server.communicate()


def test_claim_is_refused_if_all_configurations_are_in_use(tmp_path: Path) -> None:
    (tmp_path / "claims.py").write_text(BLOCKS["workers"])
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "1.conf").touch()
    module = load(tmp_path / "claims.py")
    assert module.claim_config(tmp_path / "keys").name == "1.conf"
    with pytest.raises(RuntimeError, match="is in use"):
        module.claim_config(tmp_path / "keys")


@pytest.mark.network
def test_output_of_a_tunnel_has_the_form_in_the_guide(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario() -> None:
        async with tunnels() as ends:
            await run_cell("stats", {"tunnel": ends.near})

    run(scenario())
    printed = capsys.readouterr().out.splitlines()[0]
    (shown,) = re.findall(r"print\(tunnel\)  # (.*)", BLOCKS["stats"])
    assert printed.replace("portable", "native") == shown


# The table "Exceptions by cause": the text of a row, and code that raises its exception.

Cause = Callable[[wyrmhole.Tunnel], Awaitable[object]]


async def open_with(config: Any, **options: Any) -> None:
    async with wyrmhole.open(config, **options):
        pass


async def use_after_close(tunnel: wyrmhole.Tunnel) -> None:
    await tunnel.close()
    await tunnel.open_connection(FAR_V4, 7000)


async def close_in_use(tunnel: wyrmhole.Tunnel) -> None:
    """The far end's port 7000 accepts connections and sends nothing."""
    reader, _ = await tunnel.open_connection(FAR_V4, 7000, timeout=10)
    await tunnel.close()
    await reader.read()


async def take_a_port_twice(tunnel: wyrmhole.Tunnel) -> None:
    text = near_config(generate(), generate(), 9, f"ListenPort = {tunnel.stats().listen_port}\n")
    await open_with(text)


CAUSES: dict[str, tuple[type[BaseException], Cause]] = {
    "the file does not exist": (FileNotFoundError, lambda _: open_with("/nowhere/wg0.conf")),
    "a line of the configuration is invalid": (
        wyrmhole.ConfigFileError,
        lambda _: open_with("[Interface]\nPrivateKey = short\n"),
    ),
    "an argument is invalid": (ValueError, lambda _: open_with("[Interface]\n", stack="none")),
    "the `ListenPort` is in use": (wyrmhole.ConfigError, take_a_port_twice),
    "no peer's endpoint name resolves": (
        socket.gaierror,
        lambda _: open_with(near_config(generate(), generate(), 9, host="nobody.invalid")),
    ),
    "the host inside refuses": (ConnectionRefusedError, lambda tunnel: tunnel.open_connection(FAR_V4, 81, timeout=10)),
    "no answer": (TimeoutError, lambda tunnel: tunnel.open_connection("10.66.0.99", 80, timeout=0.2)),
    "in no peer's `AllowedIPs`": (OSError, lambda tunnel: tunnel.open_connection("192.0.2.1", 80, timeout=10)),
    "or `DNS =` is missing": (socket.gaierror, lambda tunnel: tunnel.open_connection("web.internal", 80, timeout=10)),
    "a socket was in use": (ConnectionAbortedError, close_in_use),
    "a method was called": (wyrmhole.TunnelError, use_after_close),
}


@pytest.mark.network
@pytest.mark.parametrize("cause", CAUSES)
def test_cause_raises_the_exception_in_the_guide(cause: str) -> None:
    kind, provoke = CAUSES[cause]

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def scenario() -> None:
        async with tunnels() as ends, await ends.far.start_server(silent, port=7000):
            with pytest.raises(kind) as caught:
                await provoke(ends.near)
            if kind is OSError:
                assert caught.value.errno == errno.EHOSTUNREACH  # type: ignore[attr-defined]

    run(scenario())
    (row,) = [line for line in GUIDE.splitlines() if line.startswith("| ") and cause in line.split(" | ")[0]]
    assert kind.__name__ in row

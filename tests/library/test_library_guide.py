"""The verbs: blocks of docs/guide.md and examples, run unchanged."""

from __future__ import annotations

import ast
import asyncio
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import wyrmhole
from tests.library.guide import BLOCKS, CHECKS, GUIDE, RECIPES, ROOT
from tests.support.tunnels import echo, far_config, generate, near_config, run

INSIDE = ("streams", "server", "datagrams", "sockets", "peers", "events")
"""Blocks that need an open `tunnel`."""
WHOLE = ("open", "sync", "device", "logging")
"""Blocks that need wg0.conf in the working directory."""


def test_every_block_of_the_guide_is_run() -> None:
    assert set(BLOCKS) == {*INSIDE, *WHOLE, *CHECKS, *RECIPES}
    assert GUIDE.count("```python") == len(BLOCKS)


async def with_far_end(tmp_path: Path, use: Callable[[], Any]) -> None:
    """Run `use` with a wg0.conf whose far end echoes on ports 7000 and 5432."""
    near_key, far_key = generate(), generate()
    async with wyrmhole.open(far_config(far_key, near_key)) as far:
        path = tmp_path / "wg0.conf"
        path.write_text(near_config(near_key, far_key, far.stats().listen_port))
        path.chmod(0o600)
        async with await far.start_server(echo, port=7000), await far.start_server(echo, port=5432):
            await use()


@pytest.mark.network
@pytest.mark.parametrize("name", INSIDE)
def test_block_that_uses_a_tunnel_works(name: str, tmp_path: Path) -> None:
    async def use() -> None:
        async with wyrmhole.open(tmp_path / "wg0.conf") as tunnel:
            if name == "events":
                # With an existing session, no new one would begin within the test.
                asyncio.get_running_loop().call_later(0.01, lambda: asyncio.ensure_future(tunnel.wait_handshake(10)))
            names = {"tunnel": tunnel, "wyrmhole": wyrmhole, "asyncio": asyncio}
            code = compile(BLOCKS[name], name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            result = eval(code, names)
            if result is not None:
                await result

    run(with_far_end(tmp_path, use))


@pytest.mark.network
@pytest.mark.parametrize("name", WHOLE)
def test_block_that_opens_a_tunnel_works(name: str, tmp_path: Path) -> None:
    code = BLOCKS[name].replace("db.internal", "10.66.0.2")
    if name == "device":
        code = f"import asyncio, wyrmhole\nasync def main():\n{textwrap.indent(code, '    ')}\nasyncio.run(main())"
        code = code.replace("wg7", f"wyr{tmp_path.stat().st_ino % 100_000_000}")

    async def use() -> None:
        program = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, cwd=tmp_path, stderr=asyncio.subprocess.PIPE
        )
        _, complaint = await program.communicate()
        assert program.returncode == 0, complaint.decode()
        assert (b"keypair created" in complaint) is (name == "logging"), complaint.decode()

    run(with_far_end(tmp_path, use))


@pytest.mark.network
def test_example_serves_inside(tmp_path: Path) -> None:
    async def scenario() -> None:
        near_key, far_key = generate(), generate()
        path = tmp_path / "far.conf"
        path.write_text(far_config(far_key, near_key, "ListenPort = 0\n"))
        path.chmod(0o600)
        program = await asyncio.create_subprocess_exec(
            sys.executable, str(ROOT / "examples" / "serve_inside.py"), str(path), stdout=asyncio.subprocess.PIPE
        )
        try:
            assert program.stdout is not None
            port = int((await program.stdout.readline()).decode().split("UDP port ")[1].rstrip(".\n"))
            async with wyrmhole.open(near_config(near_key, far_key, port)) as near:
                reader, writer = await near.open_connection("10.66.0.2", 80)
                writer.write(b"GET / HTTP/1.0\r\n\r\n")
                assert (await reader.read()).endswith(b"hello, 10.66.0.1\n")
                writer.close()
        finally:
            program.terminate()
            await program.wait()

    run(scenario())


@pytest.mark.network
def test_example_fixture_works(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null",
         str(ROOT / "examples" / "test_with_tunnel.py")],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "1 passed" in done.stdout, done.stdout

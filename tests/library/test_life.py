"""How a tunnel ends: closed, dropped, or open at the end of the program, without waiting for the program's threads.

Longer than 500 lines because all ways in which a tunnel can end are checked for the same leftovers.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import wyrmhole
import wyrmhole.sync
from tests.netns.host import until
from tests.support.tunnels import FAR_V4, NEAR_OPTIONS, far_config, generate, on_each_loop, run, tunnels
from wyrmhole.control.config.values import ConfigEndpoint
from wyrmhole.engine.select import has_native
from wyrmhole.library.endpoints import EndpointNames
from wyrmhole.library.stacks.namespace import NamespaceStack
from wyrmhole.net import link_setup
from wyrmhole.wire.endpoint import Endpoint

pytestmark = [pytest.mark.network, pytest.mark.usefixtures("device")]

ENGINES = ("native", "portable") if has_native() else ("portable",)
on_each_engine = pytest.mark.parametrize("engine", ENGINES)


def text() -> str:
    return far_config(generate(), generate())


def processes() -> list[int]:
    """Return the running children of this process."""
    with open(f"/proc/self/task/{threading.main_thread().native_id}/children") as file:
        children = [int(number) for number in file.read().split()]
    for path in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{path}/children") as file:
                children += [int(number) for number in file.read().split()]
        except OSError:
            continue
    return sorted(set(children))


def held() -> tuple[list[str], int, list[int]]:
    """Return descriptors, threads and child processes."""
    return sorted(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), processes()


@contextmanager
def nothing_left(warns: bool = True) -> Iterator[list[warnings.WarningMessage]]:
    """Check that a tunnel's resources are released soon after the block, without garbage collection."""
    # Let uvloop open its permanent descriptors first.
    run(asyncio.sleep(0), "uvloop")
    gc.collect()
    before = held()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught
        until(lambda: held() == before, f"as before: {before}")
    text_printed = [str(each.message) for each in caught if issubclass(each.category, ResourceWarning)]
    assert any("never closed" in each for each in text_printed) == warns, text_printed


async def leave(**options: Any) -> None:
    """Open a tunnel and lose it."""
    await wyrmhole.open(text(), **{**NEAR_OPTIONS, **options})


async def vanished(before: tuple[list[str], int, list[int]]) -> None:
    async with asyncio.timeout(20):
        while held() != before:
            await asyncio.sleep(0.01)


# Dropped


@on_each_engine
@on_each_loop
def test_tunnel_dropped_while_its_loop_runs_is_closed(loop: str, engine: str) -> None:
    async def scenario() -> None:
        await asyncio.sleep(0)
        before = held()
        await leave(engine=engine)
        await vanished(before)

    with nothing_left():
        run(scenario(), loop)


@on_each_engine
def test_dropped_blocking_tunnel_is_closed(engine: str) -> None:
    with nothing_left() as caught:
        for _ in range(3):
            wyrmhole.sync.open(text(), engine=engine, **NEAR_OPTIONS)
    assert len([each for each in caught if issubclass(each.category, ResourceWarning)]) == 3


def test_blocking_tunnel_dropped_after_use_is_closed() -> None:
    def use() -> None:
        tunnel = wyrmhole.sync.open(text(), **NEAR_OPTIONS)
        tunnel.socket().close()
        tunnel.stats()
        assert list(tunnel.peers)
        with pytest.raises(OSError, match="No route"):
            tunnel.ping("10.99.0.1", timeout=5)
        listener = tunnel.create_server(("", 0))
        listener.close()

    with nothing_left():
        use()
        # asyncio's exception forms a cycle with its traceback, which holds every frame.
        gc.collect()


def test_services_do_not_keep_a_dropped_tunnel_open() -> None:
    async def scenario() -> None:
        await asyncio.sleep(0)
        before = held()
        port = await serve()
        await vanished(before)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)

    async def serve() -> int:
        tunnel = await wyrmhole.open(text(), **NEAR_OPTIONS)
        service = await tunnel.proxy("127.0.0.1:0")
        await tunnel.forward("127.0.0.1:0", "10.66.0.1:80")
        await tunnel.forward("127.0.0.1:0", "10.66.0.1:80", proto="udp")
        await tunnel.expose(":0", "127.0.0.1:80")
        await tunnel.start_server(lambda reader, writer: None)
        return service.addresses[0][1]

    with nothing_left():
        run(scenario())


def test_services_of_a_dropped_blocking_tunnel_end() -> None:
    def serve() -> int:
        tunnel = wyrmhole.sync.open(text(), **NEAR_OPTIONS)
        tunnel.expose(":0", "127.0.0.1:80")
        return tunnel.forward("127.0.0.1:0", "10.66.0.1:80").addresses[0][1]

    with nothing_left():
        port = serve()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_dropped_tunnel_is_closed_although_its_tasks_were_cancelled() -> None:
    async def scenario() -> None:
        await asyncio.sleep(0)
        before = held()
        tunnel = await wyrmhole.open(text(), **NEAR_OPTIONS)
        await tunnel.proxy("127.0.0.1:0")
        cancel_everything()
        await asyncio.sleep(0)
        del tunnel
        await vanished(before)

    with nothing_left():
        run(scenario())


def test_tunnel_dropped_in_another_thread_is_closed() -> None:
    async def scenario() -> None:
        await asyncio.sleep(0)
        before = held()
        kept = [await wyrmhole.open(text(), **NEAR_OPTIONS)]
        thread = threading.Thread(target=kept.clear)
        thread.start()
        thread.join()
        del thread
        await vanished(before)

    with nothing_left():
        run(scenario())


def test_tunnel_in_a_cycle_is_closed_by_garbage_collection() -> None:
    async def scenario() -> None:
        await asyncio.sleep(0)
        before = held()
        cycle: list[Any] = [await wyrmhole.open(text(), **NEAR_OPTIONS)]
        cycle.append(cycle)
        del cycle
        gc.collect()
        await vanished(before)

    with nothing_left():
        run(scenario())


def test_tunnel_dropped_after_the_end_of_its_loop_is_closed() -> None:
    with nothing_left():
        tunnel = asyncio.run(opened())
        del tunnel


def test_tunnel_can_be_closed_after_the_end_of_its_loop() -> None:
    with nothing_left(warns=False):
        tunnel = asyncio.run(opened())
        asyncio.run(tunnel.close())
        assert tunnel.closed


def test_tunnel_dropped_between_two_runs_of_its_loop_is_closed() -> None:
    with nothing_left():
        loop = asyncio.new_event_loop()
        before = held()
        tunnel = loop.run_until_complete(opened())
        del tunnel
        until(lambda: held() == before, "the loop need not run")
        loop.close()


async def opened() -> wyrmhole.Tunnel:
    return await wyrmhole.open(text(), **NEAR_OPTIONS)


def test_sockets_of_a_dropped_tunnel_end_at_once() -> None:
    async def scenario() -> None:
        sock = await connected()
        async with asyncio.timeout(10):
            with sock, pytest.raises((ConnectionAbortedError, ConnectionResetError)):
                await asyncio.get_running_loop().sock_recv(sock, 1)

    async def connected() -> socket.socket:
        tunnel = await wyrmhole.open(text(), **NEAR_OPTIONS)
        listener = await tunnel.start_server(lambda reader, writer: asyncio.sleep(60))
        return await tunnel.connect_socket(str(tunnel.addresses[0].ip), listener.sockets[0].getsockname()[1])

    with nothing_left():
        run(scenario())


# The end of the program

PROGRAM = """
import asyncio, sys, warnings
import wyrmhole, wyrmhole.sync
warnings.simplefilter("always")
from wyrmhole.library.stacks.namespace import NamespaceStack
close = NamespaceStack.close
def noting(stack):
    close(stack)
    print("closed in order", stack._setup.fileno() if hasattr(stack._setup, "fileno") else "", flush=True)
NamespaceStack.close = noting
"""
ENDINGS = {
    "blocking": "kept = wyrmhole.sync.open(sys.argv[1])",
    "loop closed": "async def main():\n    return await wyrmhole.open(sys.argv[1])\nkept = asyncio.run(main())",
    "loop left": "loop = asyncio.new_event_loop()\nkept = loop.run_until_complete(wyrmhole.open(sys.argv[1]).open())",
    "in a frame": "def main():\n    kept = wyrmhole.sync.open(sys.argv[1])\n    raise SystemExit(0)\nmain()",
}


@pytest.mark.parametrize("ending", list(ENDINGS))
def test_open_tunnel_is_closed_at_the_end_of_the_program(ending: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + ENDINGS[ending], text()],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "closed in order" in done.stdout
    assert "was never closed" in done.stderr
    assert "Traceback" not in done.stderr


KILLED = """
import sys, time, wyrmhole.sync
tunnel = wyrmhole.sync.open(sys.argv[1])
print(tunnel.asynchronous.stack.helper_pid, flush=True)
time.sleep(60)
"""


def test_helper_ends_with_a_killed_program() -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED, text()], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        helper = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
    until(lambda: not is_alive(helper), "the helper has ended")


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# Closed


def cancel_everything() -> None:
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


@on_each_loop
def test_close_does_not_wait_for_threads_of_the_program(loop: str) -> None:
    release = threading.Event()

    async def scenario() -> None:
        tunnel = await wyrmhole.open(text(), **NEAR_OPTIONS)
        tunnel.socket()
        jobs = busy(release)
        async with asyncio.timeout(5):
            await tunnel.close()
        assert not any(job.done() for job in jobs)
        release.set()
        await asyncio.gather(*jobs)

    with nothing_left(warns=False):
        run(scenario(), loop)


def busy(release: threading.Event) -> list[asyncio.Future[bool]]:
    """Occupy every thread of the loop's executor, and queue further jobs."""
    loop = asyncio.get_running_loop()
    return [loop.run_in_executor(None, release.wait, 30) for _ in range(40)]


def test_open_does_not_wait_for_threads_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the stack nor the look-up of an endpoint's name needs the executor."""
    release = threading.Event()
    config = text() + "Endpoint = vpn.example:51820\n"
    monkeypatch.setattr(socket, "getaddrinfo", loopback)

    async def scenario() -> None:
        jobs = busy(release)
        async with asyncio.timeout(5), wyrmhole.open(config, **NEAR_OPTIONS) as tunnel:
            assert [peer.endpoint for peer in tunnel.stats().peers.values()] == ["127.0.0.1:51820"]
        release.set()
        await asyncio.gather(*jobs)

    run(scenario())


def loopback(host: str, port: int, flags: int = 0, **_: Any) -> list[Any]:
    """Resolve the only name that the host knows."""
    if flags & socket.AI_NUMERICHOST or host != "vpn.example":
        raise socket.gaierror(socket.EAI_NONAME, "unknown")
    return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("127.0.0.1", port))]


@on_each_loop
@pytest.mark.parametrize("turns", range(6))
def test_close_is_completed_even_if_cancelled(turns: int, loop: str) -> None:
    async def scenario() -> None:
        tunnel = await wyrmhole.open(text(), **NEAR_OPTIONS)
        closing = asyncio.ensure_future(tunnel.close())
        for _ in range(turns):
            await asyncio.sleep(0)
        cancel_everything()
        await asyncio.gather(closing, return_exceptions=True)
        for _ in range(2):
            async with asyncio.timeout(10):
                await tunnel.close()
        assert tunnel.stack.port.fileno() == -1

    with nothing_left(warns=False):
        run(scenario(), loop)


def test_close_is_completed_even_if_the_loop_ends() -> None:
    async def scenario() -> wyrmhole.Tunnel:
        tunnel = await wyrmhole.open(text(), **NEAR_OPTIONS)
        asyncio.ensure_future(tunnel.close())  # noqa: RUF006 (to be cancelled is what it is for)
        await asyncio.sleep(0)
        return tunnel

    with nothing_left(warns=False):
        tunnel = asyncio.run(scenario())
        assert tunnel.closed


def test_close_runs_on_the_loop_if_no_thread_can_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    async def scenario() -> None:
        tunnel = await wyrmhole.open(text(), **NEAR_OPTIONS)
        await tunnel.proxy("127.0.0.1:0")
        monkeypatch.setattr("_thread.start_new_thread", refuse)
        async with asyncio.timeout(10):
            await tunnel.close()
        monkeypatch.undo()

    with nothing_left(warns=False):
        run(scenario())


def test_concurrent_close_from_many_tasks_returns_to_all() -> None:
    async def scenario() -> None:
        tunnel = await wyrmhole.open(text(), **NEAR_OPTIONS)
        async with asyncio.timeout(10):
            await asyncio.gather(*(tunnel.close() for _ in range(5)))

    with nothing_left(warns=False):
        run(scenario())


def test_concurrent_close_from_many_threads_returns_to_all() -> None:
    with nothing_left(warns=False):
        tunnel = wyrmhole.sync.open(text(), **NEAR_OPTIONS)
        threads = [threading.Thread(target=tunnel.close) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert not any(thread.is_alive() for thread in threads)


# Ended from outside


@on_each_engine
def test_closed_stack_ends_its_tunnel(engine: str) -> None:
    async def scenario() -> None:
        await asyncio.sleep(0)
        before = held()
        tunnel = await wyrmhole.open(text(), engine=engine, **NEAR_OPTIONS)
        await asyncio.to_thread(tunnel.stack.close)
        async with asyncio.timeout(10):
            while not tunnel.closed:
                await asyncio.sleep(0.01)
            await tunnel.close()
        asyncio.get_running_loop()._default_executor.shutdown()  # type: ignore[attr-defined]
        await vanished(before)

    with nothing_left(warns=False):
        run(scenario())


def test_end_of_the_interface_is_noticed_without_any_task() -> None:
    async def scenario() -> None:
        tunnel = await wyrmhole.open(text(), **NEAR_OPTIONS)
        stack: Any = tunnel.stack
        cancel_everything()
        await asyncio.sleep(0)
        link_setup.delete(stack._setup, stack._index)
        async with asyncio.timeout(10):
            while not tunnel.closed:
                await asyncio.sleep(0.01)
            await tunnel.close()

    with nothing_left(warns=False):
        run(scenario())


def test_service_with_cancelled_tasks_reports_that_it_is_closed() -> None:
    async def scenario() -> None:
        async with wyrmhole.open(text(), **NEAR_OPTIONS) as tunnel:
            service = await tunnel.proxy("127.0.0.1:0")
            cancel_everything()
            async with asyncio.timeout(10):
                await service.wait_closed()
            assert "closed" in repr(service)

    run(scenario())


# Forks


def in_a_fork(work: Callable[[], object]) -> None:
    """Run `work` in a fork. Raises AssertionError if it fails there."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_drop_and_close_in_a_fork_leave_the_tunnel_alone() -> None:
    async def scenario() -> None:
        async with tunnels() as ends:
            kept = [ends.near]

            def drop() -> None:
                wyrmhole.library.life._end_all()
                asyncio.run(kept[0].close())
                kept.clear()
                gc.collect()

            in_a_fork(drop)
            assert await ends.near.ping(FAR_V4) > 0

    run(scenario())


def test_fork_can_open_its_own_tunnel() -> None:
    async def scenario() -> None:
        async with wyrmhole.open(text()) as tunnel:
            assert tunnel.stats().listen_port

    async def beside() -> None:
        async with wyrmhole.open(text(), **NEAR_OPTIONS):
            in_a_fork(lambda: asyncio.run(scenario()))

    run(beside())


# A failing helper


def test_threads_of_the_library_wait_for_a_slow_helper() -> None:
    release = threading.Event()

    async def scenario() -> None:
        async with wyrmhole.open(text()) as tunnel:
            assert isinstance(tunnel.stack, NamespaceStack)
            jobs = busy(release)
            pid = tunnel.stack.helper_pid
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)
            async with asyncio.timeout(10):
                (await tunnel.open_socket(socket.AF_INET, socket.SOCK_DGRAM)).close()
            release.set()
            await asyncio.gather(*jobs)

    run(scenario())


# Background work


def test_endpoint_names_are_followed_after_tasks_were_cancelled() -> None:
    async def scenario() -> None:
        asked = asyncio.Event()

        async def look_up(host: str, port: int) -> list[Endpoint]:
            asked.set()
            return [Endpoint("192.0.2.1", port)]

        names = EndpointNames(
            lambda key: 1, lambda key: None, lambda key, endpoint: None, look_up=look_up, interval=0.01
        )
        names.watch(generate().public_key(), ConfigEndpoint.parse("vpn.example:1"), [Endpoint("192.0.2.1", 1)])
        await asyncio.sleep(0)
        cancel_everything()
        await asyncio.sleep(0)
        asked.clear()
        async with asyncio.timeout(10):
            await asked.wait()
        names.close()

    run(scenario())

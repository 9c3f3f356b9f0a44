"""The helper of a namespace stack dies, hangs or is refused an operation; and the channel to it."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import shutil
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.tunnels import FAR_V4, Ends, echo, open_descriptors, run, sockets_of, tunnels
from wyrmhole.library.stacks import helper_channel, netns_helper
from wyrmhole.library.stacks.helper_channel import Helper
from wyrmhole.library.stacks.namespace import MAX_BATCH_AHEAD, NamespaceStack
from wyrmhole.library.stacks.netns_helper import REPLY, REQUEST
from wyrmhole.library.stacks.stack import HelperGone, HelperSlow


@pytest.fixture(autouse=True, params=["python", "native"])
def helper_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run each test with both helpers, which have the same protocol."""
    if request.param == "python":
        monkeypatch.setattr(helper_channel, "native_helper", lambda: None)
    elif helper_channel.native_helper() is None:
        if os.environ.get("CI") == "true" and shutil.which("cargo"):
            pytest.fail("the native helper was not built, and there is a Rust toolchain")
        pytest.skip("the native helper is not built: install Rust 1.85 or newer, and the package again")
    return str(request.param)


def stack_of(ends: Ends) -> NamespaceStack:
    assert isinstance(ends.near.stack, NamespaceStack)
    return ends.near.stack


def helper_of(ends: Ends) -> int:
    pid = stack_of(ends).helper_pid
    assert pid is not None
    return pid


@pytest.mark.network
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_failed_helper_is_replaced_transparently(number: signal.Signals) -> None:
    async def scenario() -> None:
        async with tunnels() as ends, await ends.far.start_server(echo, port=7000):
            reader, writer = await ends.near.open_connection(FAR_V4, 7000)
            former = helper_of(ends)
            os.kill(former, number)
            fresh_reader, fresh_writer = await ends.near.open_connection(FAR_V4, 7000)
            assert helper_of(ends) != former
            for each_reader, each_writer in ((reader, writer), (fresh_reader, fresh_writer)):
                each_writer.write(b"still there")
                assert await each_reader.readexactly(11) == b"still there"
                each_writer.close()
            assert not Path(f"/proc/{former}").exists(), "a failed helper is ended and reaped"

    run(scenario())


@pytest.mark.network
def test_stopped_helper_does_not_block_the_loop() -> None:
    async def scenario() -> None:
        async with tunnels() as ends, await ends.far.start_server(echo, port=7000):
            os.kill(helper_of(ends), signal.SIGSTOP)
            connecting = asyncio.ensure_future(ends.near.connect_socket(FAR_V4, 7000))
            turns = 0
            while not connecting.done():
                await asyncio.sleep(0.01)
                turns += 1
            assert turns > 10, "the loop runs during the second until the helper is given up"
            connecting.result().close()

    run(scenario())


@pytest.mark.network
def test_connection_cancelled_while_the_helper_hangs_leaks_nothing() -> None:
    async def scenario() -> None:
        async with tunnels() as ends, await ends.far.start_server(echo, port=7000):
            (await ends.near.connect_socket(FAR_V4, 7000)).close()
            os.kill(helper_of(ends), signal.SIGSTOP)
            with pytest.raises(TimeoutError):
                await ends.near.connect_socket(FAR_V4, 7000, timeout=0.1)
            (await ends.near.connect_socket(FAR_V4, 7000)).close()
            inside = sockets_of(ends.near, ends.far)
            os.kill(helper_of(ends), signal.SIGKILL)
            ends.near.socket(socket.AF_INET, socket.SOCK_DGRAM).close()
            assert sockets_of(ends.near, ends.far) == inside

    run(scenario())


@pytest.mark.network
def test_threads_share_one_helper() -> None:
    async def scenario() -> None:
        async with tunnels() as ends:
            await asyncio.gather(*(asyncio.to_thread(make, ends) for _ in range(8)))

    def make(ends: Ends) -> None:
        for _ in range(50):
            with ends.near.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
                assert sock.family == socket.AF_INET6

    run(scenario())


@pytest.mark.network
def test_sockets_come_in_batches() -> None:
    async def scenario() -> None:
        async with tunnels() as ends:
            made = stack_of(ends).sockets(253, socket.AF_INET, socket.SOCK_STREAM)
            assert len({sock.fileno() for sock in made}) == 253
            for sock in made:
                sock.close()
            with pytest.raises(ValueError, match="253"):
                stack_of(ends).sockets(254, socket.AF_INET, socket.SOCK_STREAM)

    run(scenario())


@pytest.mark.network
def test_sockets_are_made_in_advance_up_to_a_limit() -> None:
    async def scenario() -> None:
        async with tunnels() as ends:
            stack, made = stack_of(ends), []
            made.append(ends.near.socket())
            assert stack.spare_sockets == 0, "a caller gets a socket at once"
            for _ in range(200):
                made.append(ends.near.socket())
                assert stack.spare_sockets < MAX_BATCH_AHEAD
            assert len({sock.fileno() for sock in made}) == 201
            os.kill(helper_of(ends), signal.SIGKILL)
            for _ in range(2 * MAX_BATCH_AHEAD):
                made.append(ends.near.socket())
            for sock in made:
                sock.close()

    run(scenario())


@pytest.mark.network
def test_last_free_descriptors_can_be_used_one_by_one() -> None:
    async def scenario() -> None:
        async with tunnels() as ends:
            made = [ends.near.socket() for _ in range(15 + stack_of(ends).spare_sockets)]
            with descriptor_limit(spare=3):
                made += [ends.near.socket() for _ in range(stack_of(ends).spare_sockets + 2)]
                with pytest.raises(OSError, match="ulimit"):
                    made += [ends.near.socket() for _ in range(9)]
            for sock in made:
                sock.close()

    run(scenario())


@pytest.mark.network
def test_refusal_in_the_helper_raises_like_socket() -> None:
    async def scenario() -> None:
        async with tunnels() as ends:
            with pytest.raises(OSError) as caught:
                ends.near.socket(socket.AF_INET, 99)
            assert caught.value.errno in (errno.EINVAL, errno.ESOCKTNOSUPPORT)
            ends.near.socket().close()

    run(scenario())


@contextmanager
def descriptor_limit(spare: int) -> Iterator[None]:
    former = resource.getrlimit(resource.RLIMIT_NOFILE)
    numbers = {int(number) for number in os.listdir("/proc/self/fd")}
    # All numbers below the highest are in use, so the limit equals the number of free ones.
    fillers = [os.dup(0) for _ in range(max(numbers) - len(numbers))]
    highest = max(int(number) for number in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + spare, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, former)
        for filler in fillers:
            os.close(filler)


@pytest.mark.network
def test_batch_above_the_descriptor_limit_is_closed_and_raises() -> None:
    async def scenario() -> None:
        async with tunnels() as ends:
            before = len(open_descriptors())
            with descriptor_limit(spare=5), pytest.raises(OSError, match="ulimit") as caught:
                stack_of(ends).sockets(20, socket.AF_INET, socket.SOCK_STREAM)
            assert caught.value.errno == errno.EMFILE
            assert len(open_descriptors()) == before
            ends.near.socket().close()

    run(scenario())


@pytest.mark.network
def test_fork_may_use_its_sockets_but_not_open_new_ones() -> None:
    async def scenario() -> None:
        async with tunnels() as ends, await ends.far.start_server(echo, port=7000):
            reader, writer = await ends.near.open_connection(FAR_V4, 7000)
            child = os.fork()
            if child == 0:
                os._exit(child_looks(ends, writer.get_extra_info("socket").fileno()))
            status = await asyncio.to_thread(os.waitpid, child, 0)
            assert os.waitstatus_to_exitcode(status[1]) == 0
            assert await reader.readexactly(10) == b"from child"
            (await ends.near.connect_socket(FAR_V4, 7000)).close()
            writer.close()

    def child_looks(ends: Ends, connected: int) -> int:
        """Return the exit status, 0 if all checks pass."""
        try:
            os.write(connected, b"from child")
            ends.near.socket()
        except OSError as error:
            return 0 if "fork" in str(error) else 2
        return 1

    run(scenario())


# The channel, with a test in place of the helper


class FakeHelper:
    """A helper whose answers a test determines."""

    def __init__(self) -> None:
        ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.process = subprocess.Popen(["true"])
        self.helper = Helper(self.process, ours)

    def __enter__(self) -> FakeHelper:
        return self

    def __exit__(self, *_: object) -> None:
        self.helper.end()
        self.theirs.close()

    def hear(self) -> int:
        number, *_ = REQUEST.unpack(self.theirs.recv(64))
        return int(number)

    def answer(self, number: int, refused: int = 0, *, passing: int = 0) -> None:
        if passing:
            pair = [socket.socketpair() for _ in range((passing + 1) // 2)]
            numbers = [end.fileno() for ends in pair for end in ends][:passing]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{passing}i", *numbers))]
            self.theirs.sendmsg([REPLY.pack(number, 0, 0)], rights)
            for ends in pair:
                for end in ends:
                    end.close()
        self.theirs.send(REPLY.pack(number, refused, 0))


def ask(helper: Helper, count: int = 1, patience: float = 5.0) -> list[int]:
    return helper.sockets(count, socket.AF_UNIX, socket.SOCK_STREAM, 0, patience)


def test_late_answer_is_closed_and_not_mistaken_for_the_next() -> None:
    with FakeHelper() as fake:
        with pytest.raises(HelperSlow):
            ask(fake.helper, patience=0.0)
        late = fake.hear()
        before = len(open_descriptors())
        fake.answer(late, passing=1)

        def serve() -> None:
            fake.answer(fake.hear(), passing=2)

        serving = threading.Thread(target=serve)
        serving.start()
        descriptors = ask(fake.helper, 2)
        serving.join()
        assert len(descriptors) == 2
        for descriptor in descriptors:
            os.close(descriptor)
        assert len(open_descriptors()) == before


def test_incomplete_set_of_descriptors_is_closed() -> None:
    with FakeHelper() as fake:
        before = len(open_descriptors())
        fake.answer(1, passing=1)
        with pytest.raises(OSError, match="ulimit"):
            ask(fake.helper, 3)
        assert len(open_descriptors()) == before


def test_helper_that_ends_within_an_answer_leaks_nothing() -> None:
    with FakeHelper() as fake:
        before = len(open_descriptors())
        pair = socket.socketpair()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", pair[0].fileno()))]
        fake.theirs.sendmsg([REPLY.pack(1, 0, 0)], rights)
        for end in pair:
            end.close()
        fake.theirs.shutdown(socket.SHUT_RDWR)
        with pytest.raises(HelperGone):
            ask(fake.helper)
        assert len(open_descriptors()) <= before


def test_message_of_wrong_size_ends_the_helper() -> None:
    with FakeHelper() as fake:
        fake.theirs.send(b"nonsense")
        with pytest.raises(HelperGone):
            ask(fake.helper)


def test_helper_that_stops_reading_does_not_block() -> None:
    with FakeHelper() as fake:
        for _ in range(100_000):
            try:
                ask(fake.helper, patience=0.0)
            except HelperSlow as slow:
                if "no more" in str(slow):
                    break
        else:
            pytest.fail("the channel never filled")


def test_numbers_of_the_protocol_match_its_documentation() -> None:
    assert (REQUEST.size, REPLY.size) == (20, 12)
    assert "number:u32  count:u32  family:i32  kind:i32  protocol:i32" in (netns_helper.__doc__ or "")

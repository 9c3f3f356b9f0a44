"""SOCKS4 and SOCKS5: the negotiation byte by byte, and clients of a running proxy."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.loopback import Loopback, Silent, ask, count_then_answer, echo, run, server, udp_client, udp_echo
from wyrmhole.library.proxy import socks4
from wyrmhole.library.proxy.proxy import proxy
from wyrmhole.library.proxy.socks5 import (
    Command,
    Negotiation,
    Socks5Request,
    SocksError,
    SocksReply,
    build_packet,
    parse_packet,
    reply,
    reply_for,
)
from wyrmhole.library.services.service import Limits

USERS = {"ada": "lovelace", "ünï": "pässword"}
NO_AUTH, PASSWORD = b"\5\1\0", b"\5\1\2"


def request(command: int, host: str, port: int) -> bytes:
    """Return a client's request. A host that is not a literal is sent as a name."""
    try:
        packed = ip_address(host).packed
        address = bytes((1 if len(packed) == 4 else 4,)) + packed
    except ValueError:
        address = bytes((3, len(host.encode()))) + host.encode()
    return bytes((5, command, 0)) + address + struct.pack(">H", port)


def credentials(user: str, password: str) -> bytes:
    return b"\1" + b"".join(bytes((len(word.encode()),)) + word.encode() for word in (user, password))


# The negotiation


@pytest.mark.parametrize("host", ["10.0.0.1", "fd00::1", "db.internal", "bücher.example"])
@pytest.mark.parametrize("users", [None, USERS])
def test_request_is_understood_however_it_is_split(host: str, users: Mapping[str, str] | None) -> None:
    """RFC 1928, 3 and 4; RFC 1929, 2."""
    auth = NO_AUTH if users is None else PASSWORD + credentials("ünï", "pässword")
    data = auth + request(1, host, 5432) + b"rest"
    expected = b"\5\0" if users is None else b"\5\2\1\0"
    for cut in range(len(data) + 1):
        negotiation = Negotiation(users)
        assert negotiation.receive(data[:cut]) + negotiation.receive(data[cut:]) == expected
        assert negotiation.request == Socks5Request(Command.CONNECT, host, 5432)
        assert negotiation.rest == b"rest"


@pytest.mark.parametrize(
    ("users", "data", "answer", "failure"),
    [
        (None, b"\4\1", b"", "version 4"),
        (None, b"\5\1\1", b"\5\xff", "offers no supported method"),
        (None, b"\5\0", b"\5\xff", "offers no supported method"),
        (USERS, NO_AUTH, b"\5\xff", "offers no password"),
        (USERS, PASSWORD + credentials("ada", "byron"), b"\5\2\1\1", "wrong user or password"),
        (USERS, PASSWORD + credentials("eve", "lovelace"), b"\5\2\1\1", "wrong user or password"),
        (USERS, PASSWORD + credentials("", ""), b"\5\2\1\1", "wrong user or password"),
        (USERS, PASSWORD + b"\7", b"\5\2", "version 7 of password authentication"),
        (None, NO_AUTH + b"\4", b"\5\0" + reply(SocksReply.GENERAL_FAILURE), "version 4"),
        (None, NO_AUTH + request(2, "10.0.0.1", 1), b"\5\0" + reply(SocksReply.COMMAND_NOT_SUPPORTED), "command 2"),
        (None, NO_AUTH + request(9, "10.0.0.1", 1), b"\5\0" + reply(SocksReply.COMMAND_NOT_SUPPORTED), "command 9"),
        (None, NO_AUTH + b"\5\1\0\2ab", b"\5\0" + reply(SocksReply.ADDRESS_TYPE_NOT_SUPPORTED), "address type 2"),
        (None, NO_AUTH + b"\5\1\0\3\0\0\1", b"\5\0" + reply(SocksReply.GENERAL_FAILURE), "not valid text"),
        (None, NO_AUTH + b"\5\1\0\3\1\xff\0\1", b"\5\0" + reply(SocksReply.GENERAL_FAILURE), "not valid text"),
    ],
)
def test_unsupported_request_is_answered_according_to_the_rfc(
    users: Mapping[str, str] | None, data: bytes, answer: bytes, failure: str
) -> None:
    negotiation = Negotiation(users)
    assert negotiation.receive(data) == answer
    assert negotiation.request is None
    assert negotiation.failure is not None
    assert failure in negotiation.failure
    assert "lovelace" not in repr(negotiation)


def test_needless_password_is_accepted() -> None:
    negotiation = Negotiation(None)
    sent = negotiation.receive(PASSWORD + credentials("any", "word") + request(1, "10.0.0.1", 1))
    assert (sent, negotiation.request) == (b"\5\2\1\0", Socks5Request(Command.CONNECT, "10.0.0.1", 1))


def test_password_message_with_socks_version_is_accepted() -> None:
    """Some clients send version 5, contrary to RFC 1929, 2."""
    negotiation = Negotiation(USERS)
    negotiation.receive(PASSWORD + b"\5" + credentials("ada", "lovelace")[1:] + request(1, "10.0.0.1", 1))
    assert negotiation.request is not None
    assert Negotiation(USERS).receive(PASSWORD + b"\5" + credentials("ada", "byron")[1:]) == b"\5\2\1\1"


# SOCKS4


def socks4_request(host: str, port: int, command: int = 1, user: bytes = b"me") -> bytes:
    try:
        address, name = ip_address(host).packed, b""
    except ValueError:
        address, name = b"\0\0\0\1", host.encode() + b"\0"
    return bytes((4, command)) + struct.pack(">H", port) + address + user + b"\0" + name


@pytest.mark.parametrize("host", ["10.0.0.1", "db.internal"])
def test_socks4_request_is_understood_however_it_is_split(host: str) -> None:
    data = socks4_request(host, 5432)
    assert all(socks4.parse(data[:cut]) is None for cut in range(len(data)))
    assert socks4.parse(data + b"rest") == socks4.Socks4Request(host, 5432, b"rest")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (socks4_request("10.0.0.1", 1, command=2), "command 2"),
        (socks4_request("10.0.0.1", 1, user=b"u" * 300), "SOCKS4 user is too long"),
        (socks4_request("n" * 300, 1), "SOCKS4a name is too long"),
        (b"\4\1\0\1\0\0\0\1\0\0", "not valid text"),
    ],
)
def test_invalid_socks4_request_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(SocksError, match=reason):
        socks4.parse(data)


@given(data=st.binary(max_size=600))
def test_any_socks4_bytes_are_parsed_refused_or_incomplete(data: bytes) -> None:
    with suppress(SocksError):
        assert socks4.parse(b"\4" + data) is not None or len(data) < 600


@pytest.mark.parametrize("host", ["127.0.0.1", "db.internal"])
def test_socks4_connects(host: str) -> None:
    async def scenario() -> None:
        async with server(echo) as port, await proxy(Loopback(db_internal="127.0.0.1"), "127.0.0.1:0") as running:
            reader, writer = await asyncio.open_connection(*running.addresses[0])
            data = socks4_request(host, port) + b"early"
            writer.write(data[:3])
            await writer.drain()
            writer.write(data[3:])
            assert (await reader.readexactly(8))[:2] == b"\0\x5a"
            assert await reader.readexactly(5) == b"early"
            writer.close()

    run(scenario())


@pytest.mark.parametrize("users", [None, USERS])
def test_unusable_socks4_request_is_answered_and_logged(
    users: Mapping[str, str] | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with await proxy(Loopback(), "127.0.0.1:0", users=users) as running:
            reader, writer = await asyncio.open_connection(*running.addresses[0])
            writer.write(socks4_request("gone.internal", 80))
            assert (await reader.read())[:2] == b"\0\x5b"
            writer.close()

    caplog.set_level("INFO", "wyrmhole")
    run(scenario())
    assert ("no passwords" if users else "gone.internal") in caplog.text


@pytest.mark.parametrize(("first", "word"), [(b"\x16\3\1\0\1", "TLS"), (b"\0\1", "neither SOCKS nor HTTP")])
def test_unknown_protocol_is_logged(first: bytes, word: str, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with await proxy(Loopback(), "127.0.0.1:0") as running:
            reader, writer = await asyncio.open_connection(*running.addresses[0])
            writer.write(first)
            assert await reader.read() == b""
            writer.close()

    caplog.set_level("INFO", "wyrmhole")
    run(scenario())
    assert word in caplog.text


@pytest.mark.parametrize("host", ["db.internal.", "[::1]", "127.0.0.1"])
def test_unusual_spellings_of_a_name_are_served(host: str) -> None:
    async def scenario() -> None:
        tunnel = Loopback()
        tunnel.names["db.internal."] = "127.0.0.1"
        listening = "::1" if host == "[::1]" else "127.0.0.1"
        async with server(echo, listening) as port, await proxy(tunnel, "127.0.0.1:0") as running:
            reader, writer = await asyncio.open_connection(*running.addresses[0])
            for byte in NO_AUTH + bytes((5, 1, 0, 3, len(host))) + host.encode() + struct.pack(">H", port):
                writer.write(bytes((byte,)))
                await writer.drain()
            assert (await reader.readexactly(4))[:4] == b"\5\0\5\0"
            writer.close()

    run(scenario())


def test_port_0_is_refused_with_an_answer() -> None:
    async def scenario() -> None:
        async with await proxy(Loopback(), "127.0.0.1:0") as running:
            reader, writer = await asyncio.open_connection(*running.addresses[0])
            writer.write(NO_AUTH + request(1, "127.0.0.1", 0))
            answer = await reader.read()
            assert answer[:3] == b"\5\0\5" and answer[3] != 0
            writer.close()

    run(scenario())


@given(data=st.binary(max_size=600), password=st.booleans())
def test_any_bytes_are_parsed_refused_or_incomplete(data: bytes, password: bool) -> None:
    negotiation = Negotiation(USERS if password else None)
    negotiation.receive(data)
    assert negotiation.finished or len(negotiation.rest) <= 513


@given(data=st.binary(max_size=300))
def test_any_udp_packet_is_parsed_or_refused(data: bytes) -> None:
    try:
        host, port, payload = parse_packet(data)
    except SocksError:
        return
    assert host
    assert 0 <= port <= 65535
    assert data.endswith(payload)


@pytest.mark.parametrize("host", ["10.0.0.1", "fd00::1"])
def test_udp_header_round_trip(host: str) -> None:
    assert parse_packet(build_packet(host, 53, b"payload")) == (host, 53, b"payload")


def test_fragments_are_refused() -> None:
    """RFC 1928, 7: an implementation without reassembly must drop them."""
    with pytest.raises(SocksError, match="fragments"):
        parse_packet(b"\0\0\1" + build_packet("10.0.0.1", 53, b"x")[3:])


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionRefusedError(111, ""), SocksReply.CONNECTION_REFUSED),
        (TimeoutError(110, ""), SocksReply.HOST_UNREACHABLE),
        (OSError(101, ""), SocksReply.NETWORK_UNREACHABLE),
        (OSError(113, ""), SocksReply.HOST_UNREACHABLE),
        (PermissionError(1, ""), SocksReply.NOT_ALLOWED),
        (socket.gaierror(socket.EAI_NONAME, ""), SocksReply.HOST_UNREACHABLE),
        (OSError(24, ""), SocksReply.GENERAL_FAILURE),
    ],
)
def test_errors_have_their_replies(error: OSError, expected: SocksReply) -> None:
    assert reply_for(error) is expected


# A running proxy


async def greet(
    address: tuple[str, int], hello: bytes, message: bytes
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
    """Connect, negotiate and send a request. Return the streams and the address and code of the answer."""
    reader, writer = await asyncio.open_connection(*address)
    writer.write(hello)
    assert await reader.readexactly(2) == b"\5" + hello[2:3]
    if hello == PASSWORD:
        writer.write(credentials("ada", "lovelace"))
        assert await reader.readexactly(2) == b"\1\0"
    writer.write(message)
    answer = await reader.readexactly(4)
    return reader, writer, answer + await reader.readexactly(6 if answer[3] == 1 else 18)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "db.internal"])
@pytest.mark.parametrize("users", [None, USERS])
def test_connect_carries_bytes_and_half_close(host: str, users: Mapping[str, str] | None) -> None:
    async def scenario() -> None:
        tunnel = Loopback(db_internal="127.0.0.1")
        listen = "::1" if host == "::1" else "127.0.0.1"
        async with (
            server(count_then_answer, listen) as port,
            await proxy(tunnel, "127.0.0.1:0", users=users) as running,
        ):
            hello = NO_AUTH if users is None else PASSWORD
            reader, writer, answer = await greet(running.addresses[0], hello, request(1, host, port))
            assert answer[1] == SocksReply.SUCCEEDED
            writer.write(bytes(200_000))
            writer.write_eof()
            assert await reader.read() == b"200000"
            writer.close()
        assert tunnel.asked == (["db.internal"] if host == "db.internal" else [])
        assert tunnel.still_open == 0

    run(scenario())


def test_data_sent_along_with_the_request_is_forwarded() -> None:
    async def scenario() -> None:
        async with server(echo) as port, await proxy(Loopback(), "127.0.0.1:0") as running:
            reader, writer = await asyncio.open_connection(*running.addresses[0])
            writer.write(NO_AUTH + request(1, "127.0.0.1", port) + b"early")
            assert (await reader.readexactly(2 + 10))[:4] == b"\5\0\5\0"
            assert await reader.readexactly(5) == b"early"
            writer.close()

    run(scenario())


@pytest.mark.parametrize(
    ("host", "code"), [("127.0.0.1", SocksReply.CONNECTION_REFUSED), ("gone.internal", SocksReply.HOST_UNREACHABLE)]
)
def test_reply_has_the_code_of_the_failure(host: str, code: SocksReply) -> None:
    async def scenario() -> None:
        async with await proxy(Loopback(), "127.0.0.1:0") as running:
            reader, writer, answer = await greet(running.addresses[0], NO_AUTH, request(1, host, 1))
            assert answer == reply(code)
            assert await reader.read() == b""
            writer.close()

    run(scenario())


def test_silent_target_is_given_up() -> None:
    async def scenario() -> None:
        async with await proxy(Silent(), "127.0.0.1:0", limits=Limits(connect=0.01)) as running:
            _, writer, answer = await greet(running.addresses[0], NO_AUTH, request(1, "10.0.0.1", 1))
            assert answer == reply(SocksReply.HOST_UNREACHABLE)
            writer.close()

    run(scenario())


@pytest.mark.parametrize("beginning", [b"", b"\5", b"\5\1\0\5\1", b"GET "])
def test_client_without_a_complete_request_is_disconnected(beginning: bytes) -> None:
    async def scenario() -> None:
        async with await proxy(Loopback(), "127.0.0.1:0", limits=Limits(greeting=0.01)) as running:
            reader, writer = await asyncio.open_connection(*running.addresses[0])
            writer.write(beginning)
            await reader.read()
            assert reader.at_eof()
            writer.close()

    run(scenario())


def test_socks4_refusal_uses_the_socks4_format() -> None:
    async def scenario() -> None:
        async with await proxy(Loopback(), "127.0.0.1:0") as running:
            reader, writer = await asyncio.open_connection(*running.addresses[0])
            writer.write(b"\4\1\0\x50\x7f\0\0\1\0")
            assert await reader.readexactly(8) == b"\0\x5b" + bytes(6)
            writer.close()

    run(scenario())


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "db.internal"])
def test_udp_goes_through_an_association(host: str) -> None:
    async def scenario() -> None:
        tunnel = Loopback(db_internal="127.0.0.1")
        inside = "::1" if host == "::1" else "127.0.0.1"
        async with udp_echo(inside) as (port, _), await proxy(tunnel, "127.0.0.1:0") as running:
            _, writer, answer = await greet(running.addresses[0], NO_AUTH, request(3, "0.0.0.0", 0))
            assert answer[1] == SocksReply.SUCCEEDED
            relay = int.from_bytes(answer[-2:])
            with udp_client("127.0.0.1", relay) as client:
                for payload in (b"one", b"two", b"x" * 9000):
                    sent = bytes(3) + request(0, host, port)[3:] + payload
                    assert await ask(client, sent) == build_packet(inside, port, b"re:" + payload)
            writer.close()
        assert tunnel.still_open == 0

    run(scenario())


def test_association_ends_with_its_connection() -> None:
    """RFC 1928, 6."""

    async def scenario() -> None:
        async with udp_echo() as (port, _), await proxy(Loopback(), "127.0.0.1:0") as running:
            reader, writer, answer = await greet(running.addresses[0], NO_AUTH, request(3, "0.0.0.0", 0))
            relay = int.from_bytes(answer[-2:])
            with udp_client("127.0.0.1", relay) as client:
                await ask(client, build_packet("127.0.0.1", port, b"hello"))
                writer.close()
                await reader.read()
                with pytest.raises(ConnectionRefusedError):
                    while True:
                        client.send(build_packet("127.0.0.1", port, b"hello"))
                        await asyncio.sleep(0)

    run(scenario())


def test_association_ignores_other_clients_and_unknown_hosts() -> None:
    async def scenario() -> None:
        async with udp_echo() as (port, echoing), await proxy(Loopback(), "127.0.0.1:0") as running:
            _, writer, answer = await greet(running.addresses[0], NO_AUTH, request(3, "0.0.0.0", 0))
            relay = int.from_bytes(answer[-2:])
            with udp_client("127.0.0.1", relay) as client, udp_client("127.0.0.1", relay) as thief:
                await ask(client, build_packet("127.0.0.1", port, b"mine"))
                inside = echoing.seen[b"mine"]
                with udp_client(*inside) as stranger:
                    stranger.send(b"uninvited")
                    thief.send(build_packet("127.0.0.1", port, b"stolen"))
                    back = await ask(client, build_packet("127.0.0.1", port, b"again"))
                assert back == build_packet("127.0.0.1", port, b"re:again")
                assert b"stolen" not in echoing.seen
            writer.close()

    run(scenario())


def test_garbage_to_an_association_is_dropped() -> None:
    async def scenario() -> None:
        async with udp_echo() as (port, _), await proxy(Loopback(), "127.0.0.1:0") as running:
            _, writer, answer = await greet(running.addresses[0], NO_AUTH, request(3, "0.0.0.0", 0))
            with udp_client("127.0.0.1", int.from_bytes(answer[-2:])) as client:
                for garbage in (b"", b"\0\0", b"\0\0\1\1", bytes(3) + request(0, "gone.internal", 1)[3:]):
                    client.send(garbage)
                sent = build_packet("127.0.0.1", port, b"hello")
                assert await ask(client, sent) == build_packet("127.0.0.1", port, b"re:hello")
            writer.close()

    run(scenario())


# Addresses to listen on


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "10.0.0.1:1080"])
def test_open_proxy_for_other_machines_is_refused_by_default(listen: str) -> None:
    with pytest.raises(ValueError, match="any host that reaches it could use the tunnel"):
        run(proxy(Loopback(), listen))


@pytest.mark.parametrize(("users", "allow_open"), [(USERS, False), (None, True)])
def test_proxy_with_users_or_allow_open_listens_everywhere(users: Mapping[str, str] | None, allow_open: bool) -> None:
    async def scenario() -> None:
        async with await proxy(Loopback(), "0.0.0.0:0", users=users, allow_open=allow_open) as running:
            assert running.addresses[0][0] == "0.0.0.0"

    run(scenario())


def test_empty_list_of_users_refuses_every_client() -> None:
    async def scenario() -> None:
        async with await proxy(Loopback(), "127.0.0.1:0", users={}) as running:
            reader, writer = await asyncio.open_connection(*running.addresses[0])
            writer.write(PASSWORD + credentials("", ""))
            assert await reader.read() == b"\5\2\1\1"
            writer.close()

    run(scenario())

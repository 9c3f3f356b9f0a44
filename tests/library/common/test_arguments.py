"""Invalid arguments of the public verbs raise TypeError or ValueError with one sentence, before anything happens."""

from __future__ import annotations

import inspect
import pickle
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import wyrmhole
import wyrmhole.sync
from tests.support.tunnels import FAR_V4, NEAR_V4, generate, near_config, run, tunnels

network = pytest.mark.network
CONFIG = "[Interface]\nPrivateKey = AAAA\n"

OPENINGS: list[tuple[str, Callable[[], object], type[Exception], str]] = [
    ("nothing", lambda: wyrmhole.open(""), ValueError, "the configuration is empty; expected the path of a file"),
    ("blank", lambda: wyrmhole.open("  \n"), ValueError, "the configuration is empty"),
    ("None", lambda: wyrmhole.open(None), TypeError, "the path of a file, the text of one, or a wyrmhole.Config"),  # type: ignore[arg-type]
    ("a number", lambda: wyrmhole.open(123), TypeError, "not int"),  # type: ignore[arg-type]
    ("bytes", lambda: wyrmhole.open(b"wg0.conf"), TypeError, "not bytes"),  # type: ignore[arg-type]
    ("stack", lambda: wyrmhole.open(CONFIG, stack="kernel"), ValueError, "unknown stack 'kernel': use auto or netns"),
    ("stack type", lambda: wyrmhole.open(CONFIG, stack=None), TypeError, "stack must be a str"),  # type: ignore[arg-type]
    (
        "engine",
        lambda: wyrmhole.open(CONFIG, engine="rust"),
        ValueError,
        "unknown engine 'rust': use auto or portable",
    ),
    ("engine type", lambda: wyrmhole.open(CONFIG, engine=1), TypeError, "engine must be a str"),  # type: ignore[arg-type]
    ("device", lambda: wyrmhole.open(CONFIG, device="tap"), ValueError, "unknown device 'tap': use 'tun'"),
    ("device type", lambda: wyrmhole.open(CONFIG, device=True), TypeError, "device must be 'tun' or None, not bool"),  # type: ignore[arg-type]
    ("name", lambda: wyrmhole.open(CONFIG, name="wg7"), ValueError, "use it with device='tun'"),
    ("name type", lambda: wyrmhole.open(CONFIG, device="tun", name=7), TypeError, "must be a str such as 'wg7'"),  # type: ignore[arg-type]
    ("sync", lambda: wyrmhole.sync.open(None), TypeError, "a wyrmhole.Config, not None"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("call", "kind", "words"), [row[1:] for row in OPENINGS], ids=[row[0] for row in OPENINGS])
def test_invalid_arguments_of_open_are_refused(call: Callable[[], object], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert words in str(caught.value) and "\n" not in str(caught.value)


KEY = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE="

VERBS: list[tuple[str, Callable[[Any], Any], type[Exception], str]] = [
    ("port", lambda t: t.open_connection(FAR_V4, 65536), ValueError, "the port is 65536; expected 0 to 65535"),
    ("port below", lambda t: t.connect_socket(FAR_V4, -1), ValueError, "the port is -1"),
    ("port type", lambda t: t.connect_socket(FAR_V4, 80.5), TypeError, "the port must be an int"),
    ("port bool", lambda t: t.connect_socket(FAR_V4, True), TypeError, "not bool"),
    ("port none", lambda t: t.open_connection(FAR_V4, None), TypeError, "the port must be an int"),
    ("port empty", lambda t: t.open_connection(FAR_V4, ""), ValueError, "the port is empty"),
    ("port text", lambda t: t.open_connection(FAR_V4, "99999"), socket.gaierror, "'99999' is not a port"),
    ("host none", lambda t: t.open_connection(None, 80), TypeError, "the host must be a str"),
    ("host number", lambda t: t.connect_socket(10, 80), TypeError, "the host must be a str"),
    ("host bytes", lambda t: t.connect_socket(b"h", 80), TypeError, "not bytes"),
    ("host empty", lambda t: t.connect_socket("", 80), ValueError, "the host is empty"),
    (
        "timeout negative",
        lambda t: t.open_connection(FAR_V4, 80, timeout=-1),
        ValueError,
        "timeout is -1; expected seconds",
    ),
    ("timeout nan", lambda t: t.connect_socket(FAR_V4, 80, timeout=float("nan")), ValueError, "timeout is nan"),
    ("timeout huge", lambda t: t.connect_socket(FAR_V4, 80, timeout=1e300), ValueError, "more than a year"),
    ("timeout text", lambda t: t.ping(FAR_V4, timeout="5"), TypeError, "timeout must be a number of seconds or None"),
    ("timeout bool", lambda t: t.ping(FAR_V4, timeout=True), TypeError, "timeout must be a number"),
    ("local", lambda t: t.connect_socket(FAR_V4, 80, local_addr=NEAR_V4), TypeError, "local_addr must be a pair"),
    ("local long", lambda t: t.connect_socket(FAR_V4, 80, local_addr=("a", 1, 2)), TypeError, "not 3 values"),
    ("ping size", lambda t: t.ping(FAR_V4, size=-1), ValueError, "the size of a ping is -1; expected 0 to"),
    ("ping size type", lambda t: t.ping(FAR_V4, size="9"), TypeError, "the size of a ping must be an int"),
    ("ping host", lambda t: t.ping(None), TypeError, "the host must be a str"),
    ("lookup host", lambda t: t.getaddrinfo(10, 80), TypeError, "the host must be a str"),
    ("lookup port", lambda t: t.getaddrinfo(FAR_V4, 8.5), TypeError, "the port must be an int"),
    ("server port", lambda t: t.start_server(print, port=70000), ValueError, "the port is 70000"),
    ("server port type", lambda t: t.create_server(print, port=None), TypeError, "the port must be an int"),
    ("server backlog", lambda t: t.create_server(print, port=0, backlog="5"), TypeError, "backlog must be an int"),
    (
        "datagrams",
        lambda t: t.create_datagram_endpoint(print, remote_addr="10.66.0.2"),
        TypeError,
        "remote_addr must be",
    ),
    ("datagram port", lambda t: t.create_datagram_endpoint(print, local_addr=("", -5)), ValueError, "the port is -5"),
    ("handshake", lambda t: t.wait_handshake(timeout=-2), ValueError, "timeout is -2"),
    ("forward", lambda t: t.forward(5432, "db:5432"), TypeError, "must be a str such as '127.0.0.1:5432' or ':80'"),
    ("forward target", lambda t: t.forward(":0", None), TypeError, "HOST:PORT must be a str"),
    ("forward text", lambda t: t.forward("5432", "db:5432"), ValueError, "'5432' is not HOST:PORT"),
    ("forward port", lambda t: t.forward(":70000", "db:5432"), ValueError, "the port must be at most 65535"),
    ("forward proto", lambda t: t.forward(":0", "db:1", proto="sctp"), ValueError, "the protocol must be tcp or udp"),
    (
        "forward proto type",
        lambda t: t.forward(":0", "db:1", proto=17),
        TypeError,
        "proto must be 'tcp', 'udp'",
    ),
    ("forward limits", lambda t: t.forward(":0", "db:1", limits=5), TypeError, "limits must be a wyrmhole.library"),
    ("expose", lambda t: t.expose(80, 8000), TypeError, "HOST:PORT must be a str"),
    ("proxy", lambda t: t.proxy(1080), TypeError, "HOST:PORT must be a str"),
    ("proxy users", lambda t: t.proxy("127.0.0.1:0", users=["ada"]), TypeError, "users must be a mapping"),
    ("proxy password", lambda t: t.proxy("127.0.0.1:0", users={"ada": 5}), TypeError, "users must map str to str"),
    ("proxy no password", lambda t: t.proxy("127.0.0.1:0", users={"ada": ""}), ValueError, "empty name or password"),
    ("peer key", lambda t: t.peers.add(5), TypeError, "a public key must be base64 text or a PublicKey"),
    ("peer key text", lambda t: t.peers.add("abc"), ValueError, "a key is 44 characters of base64"),
    ("peer private", lambda t: t.peers.add(generate()), TypeError, "not PrivateKey"),
    ("peer ips", lambda t: t.peers.add(KEY, allowed_ips="10.0.0.0/24"), TypeError, "allowed_ips must be a list"),
    ("peer ip", lambda t: t.peers.add(KEY, allowed_ips=[5]), TypeError, "an entry of allowed_ips must be text"),
    ("peer endpoint", lambda t: t.peers.add(KEY, endpoint=("h", 1)), TypeError, "endpoint must be text such as"),
    ("peer psk", lambda t: t.peers.add(KEY, preshared_key=b"x"), TypeError, "preshared_key must be base64 text"),
    ("peer keepalive", lambda t: t.peers.add(KEY, persistent_keepalive=70000), ValueError, "PersistentKeepalive is"),
    ("peer keepalive type", lambda t: t.peers.add(KEY, persistent_keepalive="25"), TypeError, "must be an int of"),
    ("peer name", lambda t: t.peers.add(KEY, name=7), TypeError, "name must be a str"),
    ("peer asked", lambda t: t.peers[7], TypeError, "a public key must be"),
    ("peer removed", lambda t: t.peers.remove(None), TypeError, "a public key must be"),
    ("peer handshake", lambda t: t.peers.handshake(b"x"), TypeError, "a public key must be"),
    ("reload", lambda t: t.reload(5), TypeError, "a configuration must be the path of a file"),
    ("reload nothing", lambda t: t.reload(""), ValueError, "the configuration is empty"),
    ("pickle a peer", lambda t: pickle.dumps(next(iter(t.peers.values()))), TypeError, "belongs to the process"),
    ("pickle", lambda t: pickle.dumps(t), TypeError, "belongs to the process that opened it"),
]


@network
def test_invalid_arguments_of_each_verb_change_nothing() -> None:
    async def scenario() -> None:
        async with tunnels() as ends:
            for name, call, kind, words in VERBS:
                with pytest.raises(kind) as caught:
                    made = call(ends.near)
                    if inspect.isawaitable(made):
                        await made
                assert words in str(caught.value), name
                assert "\n" not in str(caught.value), name
            assert len(ends.near.peers) == 1 and not ends.near._life.services
            await ends.near.ping(FAR_V4)

    run(scenario())


@network
def test_blocking_verbs_raise_the_same_errors() -> None:
    with wyrmhole.sync.open(near_config(generate(), generate(), 9)) as tunnel:
        calls: list[tuple[Callable[[], object], type[Exception], str]] = [
            (lambda: tunnel.create_connection("10.66.0.2"), TypeError, "address must be a pair"),  # type: ignore[arg-type]
            (lambda: tunnel.create_connection((FAR_V4, 80), timeout=-1), ValueError, "timeout is -1"),
            (lambda: tunnel.create_connection((FAR_V4, 80), 5, "x"), TypeError, "source_address must be"),  # type: ignore[arg-type]
            (lambda: tunnel.create_server(8080), TypeError, "address must be a pair"),  # type: ignore[arg-type]
            (lambda: tunnel.forward(5432, "db:1"), TypeError, "HOST:PORT must be a str"),  # type: ignore[arg-type]
            (lambda: tunnel.peers[5], TypeError, "a public key must be"),  # type: ignore[index]
            (lambda: pickle.dumps(tunnel), TypeError, "belongs to the process that opened it"),
        ]
        for call, kind, words in calls:
            with pytest.raises(kind, match=re.escape(words)):
                call()


def test_opening_that_was_not_awaited_is_explained() -> None:
    opening: Any = wyrmhole.open(CONFIG)
    assert "async with wyrmhole.open(...)" in repr(opening)
    with pytest.raises(AttributeError, match=r"not opened the tunnel yet, so it has no 'open_connection': use `async"):
        opening.open_connection("db.internal", 5432)
    with pytest.raises(TypeError, match=r"`async with`, or wyrmhole\.sync\.open"), opening:
        pass
    assert not hasattr(opening, "_ipython_display_")


@network
def test_home_directory_in_a_path_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "wg0.conf"
    path.write_text(near_config(generate(), generate(), 9))
    path.chmod(0o600)

    async def scenario() -> None:
        for config in ("~/wg0.conf", Path("~/wg0.conf")):
            async with wyrmhole.open(config) as tunnel:
                assert str(tunnel.addresses[0]) == f"{NEAR_V4}/24"
                await tunnel.reload()

    run(scenario())


@network
def test_repr_describes_servers_and_tunnels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="wyrmhole")

    async def scenario() -> None:
        async with wyrmhole.open(near_config(generate(), generate(), 9), engine="portable") as tunnel:
            assert "portable engine" in repr(tunnel) and "netns stack" in repr(tunnel)
            server = await tunnel.create_server(lambda: None, NEAR_V4, 8080)  # type: ignore[arg-type, return-value]
            assert repr(server) == f"<TunnelServer on {NEAR_V4}:8080>"
            server.close()
            assert repr(server) == "<TunnelServer, closed>"

    run(scenario())
    (line,) = [record.getMessage() for record in caplog.records if "opened" in record.getMessage()]
    assert line == "<text>: opened, netns stack. Portable engine: requested"

"""The words of `wyrmhole set`, and hosts with ports, endpoints and numbers on the command line."""

from __future__ import annotations

import click

from wyrmhole.cli.commands.change import parse_words
from wyrmhole.control.config.endpoint_names import NameResolver, parse_retries
from wyrmhole.control.config.values import ConfigEndpoint
from wyrmhole.library.services.dialer import HostPort

FILES = ("private-key", "preshared-key")


def never(seconds: float) -> None:
    raise AssertionError("waited although the name was found")


RESOLVER = NameResolver(0, never, print, lambda host, port: f"192.0.2.1:{port}")


def TestOneInput(data: bytes) -> None:
    """Words are a change whose values are in range, or a usage error of one line. Addresses survive being written."""
    text = data.decode(errors="replace")
    words = tuple(text.split("\n"))
    if not set(words) & set(FILES):
        check_words(words)
    for word in words:
        check_address(word)
        retries = parse_retries(word)
        assert retries is None or retries >= 0


def check_words(words: tuple[str, ...]) -> None:
    try:
        change = parse_words(words, RESOLVER)
    except click.UsageError as error:
        assert "\n" not in error.message
        return
    assert change.listen_port is None or 0 <= change.listen_port < 1 << 16
    assert change.fwmark is None or 0 <= change.fwmark < 1 << 32
    assert len(change.peers) <= words.count("peer")


def check_address(word: str) -> None:
    try:
        parsed = HostPort.parse(word)
    except ValueError:
        pass
    else:
        assert 0 <= parsed.port <= 65535 and parsed.proto in (None, "tcp", "udp")
        assert HostPort.parse(str(parsed)) == HostPort(parsed.host, parsed.port)
    try:
        endpoint = ConfigEndpoint.parse(word)
    except ValueError:
        return
    assert ConfigEndpoint.parse(endpoint.emit()) == endpoint
    assert 0 <= endpoint.port <= 65535

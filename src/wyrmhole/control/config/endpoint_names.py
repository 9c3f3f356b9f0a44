"""Resolve endpoint names once, for a command, like wg(8).

A temporary failure is retried after 1 s, 1.2 s, 1.44 s, ... up to 20 s, WG_ENDPOINT_RESOLUTION_RETRIES times (a number
or `infinity`; by default 15). A name that does not exist fails at once.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from wyrmhole.control.config.values import ConfigEndpoint
from wyrmhole.errors import DeviceError
from wyrmhole.wire.endpoint import Endpoint

DEFAULT_RETRIES = 15
FIRST_DELAY = 1.0
GROWTH = 1.2
LONGEST_DELAY = 20.0

_TEMPORARY = {socket.EAI_AGAIN}


def parse_retries(text: str) -> int | None:
    """Return the number of retries; None means no limit. Other text means the default, like for wg(8)."""
    if text == "infinity":
        return None
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else DEFAULT_RETRIES


def is_temporary(error: OSError) -> bool:
    """Report whether a later attempt may succeed."""
    return error.errno in _TEMPORARY


class NameResolver:
    """A `control.config.change.Resolver`. `wait` sleeps for seconds, and `warn` shows a sentence to the user."""

    def __init__(
        self,
        retries: int | None,
        wait: Callable[[float], None],
        warn: Callable[[str], None],
        look_up: Callable[[str, int], str] | None = None,
    ) -> None:
        self._retries = retries
        self._wait = wait
        self._warn = warn
        self._look_up = look_up or look_up_host

    def __call__(self, endpoint: ConfigEndpoint) -> Endpoint:
        """Resolve an endpoint. Raises DeviceError if the name cannot be resolved."""
        if (literal := endpoint.literal) is not None:
            return literal
        delay, tried = FIRST_DELAY, 0
        while True:
            try:
                return Endpoint.parse(self._look_up(endpoint.host, endpoint.port))
            except socket.gaierror as error:
                tried += 1
                if not is_temporary(error) or (self._retries is not None and tried > self._retries):
                    raise DeviceError(f"endpoint {endpoint.emit()}: {error.strerror}") from error
                self._warn(
                    f"{error.strerror}: `{endpoint.emit()}'. Trying again in {delay:.2f} seconds... "
                    "(Ctrl-C stops; WG_ENDPOINT_RESOLUTION_RETRIES limits the attempts)"
                )
            self._wait(delay)
            delay = min(delay * GROWTH, LONGEST_DELAY)


def look_up_host(host: str, port: int) -> str:
    """Return the first address in the system's order, in the UAPI's format. Raises socket.gaierror."""
    try:
        _, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM, proto=socket.IPPROTO_UDP)[0]
    except UnicodeError as error:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known") from error
    if len(address) == 4:
        return Endpoint.from_sockaddr((str(address[0]), int(address[1]), 0, int(address[3]))).emit()
    return Endpoint.from_sockaddr((str(address[0]), int(address[1]))).emit()

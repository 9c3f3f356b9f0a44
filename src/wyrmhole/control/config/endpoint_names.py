"""Endpoints given as names, looked up once for a command, as wg(8) does it.

A failure that may pass is tried again, after 1 s, 1.2 s, 1.44 s, ... up to 20 s, WG_ENDPOINT_RESOLUTION_RETRIES times
(15 unless told; `infinity`). A name that does not exist ends it at once.
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

_PASSING = {socket.EAI_AGAIN}


def parse_retries(text: str) -> int | None:
    """None: for ever. What is no number means the default, as for wg(8)."""
    if text == "infinity":
        return None
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else DEFAULT_RETRIES


def is_passing(error: OSError) -> bool:
    """Whether the same question may be answered later."""
    return error.errno in _PASSING


class NameResolver:
    """Callable as `wg_change.Resolver`. `wait` sleeps seconds, `warn` takes a sentence for the user."""

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
        """Raises DeviceError when the name cannot be resolved."""
        if (literal := endpoint.literal) is not None:
            return literal
        delay, tried = FIRST_DELAY, 0
        while True:
            try:
                return Endpoint.parse(self._look_up(endpoint.host, endpoint.port))
            except socket.gaierror as error:
                tried += 1
                if not is_passing(error) or (self._retries is not None and tried > self._retries):
                    raise DeviceError(f"endpoint {endpoint.emit()}: {error.strerror}") from error
                self._warn(
                    f"{error.strerror}: `{endpoint.emit()}'. Trying again in {delay:.2f} seconds... "
                    "(Ctrl-C stops; WG_ENDPOINT_RESOLUTION_RETRIES sets how often)"
                )
            self._wait(delay)
            delay = min(delay * GROWTH, LONGEST_DELAY)


def look_up_host(host: str, port: int) -> str:
    """The first address of the system's order, as the UAPI writes it. Raises socket.gaierror."""
    try:
        _, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM, proto=socket.IPPROTO_UDP)[0]
    except UnicodeError as error:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known") from error
    if len(address) == 4:
        return Endpoint.from_sockaddr((str(address[0]), int(address[1]), 0, int(address[3]))).emit()
    return Endpoint.from_sockaddr((str(address[0]), int(address[1]))).emit()

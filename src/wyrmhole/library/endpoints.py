"""Where peers are, when that is told by a name: asked again in time, and other addresses tried when one fails.

Endpoints are names of the network outside of the tunnel, so the host resolves them. It does not tell how long an answer
holds (getaddrinfo(3)), but its own cache knows: asking it once a minute follows the TTL closely and costs nothing.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from wyrmhole.control.wg_values import ConfigEndpoint
from wyrmhole.library.own_threads import getaddrinfo
from wyrmhole.protocol.keys import PublicKey
from wyrmhole.wire.endpoint import Endpoint

CHECK_SECONDS = 5.0
"""As long as one handshake message waits for its answer (Rekey-Timeout)."""
CHECKS_PER_TTL = 12
"""A minute."""

LookUp = Callable[[str, int], Awaitable[list[Endpoint]]]
log = logging.getLogger("wyrmhole")


@dataclass(slots=True)
class _Name:
    endpoint: ConfigEndpoint
    answers: list[Endpoint]
    age: int = 0


@dataclass(slots=True)
class EndpointNames:
    """`unanswered` tells how many handshake messages of a peer got no answer; `move` has the peer looked for elsewhere;
    `now_at` tells where it is looked for, which roaming changes."""

    unanswered: Callable[[PublicKey], int]
    now_at: Callable[[PublicKey], Endpoint | None]
    move: Callable[[PublicKey, Endpoint], None]
    look_up: LookUp | None = None
    interval: float = CHECK_SECONDS
    _names: dict[PublicKey, _Name] = field(default_factory=dict)
    _task: asyncio.Task[None] | None = None

    async def resolve(self, endpoint: ConfigEndpoint) -> list[Endpoint]:
        """All addresses of an endpoint in the host's order. Raises socket.gaierror naming it."""
        if (literal := endpoint.literal) is not None:
            return [literal]
        try:
            return await (self.look_up or look_up_host)(endpoint.host, endpoint.port)
        except (socket.gaierror, UnicodeError) as error:
            number = error.errno if isinstance(error, socket.gaierror) else socket.EAI_NONAME
            reason = error.strerror if isinstance(error, socket.gaierror) else "this is no name"
            raise socket.gaierror(number, f"endpoint {endpoint.emit()}: {reason}") from error

    async def resolve_all(self, endpoints: Iterable[ConfigEndpoint]) -> dict[ConfigEndpoint, list[Endpoint]]:
        """Side by side. Raises socket.gaierror."""
        wanted = list(dict.fromkeys(endpoints))
        return dict(zip(wanted, await asyncio.gather(*map(self.resolve, wanted)), strict=True))

    def watch(self, key: PublicKey, endpoint: ConfigEndpoint, answers: list[Endpoint]) -> None:
        """Look after this peer's endpoint, if it is a name."""
        self._names.pop(key, None)
        if endpoint.literal is None:
            self._names[key] = _Name(endpoint, answers)
            if self._task is None:
                self._task = asyncio.get_running_loop().create_task(self._run())

    def forget(self, key: PublicKey) -> None:
        self._names.pop(key, None)

    def close(self) -> None:
        self._names.clear()
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self.interval)
            await self.check()

    async def check(self) -> None:
        """Ask again for what failed or is old; called every `interval` seconds."""
        for key, name in list(self._names.items()):
            name.age += 1
            failing = self.unanswered(key) > 0
            if failing or name.age >= CHECKS_PER_TTL:
                await self._ask_again(key, name, failing)

    async def _ask_again(self, key: PublicKey, name: _Name, failing: bool) -> None:
        name.age = 0
        former = name.answers
        try:
            name.answers = await self.resolve(name.endpoint)
        except OSError as error:
            log.info("%s", error)
        current = self.now_at(key)
        if self._names.get(key) is not name:
            return
        target = next_address(name.answers, current) if failing else moved(former, name.answers, current)
        if target is not None and target != current:
            log.info("endpoint %s: trying %s", name.endpoint.emit(), target.emit())
            self.move(key, target)


def next_address(answers: list[Endpoint], current: Endpoint | None) -> Endpoint | None:
    """The one after the current; so all are tried in turn, IPv4 and IPv6."""
    if current not in answers:
        return answers[0] if answers else None
    return answers[(answers.index(current) + 1) % len(answers)]


def moved(former: list[Endpoint], answers: list[Endpoint], current: Endpoint | None) -> Endpoint | None:
    """Where a name went. A peer that roamed is left where it is as long as its name says the same."""
    return answers[0] if answers and set(answers) != set(former) and current not in answers else None


async def look_up_host(host: str, port: int) -> list[Endpoint]:
    """Raises socket.gaierror."""
    found = await getaddrinfo(host, port, type=socket.SOCK_DGRAM, proto=socket.IPPROTO_UDP)
    addresses: list[Any] = [info[4] for info in found]
    return list(dict.fromkeys(map(Endpoint.from_sockaddr, addresses)))

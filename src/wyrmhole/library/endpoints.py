"""Where peers are, when that is told by a name: asked again in time, and other addresses tried when one fails.

Endpoints are names of the network outside of the tunnel, so the host resolves them. It does not tell how long an answer
holds (getaddrinfo(3)), but its own cache knows: asking it once a minute follows the TTL closely and costs nothing.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from wyrmhole.control.config.values import ConfigEndpoint
from wyrmhole.errors import ConfigError
from wyrmhole.library.common.own_threads import getaddrinfo
from wyrmhole.library.common.supervise import Repeated, report_error
from wyrmhole.protocol.keys import PublicKey
from wyrmhole.wire.endpoint import Endpoint

CHECK_SECONDS = 5.0
"""As long as one handshake message waits for its answer (Rekey-Timeout)."""
CHECKS_PER_TTL = 12
"""A minute."""

PATIENCE = 5.0
"""Seconds that a tunnel which has somebody to talk to waits for the other names."""

LOOKUPS = 8
"""Names asked at once: each may hold a thread of the program for as long as the host's name servers are silent."""

Answers = dict[ConfigEndpoint, list[Endpoint]]
LookUp = Callable[[str, int], Awaitable[list[Endpoint]]]
log = logging.getLogger("wyrmhole")


@dataclass(slots=True)
class _Name:
    endpoint: ConfigEndpoint
    answers: list[Endpoint]
    age: int = 0
    failures: int = 0
    """Since it last had an address."""


@dataclass(slots=True)
class EndpointNames:
    """`unanswered` tells how many handshake messages of a peer got no answer; `move` has the peer looked for elsewhere;
    `now_at` tells where it is looked for, which roaming changes; `on_failure` hears why a name that never had an
    address still has none."""

    unanswered: Callable[[PublicKey], int]
    now_at: Callable[[PublicKey], Endpoint | None]
    move: Callable[[PublicKey, Endpoint], None]
    look_up: LookUp | None = None
    on_failure: Callable[[PublicKey, str], None] = lambda key, reason: None
    interval: float = CHECK_SECONDS
    _names: dict[PublicKey, _Name] = field(default_factory=dict)
    _turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(LOOKUPS))
    _looks: Repeated | None = None

    async def resolve(self, endpoint: ConfigEndpoint) -> list[Endpoint]:
        """All addresses of an endpoint in the host's order. Raises socket.gaierror naming it."""
        if (literal := endpoint.literal) is not None:
            return [literal]
        try:
            async with self._turns:
                return await (self.look_up or look_up_host)(endpoint.host, endpoint.port)
        except (socket.gaierror, UnicodeError) as error:
            number = error.errno if isinstance(error, socket.gaierror) else socket.EAI_NONAME
            reason = error.strerror if isinstance(error, socket.gaierror) else "this is no name"
            raise socket.gaierror(number, f"endpoint {endpoint.emit()}: {reason}") from error

    async def resolve_all(self, endpoints: Iterable[ConfigEndpoint]) -> dict[ConfigEndpoint, list[Endpoint]]:
        """Side by side. Raises socket.gaierror."""
        wanted = list(dict.fromkeys(endpoints))
        return dict(zip(wanted, await asyncio.gather(*map(self.resolve, wanted)), strict=True))

    async def resolve_some(
        self, endpoints: Iterable[ConfigEndpoint], is_enough: Callable[[Answers], bool], patience: float = PATIENCE
    ) -> tuple[Answers, dict[ConfigEndpoint, socket.gaierror]]:
        """Side by side; what was found, and why the rest was not. Names that take longer than `patience` are waited for
        only until there `is_enough`."""
        tasks = {each: asyncio.ensure_future(self.resolve(each)) for each in dict.fromkeys(endpoints)}
        pending = set(tasks.values())
        try:
            if pending:
                _, pending = await asyncio.wait(pending, timeout=patience)
            while pending and not is_enough(found_by(tasks)):
                _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            failures = {each: failure_of(each, task) for each, task in tasks.items()}
            return found_by(tasks), {each: failure for each, failure in failures.items() if failure is not None}
        finally:
            for task in tasks.values():
                task.cancel()
                task.add_done_callback(look_at)

    def watch(self, key: PublicKey, endpoint: ConfigEndpoint, answers: list[Endpoint]) -> None:
        """Look after this peer's endpoint, if it is a name. What it last resolved to holds while it has no answer."""
        former = self._names.pop(key, None)
        if endpoint.literal is None:
            known = former.answers if former is not None and former.endpoint == endpoint else []
            self._names[key] = _Name(endpoint, answers or known)
            if not answers:
                self._failed(key, self._names[key], "no address was found")
            if self._looks is None:
                self._looks = Repeated("following the names of endpoints", self.interval, self.check)

    def forget(self, key: PublicKey) -> None:
        self._names.pop(key, None)

    def close(self) -> None:
        self._names.clear()
        if self._looks is not None:
            self._looks.close()
            self._looks = None

    async def check(self) -> None:
        """Ask again for what failed or is old; called every `interval` seconds."""
        due: list[Awaitable[None]] = []
        for key, name in list(self._names.items()):
            name.age += 1
            missing = not name.answers and self.now_at(key) is None
            failing = missing if name.failures < CHECKS_PER_TTL else False
            if failing or self.unanswered(key) > 0 or name.age >= CHECKS_PER_TTL:
                due.append(self._ask_again(key, name, missing or self.unanswered(key) > 0))
        # Side by side: a name that takes long must not hold up the others.
        for outcome in await asyncio.gather(*due, return_exceptions=True):
            if isinstance(outcome, BaseException):
                report_error("following the name of an endpoint", outcome)

    def _failed(self, key: PublicKey, name: _Name, reason: str) -> None:
        if not name.answers and self.now_at(key) is None:
            name.failures += 1
            self.on_failure(key, f"endpoint {name.endpoint.emit()}: {reason}")

    async def _ask_again(self, key: PublicKey, name: _Name, failing: bool) -> None:
        name.age = 0
        former = name.answers
        try:
            name.answers = await self.resolve(name.endpoint)
        except OSError as error:
            log.info("%s", error.strerror or error)
            self._failed(key, name, str(error.__cause__ or error))
        current = self.now_at(key)
        if self._names.get(key) is not name:
            return
        target = next_address(name.answers, current) if failing else moved(former, name.answers, current)
        if target is not None and target != current:
            log.info("endpoint %s: trying %s", name.endpoint.emit(), target.emit())
            self._move(key, name, target, former)

    def _move(self, key: PublicKey, name: _Name, target: Endpoint, former: list[Endpoint]) -> None:
        """What cannot be done now is done at the next look: the name then still goes elsewhere than before."""
        try:
            self.move(key, target)
        except (OSError, ConfigError) as error:
            name.answers, name.age = former, CHECKS_PER_TTL
            log.info("endpoint %s: not moved to %s: %s", name.endpoint.emit(), target.emit(), error)
        else:
            name.failures = 0


def found_by(tasks: Mapping[ConfigEndpoint, asyncio.Future[list[Endpoint]]]) -> Answers:
    """What the tasks that are done have found."""
    return {
        each: task.result()
        for each, task in tasks.items()
        if task.done() and not task.cancelled() and task.exception() is None
    }


def failure_of(endpoint: ConfigEndpoint, task: asyncio.Future[list[Endpoint]]) -> socket.gaierror | None:
    """Why a name was not found; raises what is no matter of names."""
    if not task.done():
        reason = "the host's name servers do not answer"
        return socket.gaierror(socket.EAI_AGAIN, f"endpoint {endpoint.emit()}: {reason}")
    error = task.exception()
    if error is None or isinstance(error, socket.gaierror):
        return error
    raise error


def look_at(task: asyncio.Future[list[Endpoint]]) -> None:
    """Lest a failure that nobody waits for any more is reported as lost."""
    if not task.cancelled():
        task.exception()


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

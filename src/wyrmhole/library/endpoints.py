"""Endpoints given as host names: re-resolve them periodically, and try the next address when one does not answer.

Endpoints are names in the network outside the tunnel, so the host resolves them. getaddrinfo(3) does not report how
long an answer is valid, but the host's cache respects the TTL. Asking it once per minute follows the TTL closely at no
cost.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field

from wyrmhole.control.config.values import ConfigEndpoint
from wyrmhole.errors import ConfigError
from wyrmhole.library.common.own_threads import getaddrinfo
from wyrmhole.library.common.supervise import Repeated, report_error
from wyrmhole.protocol.keys import PublicKey
from wyrmhole.wire.endpoint import Endpoint

CHECK_SECONDS = 5.0
"""The time that a handshake message waits for its answer (Rekey-Timeout)."""
CHECKS_PER_TTL = 12
"""One minute between two look-ups of a name without problems."""

PATIENCE = 5.0
"""Seconds to wait for further names when one usable peer is enough."""

LOOKUPS = 8
"""Limit of concurrent look-ups. Each may hold a thread as long as the host's name servers do not answer."""

Answers = dict[ConfigEndpoint, list[Endpoint]]
LookUp = Callable[[str, int], Awaitable[list[Endpoint]]]
log = logging.getLogger("wyrmhole")


@dataclass(slots=True)
class _Name:
    endpoint: ConfigEndpoint
    answers: list[Endpoint]
    age: int = 0
    failures: int = 0
    """Failures since the name last had an address."""


@dataclass(slots=True)
class EndpointNames:
    """Follows the endpoint names of a tunnel's peers.

    `unanswered` returns the number of unanswered handshake messages of a peer. `now_at` returns its present endpoint,
    which roaming may have changed, and `move` sets it. `on_failure` receives the reason why a name without a known
    address does not resolve.
    """

    unanswered: Callable[[PublicKey], int]
    now_at: Callable[[PublicKey], Endpoint | None]
    move: Callable[[PublicKey, Endpoint], None]
    look_up: LookUp | None = None
    on_failure: Callable[[PublicKey, str], None] = lambda key, reason: None
    interval: float = CHECK_SECONDS
    _names: dict[PublicKey, _Name] = field(default_factory=dict)
    _look_up_limit: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(LOOKUPS))
    _checks: Repeated | None = None

    async def resolve(self, endpoint: ConfigEndpoint) -> list[Endpoint]:
        """Return all addresses of an endpoint in the host's order. Raises socket.gaierror with its name."""
        if (literal := endpoint.literal) is not None:
            return [literal]
        try:
            async with self._look_up_limit:
                return await (self.look_up or look_up_host)(endpoint.host, endpoint.port)
        except (socket.gaierror, UnicodeError) as error:
            number = error.errno if isinstance(error, socket.gaierror) else socket.EAI_NONAME
            reason = error.strerror if isinstance(error, socket.gaierror) else "not a valid host name"
            raise socket.gaierror(number, f"endpoint {endpoint.emit()}: {reason}") from error

    async def resolve_all(self, endpoints: Iterable[ConfigEndpoint]) -> dict[ConfigEndpoint, list[Endpoint]]:
        """Resolve endpoints concurrently. Raises socket.gaierror."""
        wanted = list(dict.fromkeys(endpoints))
        return dict(zip(wanted, await asyncio.gather(*map(self.resolve, wanted)), strict=True))

    async def resolve_some(
        self, endpoints: Iterable[ConfigEndpoint], is_enough: Callable[[Answers], bool], patience: float = PATIENCE
    ) -> tuple[Answers, dict[ConfigEndpoint, socket.gaierror]]:
        """Resolve endpoints concurrently, and return the answers and the failures.

        After `patience` seconds, wait for further names only until the answers are enough.
        """
        tasks = {endpoint: asyncio.ensure_future(self.resolve(endpoint)) for endpoint in dict.fromkeys(endpoints)}
        pending = set(tasks.values())
        try:
            if pending:
                _, pending = await asyncio.wait(pending, timeout=patience)
            while pending and not is_enough(found_by(tasks)):
                _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            failures = {endpoint: failure_of(endpoint, task) for endpoint, task in tasks.items()}
            failed = {endpoint: failure for endpoint, failure in failures.items() if failure is not None}
            return found_by(tasks), failed
        finally:
            for task in tasks.values():
                task.cancel()
                task.add_done_callback(retrieve_exception)

    def watch(self, key: PublicKey, endpoint: ConfigEndpoint, answers: list[Endpoint]) -> None:
        """Follow the peer's endpoint if it is a name. Its last addresses stay valid while it does not resolve."""
        former = self._names.pop(key, None)
        if endpoint.literal is None:
            known = former.answers if former is not None and former.endpoint == endpoint else []
            self._names[key] = _Name(endpoint, answers or known)
            if not answers:
                self._failed(key, self._names[key], "no address was found")
            if self._checks is None:
                self._checks = Repeated("following the names of endpoints", self.interval, self.check)

    def forget(self, key: PublicKey) -> None:
        self._names.pop(key, None)

    def close(self) -> None:
        self._names.clear()
        if self._checks is not None:
            self._checks.close()
            self._checks = None

    async def check(self) -> None:
        """Look up names again that failed or are old. Runs every `interval` seconds."""
        due: list[Awaitable[None]] = []
        for key, name in list(self._names.items()):
            name.age += 1
            missing = not name.answers and self.now_at(key) is None
            failing = missing if name.failures < CHECKS_PER_TTL else False
            if failing or self.unanswered(key) > 0 or name.age >= CHECKS_PER_TTL:
                due.append(self._ask_again(key, name, missing or self.unanswered(key) > 0))
        # Concurrently, because a slow name must not delay the others.
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
        """Set the peer's endpoint. After a failure, restore the old answers so that the next check tries again."""
        try:
            self.move(key, target)
        except (OSError, ConfigError) as error:
            name.answers, name.age = former, CHECKS_PER_TTL
            log.info("endpoint %s: cannot move to %s: %s", name.endpoint.emit(), target.emit(), error)
        else:
            name.failures = 0


def found_by(tasks: Mapping[ConfigEndpoint, asyncio.Future[list[Endpoint]]]) -> Answers:
    """Return the answers of the tasks that succeeded."""
    return {
        endpoint: task.result()
        for endpoint, task in tasks.items()
        if task.done() and not task.cancelled() and task.exception() is None
    }


def failure_of(endpoint: ConfigEndpoint, task: asyncio.Future[list[Endpoint]]) -> socket.gaierror | None:
    """Return the reason why a name was not resolved. Raises an unexpected error."""
    if not task.done():
        reason = "the host's name servers do not answer"
        return socket.gaierror(socket.EAI_AGAIN, f"endpoint {endpoint.emit()}: {reason}")
    error = task.exception()
    if error is None or isinstance(error, socket.gaierror):
        return error
    raise error


def retrieve_exception(task: asyncio.Future[list[Endpoint]]) -> None:
    """Mark the failure of an abandoned task as retrieved, so that asyncio does not log it."""
    if not task.cancelled():
        task.exception()


def next_address(answers: list[Endpoint], current: Endpoint | None) -> Endpoint | None:
    """Return the address after the current one, so that all are tried in turn, IPv4 and IPv6."""
    if current not in answers:
        return answers[0] if answers else None
    return answers[(answers.index(current) + 1) % len(answers)]


def moved(former: list[Endpoint], answers: list[Endpoint], current: Endpoint | None) -> Endpoint | None:
    """Return the new address of a name that has moved. A peer that roamed stays there while its name is unchanged."""
    return answers[0] if answers and set(answers) != set(former) and current not in answers else None


async def look_up_host(host: str, port: int) -> list[Endpoint]:
    """Resolve a name by the host. Raises socket.gaierror."""
    found = await getaddrinfo(host, port, type=socket.SOCK_DGRAM, proto=socket.IPPROTO_UDP)
    return list(dict.fromkeys(Endpoint.from_sockaddr(info[4]) for info in found))

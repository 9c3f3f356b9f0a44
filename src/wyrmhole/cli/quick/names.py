"""Resolve the endpoint names of a file, for `up` and `syncconf`. One usable peer is enough.

All names are looked up concurrently, so the slowest one determines the time. A temporary failure (no name server
answers yet, for example at boot) is retried like in wg(8): 15 times in about 70 s, or WG_ENDPOINT_RESOLUTION_RETRIES
times. Without that variable, and if a peer is already usable, it is retried twice.

The command does not wait for names that stay unresolved. For each such peer, it prints the command that sets the
endpoint later.
"""

from __future__ import annotations

import math
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from wyrmhole.cli.quick.deadline import Deadline
from wyrmhole.cli.quick.signals import Interrupts
from wyrmhole.control.config.endpoint_names import (
    DEFAULT_RETRIES,
    FIRST_DELAY,
    GROWTH,
    LONGEST_DELAY,
    is_temporary,
    look_up_host,
    parse_retries,
)
from wyrmhole.control.config.file import Config
from wyrmhole.control.config.values import ConfigEndpoint
from wyrmhole.errors import DeviceError
from wyrmhole.wire.endpoint import Endpoint

RETRIES_BESIDE_A_USABLE_PEER = 2
AT_ONCE = 16
"""Limit of concurrent look-ups, each with a thread."""

ANSWER_SECONDS = 30.0
"""Limit for each AT_ONCE names: three name servers with two queries of 5 s, the defaults of resolv.conf(5)."""

Answer = Endpoint | OSError


@dataclass(frozen=True, slots=True)
class EndpointLookup:
    """Resolves names. `retries` is WG_ENDPOINT_RESOLUTION_RETRIES; `warn` shows a sentence to the user."""

    retries: str
    warn: Callable[[str], None]
    interrupts: Interrupts = field(default_factory=Interrupts)
    look_up: Callable[[str, int], str] = look_up_host
    wait: Callable[[float], None] = time.sleep

    def resolve(self, config: Config, interface: str) -> Callable[[ConfigEndpoint], Endpoint | None]:
        """Look up all names, and return a resolver with the answers. Raises DeviceError if no peer is usable."""
        found: dict[ConfigEndpoint, Endpoint] = {}
        given = [peer.endpoint for peer in config.peers]
        for endpoint in filter(None, given):
            if (literal := endpoint.literal) is not None:
                found[endpoint] = literal
        failed = self._resolve_with_retries(found, [endpoint for endpoint in given if endpoint], None in given)
        if failed and not found and None not in given:
            reasons = [f"endpoint {name.emit()}: {error.strerror or error}" for name, error in failed.items()]
            more = f"; and {len(reasons) - 3} more" if len(reasons) > 3 else ""
            raise DeviceError(f"no peer can be reached: {'; '.join(reasons[:3])}{more}")
        for peer in config.peers:
            if peer.endpoint in failed:
                self._report(interface, peer.public_key.base64(), peer.endpoint, failed[peer.endpoint])
        return found.get

    def _report(self, interface: str, key: str, endpoint: ConfigEndpoint, error: OSError) -> None:
        self.warn(
            f"endpoint {endpoint.emit()}: {error.strerror or error}; {interface} goes on without it, and this sets it "
            f"later: wyrmhole set {interface} peer {key} endpoint {endpoint.emit()}"
        )

    def _resolve_with_retries(
        self, found: dict[ConfigEndpoint, Endpoint], endpoints: list[ConfigEndpoint], can_wait: bool
    ) -> dict[ConfigEndpoint, OSError]:
        """Add the answers to `found`, and return the failures. `can_wait` means that a peer needs no endpoint."""
        failed: dict[ConfigEndpoint, OSError] = {}
        pending = list(dict.fromkeys(endpoint for endpoint in endpoints if endpoint not in found))
        delay, tried = FIRST_DELAY, 0
        while pending:
            for endpoint, answer in self._ask(pending).items():
                failed.pop(endpoint, None)
                if isinstance(answer, Endpoint):
                    found[endpoint] = answer
                else:
                    failed[endpoint] = answer
            pending = [endpoint for endpoint, error in failed.items() if is_temporary(error)]
            tried += 1
            if not pending or tried > self._limit(bool(found) or can_wait):
                break
            self._announce(pending, failed[pending[0]], delay)
            with self.interrupts.waiting():
                self.wait(delay)
            delay = min(delay * GROWTH, LONGEST_DELAY)
        return failed

    def _limit(self, has_usable_peer: bool) -> float:
        if not self.retries:
            return RETRIES_BESIDE_A_USABLE_PEER if has_usable_peer else DEFAULT_RETRIES
        retries = parse_retries(self.retries)
        return math.inf if retries is None else retries

    def _announce(self, pending: list[ConfigEndpoint], error: OSError, delay: float) -> None:
        more = f" and {len(pending) - 1} more" if len(pending) > 1 else ""
        self.warn(
            f"{error.strerror or error}: `{pending[0].emit()}'{more}. Trying again in {delay:.2f} seconds... "
            "(Ctrl-C stops; WG_ENDPOINT_RESOLUTION_RETRIES sets how often)"
        )

    def _ask(self, endpoints: list[ConfigEndpoint]) -> dict[ConfigEndpoint, Answer]:
        """Look up names in daemon threads, because a system look-up cannot be stopped."""
        questions: queue.SimpleQueue[ConfigEndpoint] = queue.SimpleQueue()
        answers: queue.SimpleQueue[tuple[ConfigEndpoint, Answer]] = queue.SimpleQueue()
        for endpoint in endpoints:
            questions.put(endpoint)
        for _ in range(min(AT_ONCE, len(endpoints))):
            threading.Thread(target=self._work, args=(questions, answers), daemon=True).start()
        late = socket.gaierror(socket.EAI_AGAIN, "no name server answered")
        result: dict[ConfigEndpoint, Answer] = dict.fromkeys(endpoints, late)
        deadline = Deadline(ANSWER_SECONDS * math.ceil(len(endpoints) / AT_ONCE))
        with self.interrupts.waiting():
            for _ in endpoints:
                try:
                    endpoint, answer = answers.get(timeout=deadline.remaining)
                except queue.Empty:
                    break
                result[endpoint] = answer
        return result

    def _work(
        self, questions: queue.SimpleQueue[ConfigEndpoint], answers: queue.SimpleQueue[tuple[ConfigEndpoint, Answer]]
    ) -> None:
        for endpoint in _taken(questions):
            try:
                answers.put((endpoint, Endpoint.parse(self.look_up(endpoint.host, endpoint.port))))
            except (OSError, ValueError) as error:
                answers.put((endpoint, error if isinstance(error, OSError) else OSError(0, str(error))))


def _taken(questions: queue.SimpleQueue[ConfigEndpoint]) -> Iterable[ConfigEndpoint]:
    while True:
        try:
            yield questions.get_nowait()
        except queue.Empty:
            return

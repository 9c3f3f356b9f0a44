"""Checks of events, which end up in logs: no event may show a secret, and their rate is bounded (I33)."""

from __future__ import annotations

import base64
from collections.abc import Iterable

from wyrmhole.protocol.events import CAUSED_BY_OTHERS, Event
from wyrmhole.simulation.clock import SECOND
from wyrmhole.simulation.model.checks import Check, require

EVENTS_PER_SECOND = 60
"""The limit for one event class and peer. A peer may complete 50 handshakes a second (rule M15)."""


class EventChecks:
    """Checks the events of host `number` over all its lives.

    `recent` holds the times of the events of the last second, by class and peer.
    """

    def __init__(self, number: int) -> None:
        self.recent: dict[tuple[str, bytes], list[int]] = {}
        self._number = number

    def check(self, event: Event, now: int, secrets: Iterable[bytes]) -> None:
        self._check_text(event, secrets)
        if isinstance(event, CAUSED_BY_OTHERS):
            return
        recent = {key: [at for at in times if at > now - SECOND] for key, times in self.recent.items()}
        self.recent = {key: times for key, times in recent.items() if times}
        times = self.recent.setdefault((type(event).__name__, event.peer.raw), [])
        times.append(now)
        text = f"host {self._number}: {len(times)} {type(event).__name__} events of one peer within a second"
        require(len(times) <= EVENTS_PER_SECOND, Check.EVENTS_ARE_HARMLESS, text)

    def _check_text(self, event: Event, secrets: Iterable[bytes]) -> None:
        text = repr(event) + str(event)
        for secret in secrets:
            shown = secret.hex() in text or repr(secret) in text or base64.b64encode(secret).decode() in text
            message = f"host {self._number}: {type(event).__name__} shows a key"
            require(not shown, Check.EVENTS_ARE_HARMLESS, message)

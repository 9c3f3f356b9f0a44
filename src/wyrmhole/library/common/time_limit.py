"""A time limit whose TimeoutError names the target that did not answer, and the reason if the tunnel knows it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from wyrmhole.library.common.explain import reasons


@dataclass
class Attempt:
    """The progress of an operation. `is_connected` means that an address answered and only TLS is missing."""

    tried: list[str] = field(default_factory=list)
    is_connected: bool = False


@contextlib.asynccontextmanager
async def deadline(seconds: float | None, message: Callable[[], str]) -> AsyncIterator[None]:
    """Limit a block of code. Raises TimeoutError with the message, which is made when the time is over.

    A TimeoutError raised inside the block for another reason is not changed.
    """
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise TimeoutError(message()) from None


@contextlib.asynccontextmanager
async def limited(
    what: str, timeout: float | None, explain: Callable[[str], str], unresolved: Callable[[], str]
) -> AsyncIterator[Attempt]:
    """Limit a block of code. `explain` explains an address, `unresolved` a missing one. Raises TimeoutError."""
    attempt = Attempt()
    async with deadline(timeout, lambda: _text(what, timeout or 0.0, attempt, explain, unresolved)):
        yield attempt


def _text(
    what: str, timeout: float, attempt: Attempt, explain: Callable[[str], str], unresolved: Callable[[], str]
) -> str:
    if attempt.is_connected:
        return f"{what} accepted the connection, but the TLS handshake took longer than {timeout:g} s"
    reason = reasons(attempt.tried, explain) if attempt.tried else unresolved()
    return f"{what} did not answer within {timeout:g} s{f'; {reason}' if reason else ''}"


def addresses_of(infos: Sequence[tuple[object, ...]]) -> list[str]:
    """Return the hosts in a result of getaddrinfo, each once."""
    return list(dict.fromkeys(str(info[4][0]) for info in infos))  # type: ignore[index]

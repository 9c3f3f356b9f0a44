"""A cache of DNS answers, bounded in number and age. The clock is an argument.

dnspython's own caches use the time of day, which may jump. This one has the interface that its resolver expects.
Positive answers are kept for their TTL, up to `MAX_AGE`. Negative answers (RFC 2308) are kept for the time in their SOA
record, up to `MAX_NEGATIVE_AGE`; without that record they are not kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import dns.name
    import dns.rdataclass
    import dns.rdatatype
    import dns.resolver

    Key: TypeAlias = tuple[dns.name.Name, dns.rdatatype.RdataType, dns.rdataclass.RdataClass]

CAPACITY = 4096
"""Answers that are kept; the least recently used is dropped first. An answer takes about 3 KiB, all of them 12 MiB."""
MAX_AGE = 3600.0
"""Limit in seconds for an answer, so that a server that moved is found within an hour (RFC 8767, 4)."""
MAX_NEGATIVE_AGE = 300.0
"""Limit in seconds for a negative answer, so that a new record is found soon (RFC 2308, 5)."""


class DnsCache:
    """A cache of DNS answers. `clock` returns monotonic seconds."""

    def __init__(self, clock: Callable[[], float], capacity: int = CAPACITY) -> None:
        self._clock = clock
        self._capacity = capacity
        self._answers: OrderedDict[Key, tuple[float, dns.resolver.Answer]] = OrderedDict()

    def get(self, key: Key) -> dns.resolver.Answer | None:
        expiry, answer = self._answers.get(key, (0.0, None))
        if answer is None:
            return None
        if expiry <= self._clock():
            del self._answers[key]
            return None
        self._answers.move_to_end(key)
        return answer

    def put(self, key: Key, value: dns.resolver.Answer) -> None:
        age = lifetime(value)
        if age <= 0:
            return
        self._answers[key] = self._clock() + age, value
        self._answers.move_to_end(key)
        while len(self._answers) > self._capacity:
            self._answers.popitem(last=False)

    def flush(self, key: Key | None = None) -> None:
        """Remove one answer, or all."""
        if key is None:
            self._answers.clear()
        else:
            self._answers.pop(key, None)


def lifetime(answer: dns.resolver.Answer) -> float:
    """Return how many seconds an answer may be kept."""
    ttl = float(answer.chaining_result.minimum_ttl)
    if answer.rrset is not None:
        return min(ttl, MAX_AGE)
    has_soa = any(rrset.rdtype.name == "SOA" for rrset in answer.response.authority)
    return min(ttl, MAX_NEGATIVE_AGE) if has_soa else 0.0

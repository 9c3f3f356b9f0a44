"""What name servers answered, until it expires: bounded in number and in age, on a clock that is an argument.

dnspython's own caches read the time of day, which may jump. This one has the shape that its resolver expects.
Positive answers live as long as their TTL says, within `LONGEST`; negative ones (RFC 2308) as long as the SOA record
beside them says, within `LONGEST_NEGATIVE`, and not at all without one.
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
"""Answers kept; the least recently used goes first. An answer takes some 3 KiB, all of them 12 MiB."""
LONGEST = 3600.0
"""Seconds that an answer is believed at most: a server that moved is found again within an hour (RFC 8767, 4)."""
LONGEST_NEGATIVE = 300.0
"""Seconds that a "no" is believed at most: what was created a moment ago is found soon (RFC 2308, 5)."""


class DnsCache:
    """`clock` gives seconds that never go back."""

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
        """Forget one answer, or all."""
        if key is None:
            self._answers.clear()
        else:
            self._answers.pop(key, None)


def lifetime(answer: dns.resolver.Answer) -> float:
    """Seconds that an answer may be kept."""
    ttl = float(answer.chaining_result.minimum_ttl)
    if answer.rrset is not None:
        return min(ttl, LONGEST)
    has_soa = any(rrset.rdtype.name == "SOA" for rrset in answer.response.authority)
    return min(ttl, LONGEST_NEGATIVE) if has_soa else 0.0

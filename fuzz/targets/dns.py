"""Answers of a name server."""

from __future__ import annotations

import dns.exception
import dns.message
import dns.name
import dns.rdataclass
import dns.rdatatype
import dns.resolver

from fuzz.reader import Reader
from wyrmhole.library.names.address_info import info
from wyrmhole.library.names.dns_cache import MAX_AGE, DnsCache, lifetime
from wyrmhole.library.names.resolver import addresses_of

KINDS = ("A", "AAAA")
NAME = dns.name.from_text("www.example.")
HEADER = 12


def TestOneInput(data: bytes) -> None:
    """An answer that dnspython accepts yields addresses of the requested family and is cached for a bounded time. Any
    other input raises DNSException, which the resolver handles as "no answer"."""
    reader = Reader(data)
    kind = KINDS[reader.byte() & 1]
    question = dns.message.make_query(NAME, kind, id=1)
    # Only flags and counts of the header vary, and the question is repeated; any other header is refused at once.
    wire = b"\0\1" + reader.take(HEADER - 2).ljust(HEADER - 2, b"\0") + question.to_wire()[HEADER:] + reader.rest()
    try:
        message = dns.message.from_wire(wire)
        if not isinstance(message, dns.message.QueryMessage) or not question.is_response(message):
            return  # an answer to another question, which dnspython refuses
        rdtype = dns.rdatatype.from_text(kind)
        answer = dns.resolver.Answer(NAME, rdtype, dns.rdataclass.IN, message)
    except dns.exception.DNSException:
        return
    for address in addresses_of(answer):
        assert address.version == (4 if kind == "A" else 6)
        assert info(address, 80, 1)[4][:2] == (str(address).partition("%")[0], 80)
    check_kept(answer)


def check_kept(answer: dns.resolver.Answer) -> None:
    now = 0.0
    cache = DnsCache(lambda: now)
    key = (answer.qname, answer.rdtype, answer.rdclass)
    cache.put(key, answer)
    age = lifetime(answer)
    assert age <= MAX_AGE
    assert (cache.get(key) is answer) == (age > 0)
    now = MAX_AGE
    assert cache.get(key) is None

"""Send one query to a name server of the tunnel, and judge the answer. Needs dnspython."""

from __future__ import annotations

from typing import Protocol

import dns.message
import dns.rcode

from wyrmhole.library.diagnosis.finding import BAD, GOOD, POOR, Finding
from wyrmhole.library.diagnosis.probe import ProbeRefused
from wyrmhole.wire.probes import IpAddress

DNS_SECONDS = 3.0


class Asker(Protocol):
    async def ask(self, target: IpAddress, port: int, payload: bytes, seconds: float) -> bytes: ...


async def ask_name_server(probe: Asker, server: IpAddress, name: str) -> Finding:
    question = dns.message.make_query(name, "NS" if name == "." else "A")
    try:
        reply = dns.message.from_wire(await probe.ask(server, 53, question.to_wire(), DNS_SECONDS))
    except ProbeRefused as error:
        advice = "no name server runs there: correct DNS =, or start it"
        if not error.is_port_unreachable:
            advice = "the peer has no path to it"
        return Finding("DNS", BAD, f"{server} port 53: {error}", advice)
    except TimeoutError:
        advice = "no name server runs there, it does not serve our address, or a firewall drops UDP port 53"
        return Finding("DNS", BAD, f"{server} does not answer queries", advice)
    except Exception as error:
        return Finding("DNS", BAD, f"{server} sent an invalid DNS reply: {error}", "correct DNS =")
    return _dns_reply(server, name, reply)


def _dns_reply(server: IpAddress, name: str, reply: dns.message.Message) -> Finding:
    code = dns.rcode.to_text(reply.rcode())
    if code == "NXDOMAIN" and name != ".":
        return Finding("DNS", BAD, f"{server}: {name} does not exist", "correct the name, or use another server")
    if code in ("REFUSED", "SERVFAIL"):
        advice = "the server does not resolve for our address" if code == "REFUSED" else "its upstream server fails"
        return Finding("DNS", POOR if name == "." else BAD, f"{server} answers {code}", advice)
    if name != "." and not reply.answer:
        return Finding("DNS", POOR, f"{server}: {name} has no IPv4 address", "it may have an IPv6 address")
    return Finding("DNS", GOOD, f"{server} answers" + ("" if name == "." else f" for {name}"))

"""Sentences with which a text commits itself to one cause, and the texts that may contain them.

A text that lists several causes ("one of", "check that") commits itself to none of them. The texts of an ailment must
not match the verdicts that it does not allow: they would name a wrong cause.
"""

from __future__ import annotations

VERDICTS = {
    "psk": r"[Pp]reshared ?[Kk]eys? (of the two sides )?(differ|must)|does not authenticate",
    "port closed": r"nothing listens on this UDP port",
    "no route": r"has no IPv[46] route|there is no route to it|no route to \S+:\d",
    "family off": r"IPv[46] is switched off",
    "firewall here": r"firewall on this host|firewall rule or a prohibiting route|refuses to send",
    "unreachable": r"cannot be reached: (No route|Host|Network|[Pp]ermission)|answered: unreachable",
    "unresolved": r"cannot be resolved|could not be resolved|name resolution|Name or service not known",
    "no endpoint": r"no Endpoint (is configured|here)",
    "no peer": r"no \[Peer\]|has no peer",
    "no address": r"no (IPv6 )?Address|needs Address",
    "outside AllowedIPs": r"is in no peer's AllowedIPs",
    "bad source": r"outside (the peer's|its) AllowedIPs",
    "mtu": r"large transfers will hang|set MTU",
    "no server": r"(?m)^NO .* no name server is configured|has no name server",
    "server silent": r"does not answer queries|name server .* did not answer within",
    "server refuses": r"REFUSED",
    "server closed": r"port 53: .*the port is closed|name server.*Connection refused",
    "no such name": r"nobody\.internal'? does not exist|do not know 'nobody",
    "refused inside": r"Connect call failed \([^)]*\): Connection refused",
    "silent inside": r"no answer from 10\.|has a session \(|10\.\S+ did not answer a ping",
    "silent in session": r"within a session",
    "flapping": r"keeps moving between",
    "taken": r"Address already in use",
    "unanswered": r"no answer from \S+ to \d+ initiations|initiations? unanswered|\d+ handshake initiations in 15 s",
    "works": r"it works",
}

"""Explain in a sentence why an address inside a tunnel cannot be reached, from the state of its peer."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Iterable, Sequence

from wyrmhole.device.status import PeerStatus
from wyrmhole.net.udp_route import why_unreachable
from wyrmhole.protocol.constants import SECOND
from wyrmhole.protocol.drops import DropReason
from wyrmhole.wire.prefix import Prefix
from wyrmhole.wire.probes import IpAddress

MAX_PREFIXES = 4
"""Limit of prefixes that a sentence lists."""
MAX_REASONS = 3
UNANSWERED = {errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN}
"""Errors that the path to a host may cause. Other errors come from the remote host or from this one."""
UNBOUND = {errno.EADDRNOTAVAIL, errno.EADDRINUSE, errno.EACCES}
"""Errors of `bind`."""
_CHECK = (
    "check that the endpoint answers, that the keys match on both sides, that UDP is not filtered, and that the clock "
    "here is not behind"
)


def outside(address: IpAddress, prefixes: Iterable[Prefix]) -> str:
    """Explain that no peer owns an address. `prefixes` are those of all peers."""
    first = [prefix.emit() for prefix in itertools.islice(prefixes, MAX_PREFIXES + 1)]
    if not first:
        return f"{address} is in no peer's AllowedIPs: no peer has any"
    shown = ", ".join(first[:MAX_PREFIXES]) + (", ..." if len(first) > MAX_PREFIXES else "")
    return f"{address} is in no peer's AllowedIPs ({shown})"


def state_of(peer: PeerStatus, name: str, foreign: int = 0) -> str:
    """Explain why a host behind a peer does not answer.

    `foreign` counts packets that were dropped because their inner source was not in the sender's AllowedIPs.
    """
    if (reason := no_session(peer, name)) is not None:
        return reason
    session = f"{with_endpoint(peer, name)} has a session (handshake {_ago(peer)})"
    if foreign:
        count = "1 packet" if foreign == 1 else f"{foreign} packets"
        return (
            f"{session}, and {count} from addresses outside its AllowedIPs came and were dropped: add those that answer"
        )
    return (
        f"{session}, so the host inside does not answer: it is off, a firewall drops the packets, the peer's "
        "AllowedIPs for this key lack our address, or another program uses our private key"
    )


def no_session(peer: PeerStatus, name: str) -> str | None:
    """Explain why packets do not reach a peer. Return None if it has a session and answers."""
    if peer.endpoint is None:
        return f"peer {name} has no Endpoint here and has not connected yet"
    subject = with_endpoint(peer, name)
    if peer.problem is DropReason.BAD_HANDSHAKE:
        return f"no handshake with {subject}: it answers, but the preshared keys differ"
    if peer.unanswered:
        seconds = max(0, peer.unanswered_for) // SECOND
        count = f"{peer.unanswered} initiation{'s' if peer.unanswered > 1 else ''} unanswered in {seconds} s"
        if (missing := why_unreachable(peer.endpoint)) is not None:
            return f"no handshake with {subject}: {missing}"
        former = "" if peer.handshake_age is None else f", the last handshake was {_ago(peer)}"
        return f"no handshake with {subject}: {count}{former}; {_CHECK}"
    if peer.handshake_age is None:
        return f"no handshake with {subject} yet"
    if peer.silent_for is not None:
        return f"{subject} has not answered for {peer.silent_for // SECOND + 15} s; {_CHECK}"
    return None


def no_new_session(peer: PeerStatus, name: str) -> str:
    """Explain why a requested handshake did not complete."""
    return (
        no_session(peer, name)
        or f"{with_endpoint(peer, name)} has a session from {_ago(peer)}, but there is no newer one"
    )


def with_endpoint(peer: PeerStatus, name: str) -> str:
    return f"peer {name}" if peer.endpoint is None else f"peer {name} ({peer.endpoint.emit()})"


def _ago(peer: PeerStatus) -> str:
    return f"{(peer.handshake_age or 0) // SECOND} s ago"


def named(error: OSError, host: str, port: int, reason: str) -> OSError:
    """Return the error, with the same type and errno, with the address in asyncio's format and the tunnel's
    explanation."""
    return explained(error, f"{CONNECT_FAILED}{host!r}, {port})", reason)


CONNECT_FAILED = "Connect call failed ("
"""The text of asyncio, for which scripts may search."""


def explained(error: OSError, what: str, reason: str) -> OSError:
    """Return the error, with the same type and errno, with a text that states what failed and, if known, why."""
    cause = error.strerror or str(error) or (os.strerror(error.errno) if error.errno else type(error).__name__)
    text = f"{what}: {cause}{f'; {reason}' if reason else ''}"
    copy = type(error)(error.errno, text) if error.errno is not None else type(error)(text)
    return copy.with_traceback(error.__traceback__)


def reasons(addresses: Sequence[str], explain: Callable[[str], str]) -> str:
    """Join the reasons for several addresses, each reason once. If there are several addresses, list them first."""
    found = list(dict.fromkeys(filter(None, map(explain, addresses))))
    attempts = f"tried {' and '.join(addresses)}" if len(addresses) > 1 else ""
    return "; ".join(filter(None, [attempts, *found[:MAX_REASONS]]))


def host_port(host: str, port: object) -> str:
    """Format host and port, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"

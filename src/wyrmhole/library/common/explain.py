"""Why an address inside a tunnel cannot be reached, in a sentence: what the tunnel knows about the peer in charge."""

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
"""Named in one sentence."""
MAX_REASONS = 3
UNANSWERED = {errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN}
"""What the way to a host may be the cause of. Other errors come from the host itself, or from this one."""
UNBOUND = {errno.EADDRNOTAVAIL, errno.EADDRINUSE, errno.EACCES}
"""What binding fails with."""
_CHECK = (
    "check that the endpoint answers, that the keys match on both sides, that UDP is not filtered, and that the clock "
    "here is not behind"
)


def outside(address: IpAddress, prefixes: Iterable[Prefix]) -> str:
    """For an address that no peer owns; `prefixes` are those of all peers."""
    first = [prefix.emit() for prefix in itertools.islice(prefixes, MAX_PREFIXES + 1)]
    if not first:
        return f"{address} is in no peer's AllowedIPs: there are none"
    shown = ", ".join(first[:MAX_PREFIXES]) + (", ..." if len(first) > MAX_PREFIXES else "")
    return f"{address} is in no peer's AllowedIPs ({shown})"


def state_of(peer: PeerStatus, name: str, foreign: int = 0) -> str:
    """What stands between us and a host behind a peer.
    `foreign`: how many packets were dropped because their inner source was not in the sender's AllowedIPs."""
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
    """Why packets do not reach a peer; None: it has a session, and answers."""
    if peer.endpoint is None:
        return f"peer {name} has no Endpoint here and has not connected yet"
    where = with_endpoint(peer, name)
    if peer.problem is DropReason.BAD_HANDSHAKE:
        return f"no handshake with {where}: it answers, but the preshared keys differ"
    if peer.unanswered:
        seconds = max(0, peer.unanswered_for) // SECOND
        count = f"{peer.unanswered} initiation{'s' if peer.unanswered > 1 else ''} unanswered in {seconds} s"
        if (missing := why_unreachable(peer.endpoint)) is not None:
            return f"no handshake with {where}: {missing}"
        former = "" if peer.handshake_age is None else f", the last handshake was {_ago(peer)}"
        return f"no handshake with {where}: {count}{former}; {_CHECK}"
    if peer.handshake_age is None:
        return f"no handshake with {where} yet"
    if peer.silent_for is not None:
        return f"{where} has answered nothing for {peer.silent_for // SECOND + 15} s; {_CHECK}"
    return None


def no_new_session(peer: PeerStatus, name: str) -> str:
    """Why a handshake that was asked for did not complete."""
    return no_session(peer, name) or f"{with_endpoint(peer, name)} has a session of {_ago(peer)}, and no newer one came"


def with_endpoint(peer: PeerStatus, name: str) -> str:
    return f"peer {name}" if peer.endpoint is None else f"peer {name} ({peer.endpoint.emit()})"


def _ago(peer: PeerStatus) -> str:
    return f"{(peer.handshake_age or 0) // SECOND} s ago"


def named(error: OSError, host: str, port: int, reason: str) -> OSError:
    """The same error, of the same type and errno, with the address in asyncio's words and what the tunnel knows."""
    return explained(error, f"{CONNECT_FAILED}{host!r}, {port})", reason)


CONNECT_FAILED = "Connect call failed ("
"""asyncio's words, which scripts may look for."""


def explained(error: OSError, what: str, reason: str) -> OSError:
    """The same error, of the same type and errno, whose text says what failed and, if it is known, why."""
    cause = error.strerror or str(error) or (os.strerror(error.errno) if error.errno else type(error).__name__)
    text = f"{what}: {cause}{f'; {reason}' if reason else ''}"
    made = type(error)(error.errno, text) if error.errno is not None else type(error)(text)
    return made.with_traceback(error.__traceback__)


def reasons(addresses: Sequence[str], explain: Callable[[str], str]) -> str:
    """What is to say about several addresses, each reason once; the addresses too where there are several."""
    found = list(dict.fromkeys(filter(None, map(explain, addresses))))
    where = f"tried {' and '.join(addresses)}" if len(addresses) > 1 else ""
    return "; ".join(filter(None, [where, *found[:MAX_REASONS]]))


def spot(host: str, port: object) -> str:
    """Host and port as people write them."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"

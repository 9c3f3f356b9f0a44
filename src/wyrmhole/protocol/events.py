"""What an interface reports to its user, as values: what `wg show` would show, and what a log explains.

An event never carries a secret. Those that a remote party can cause at will (`HandshakeRefused`, `CookieReplySent`)
name where the message came from, so that a log can limit its lines for each source.
"""

from __future__ import annotations

from dataclasses import dataclass

from wyrmhole.protocol.drops import DropReason
from wyrmhole.protocol.keys import PublicKey
from wyrmhole.wire.endpoint import Endpoint

# Steps of a handshake


@dataclass(frozen=True, slots=True)
class InitiationSent:
    """`attempt` counts from 1 within one series of attempts (whitepaper 6.4)."""

    peer: PublicKey
    endpoint: Endpoint
    attempt: int


@dataclass(frozen=True, slots=True)
class ResponseSent:
    """An initiation of the peer proved itself and is answered."""

    peer: PublicKey
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class HandshakeCompleted:
    peer: PublicKey
    as_initiator: bool


@dataclass(frozen=True, slots=True)
class HandshakeGaveUp:
    """No answer for Rekey-Attempt-Time (whitepaper 6.4); the next packet for the peer tries again."""

    peer: PublicKey
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class HandshakeImpossible:
    """A packet waits for a session that cannot be begun."""

    peer: PublicKey
    reason: str
    """A sentence for people: what is missing."""


@dataclass(frozen=True, slots=True)
class CookieReceived:
    """The peer is under load: the next initiation carries its cookie (5.4.7)."""

    peer: PublicKey


@dataclass(frozen=True, slots=True)
class CookieReplySent:
    """We are under load, and the source has to prove its address first (5.4.7)."""

    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class HandshakeRefused:
    """A handshake message, or something that is not a message, was dropped. `peer`: whom it names, as far as it proved
    that; a stranger's key is shown because it could only be read with our private key and its tag was right."""

    reason: DropReason
    endpoint: Endpoint
    peer: PublicKey | None = None


@dataclass(frozen=True, slots=True)
class PacketRefused:
    """A packet of the peer had an inner source address that is not the peer's (rule M45). Reported only if the data
    plane was asked to report refusals, and not for every packet."""

    peer: PublicKey
    endpoint: Endpoint
    inner_source: str


# A peer's life


@dataclass(frozen=True, slots=True)
class PeerSilent:
    """Nothing authentic came from the peer for 15 s although something was expected. Once until it is back."""

    peer: PublicKey
    endpoint: Endpoint | None
    initiations: int
    """Unanswered ones since the last completed handshake; 0: data went unanswered within a session."""
    problem: DropReason | None = None
    """Why its response was refused, if there was one."""


@dataclass(frozen=True, slots=True)
class PeerBack:
    """A peer that was silent completed a handshake."""

    peer: PublicKey
    silent_for: int
    """Nanoseconds since it was reported silent."""


@dataclass(frozen=True, slots=True)
class KeepaliveSent:
    peer: PublicKey
    persistent: bool


@dataclass(frozen=True, slots=True)
class Roamed:
    peer: PublicKey
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class EndpointFlapping:
    """The peer keeps moving between two endpoints: usually two programs or hosts that use the same private key."""

    peer: PublicKey
    endpoints: tuple[Endpoint, Endpoint]


@dataclass(frozen=True, slots=True)
class SessionExpired:
    """No new session for three Reject-After-Times: all keys of the peer are gone (whitepaper 6.3)."""

    peer: PublicKey


@dataclass(frozen=True, slots=True)
class BatchesLost:
    """GSO batches to this peer are lost on the way; it gets single datagrams instead, and batches are tried later."""

    peer: PublicKey


@dataclass(frozen=True, slots=True)
class SendRefused:
    """The system does not send to the peer's endpoint; once for each errno until a handshake completes or the endpoint
    is set."""

    peer: PublicKey
    errno: int


Event = (
    InitiationSent
    | ResponseSent
    | HandshakeCompleted
    | HandshakeGaveUp
    | HandshakeImpossible
    | CookieReceived
    | CookieReplySent
    | HandshakeRefused
    | PacketRefused
    | PeerSilent
    | PeerBack
    | KeepaliveSent
    | Roamed
    | EndpointFlapping
    | SendRefused
    | BatchesLost
    | SessionExpired
)

CAUSED_BY_OTHERS = (Roamed, HandshakeRefused, PacketRefused, CookieReplySent)
"""What anybody, or a peer at will, can cause at any rate: a log limits these."""

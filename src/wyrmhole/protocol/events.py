"""Events that an interface reports to its user, as values: changes that `wg show` displays or that a log explains.

An event never carries a secret. Events that a remote party can cause at will (`HandshakeRefused`, `CookieReplySent`)
carry the source of the message, so that a log can limit its lines per source.
"""

from __future__ import annotations

from dataclasses import dataclass

from wyrmhole.protocol.drops import DropReason
from wyrmhole.protocol.keys import PublicKey
from wyrmhole.wire.endpoint import Endpoint

# Steps of a handshake


@dataclass(frozen=True, slots=True)
class InitiationSent:
    """An initiation was sent. `attempt` counts from 1 within one series of attempts (whitepaper 6.4)."""

    peer: PublicKey
    endpoint: Endpoint
    attempt: int


@dataclass(frozen=True, slots=True)
class ResponseSent:
    """A response was sent to an authentic initiation of the peer."""

    peer: PublicKey
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class HandshakeCompleted:
    peer: PublicKey
    as_initiator: bool


@dataclass(frozen=True, slots=True)
class HandshakeGaveUp:
    """The peer did not answer for Rekey-Attempt-Time (whitepaper 6.4).

    The next packet for it starts a new handshake.
    """

    peer: PublicKey
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class HandshakeImpossible:
    """A packet waits for a session, but no handshake is possible."""

    peer: PublicKey
    reason: str
    """A text for users that states what is missing."""


@dataclass(frozen=True, slots=True)
class CookieReceived:
    """The peer is under load and sent a cookie, which the next initiation carries (5.4.7)."""

    peer: PublicKey


@dataclass(frozen=True, slots=True)
class CookieReplySent:
    """We are under load, and the source must prove its address first (5.4.7)."""

    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class HandshakeRefused:
    """A handshake message, or a datagram that is not a message, was dropped.

    `peer` is the public key in the message, if its tag was valid. It may be the key of an unknown sender.
    """

    reason: DropReason
    endpoint: Endpoint
    peer: PublicKey | None = None


@dataclass(frozen=True, slots=True)
class PacketRefused:
    """A packet of the peer had an inner source address that does not belong to the peer (rule M45).

    Reported only if the data plane was asked to report refusals, and at a limited rate.
    """

    peer: PublicKey
    endpoint: Endpoint
    inner_source: str


# A peer's life


@dataclass(frozen=True, slots=True)
class PeerSilent:
    """No authentic packet came from the peer for 15 s although one was expected.

    Reported once until the peer is back.
    """

    peer: PublicKey
    endpoint: Endpoint | None
    initiations: int
    """Unanswered initiations since the last completed handshake; 0 if data went unanswered within a session."""
    problem: DropReason | None = None
    """Why the peer's response was refused, if it sent one."""


@dataclass(frozen=True, slots=True)
class PeerBack:
    """A peer that was silent completed a handshake."""

    peer: PublicKey
    silent_for: int
    """Nanoseconds since the peer was reported silent."""


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
    """The peer moves back and forth between two endpoints, usually because two hosts use the same private key."""

    peer: PublicKey
    endpoints: tuple[Endpoint, Endpoint]


@dataclass(frozen=True, slots=True)
class SessionExpired:
    """There was no new session for three Reject-After-Times: all keys of the peer were erased (whitepaper 6.3)."""

    peer: PublicKey


@dataclass(frozen=True, slots=True)
class BatchesLost:
    """GSO batches to this peer are lost. It gets single datagrams instead, and batches are tried again later."""

    peer: PublicKey


@dataclass(frozen=True, slots=True)
class SendRefused:
    """The system refuses to send to the peer's endpoint.

    Reported once for each errno until a handshake completes or the endpoint is set.
    """

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
"""Events that a remote party can cause at any rate, so a log must limit them."""

"""What an interface tells its user, as values: the things `wg show` would show a moment later."""

from __future__ import annotations

from dataclasses import dataclass

from wyrmhole.protocol.keys import PublicKey
from wyrmhole.wire.endpoint import Endpoint


@dataclass(frozen=True, slots=True)
class HandshakeCompleted:
    peer: PublicKey
    as_initiator: bool


@dataclass(frozen=True, slots=True)
class HandshakeGaveUp:
    """No answer for Rekey-Attempt-Time (whitepaper 6.4); the next packet for the peer tries again."""

    peer: PublicKey


@dataclass(frozen=True, slots=True)
class EndpointChanged:
    peer: PublicKey
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class SessionExpired:
    """No new session for three Reject-After-Times: all keys of the peer are gone (whitepaper 6.3)."""

    peer: PublicKey


Event = HandshakeCompleted | HandshakeGaveUp | EndpointChanged | SessionExpired

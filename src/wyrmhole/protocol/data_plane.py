"""The seam between the protocol, which decides, and an engine, which moves packets.

The protocol calls `DataPlane` to set routes, endpoints and keys. The data plane reports events as `Report` values,
which are drained in batches and passed to `Interface.handle_report`.

Timers cost nothing per packet. The data plane keeps a few timestamps per peer (`Marks`). It reports `Active` when a
mark goes from "nothing pending" to "pending", unless the protocol is already watching that peer. The protocol reads the
marks at its deadlines and computes what is due. `release_activity` ends the watching.

All times are nanoseconds of the device's boottime clock, which counts suspended time. 0 in a mark means "nothing
pending".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from wyrmhole.protocol.drops import DropReason
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.prefix import Prefix

PeerId = int
"""A peer's number within one device, never reused while the device lives."""

NEVER = 1 << 63
"""A deadline that is never reached."""

Source = bytes
"""The local address and interface at which a datagram arrived (a PKTINFO control message). Only the bind reads it."""


@dataclass(frozen=True, slots=True)
class KeypairParams:
    """One session's keys, indices and limits. Keys are 32 bytes and never appear in `repr`."""

    local_index: int
    remote_index: int
    send_key: bytes | bytearray = field(repr=False)
    receive_key: bytes | bytearray = field(repr=False)
    """The data plane makes its ciphers of both keys, then wipes those that are mutable."""
    is_initiator: bool
    birth: int
    rekey_send_at: int
    """The first transport data message sent at or after this time, including a keepalive, asks for a new key. For an
    initiator this is birth + Rekey-After-Time, otherwise NEVER."""
    rekey_receive_at: int
    """The first transport data message received at or after this time, including a keepalive, asks for a new key, once.
    For an initiator this is birth + 165 s, otherwise NEVER. This session must be current, but the message may have come
    under any session."""
    reject_at: int
    """Nothing is sent or received at or after this time (birth + Reject-After-Time)."""
    rekey_after_messages: int
    reject_after_messages: int
    send_until: int = NEVER
    """Nothing is sent at or after this time, which precedes `reject_at` so that datagrams arrive before the session
    ends."""


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """Limits of the sessions that a data plane begins by itself. Times are nanoseconds after the handshake."""

    reject_after: int
    """The time after which nothing is sent or received."""
    send_for: int
    """The time after which nothing is sent."""
    rekey_after_messages: int
    reject_after_messages: int


@dataclass(slots=True)
class Marks:
    """The timestamps of one peer; see the module docstring."""

    data_sent_since: int = 0
    """When data was first sent since the last authentic packet was received (for the no-answer rule, paper 6.5)."""
    data_received_since: int = 0
    """When data was first received since the last packet was sent (for the passive keepalive, paper 6.5)."""
    last_data_received: int = 0
    last_traversal: int = 0
    """When an authentic packet last passed in either direction, including keepalives and handshakes (for the persistent
    keepalive)."""


@dataclass(frozen=True, slots=True)
class PeerCounters:
    """Bytes of authentic messages, counted like in `wg show`: including headers, padding and handshakes."""

    tx_bytes: int
    rx_bytes: int


@dataclass(frozen=True, slots=True)
class HandshakeDatagram:
    """A message of type 1, 2 or 3 with a valid length.

    Types 1 and 2 have a valid mac1; types 2 and 3 answer a pending initiation.
    """

    data: bytes
    endpoint: Endpoint
    source: Source | None
    queue_depth: int
    """How many messages of types 1 and 2 waited behind this one when it was taken, which decides whether we are under
    load. Replies to our own initiations are not counted, because our initiations limit their number."""


@dataclass(frozen=True, slots=True)
class KeyWanted:
    """A session is missing or must be renewed.

    It is missing if packets are staged or a keepalive is due, and no session can send. This is reported once until a
    key is installed or confirmed, or `flush_staged` or `expect_key` is called. A renewal is reported once for each
    session until `expect_key` is called.
    """

    peer: PeerId
    renews: int | None = None
    """The local index of the current session, which must be renewed, or None if no session can send."""


@dataclass(frozen=True, slots=True)
class KeyConfirmed:
    """The first message under a responder's next keypair arrived, which makes the keypair current (paper 5.4.5)."""

    peer: PeerId
    local_index: int


@dataclass(frozen=True, slots=True)
class KeypairsDropped:
    """These receiver indices no longer belong to a keypair; the protocol may free them."""

    peer: PeerId
    local_indices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Roamed:
    """An authentic packet came from a new endpoint, which the data plane already uses."""

    peer: PeerId
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class Active:
    """A mark of this peer went from nothing pending to pending while the protocol was not watching the peer."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class SendFailed:
    """The system refused to send a handshake message to the peer, with this errno, after all remedies were tried.

    Other messages are not reported. Every session needs handshakes, so a lasting failure is reported eventually.
    """

    peer: PeerId
    errno: int


@dataclass(frozen=True, slots=True)
class TrainsLost:
    """GSO batches to this peer are lost while single datagrams arrive, so it now gets single datagrams.

    Reported once, and again only if batches arrived in between.
    """

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Refused:
    """A message was dropped. Reported only after `report_refusals(True)`.

    The rate is limited to a few per second for unknown senders, and as many for peers.
    """

    reason: DropReason
    endpoint: Endpoint
    peer: PeerId | None = None
    """The peer that sent the message, if it authenticated."""
    inner_source: bytes | None = None
    """The 4- or 16-byte inner source address of a peer's packet."""


@dataclass(frozen=True, slots=True)
class Answered:
    """The data plane answered an initiation of this peer.

    The response was sent, and the peer's next keypair has this index.
    """

    peer: PeerId
    endpoint: Endpoint
    local_index: int
    identity: int
    """The number that `DataPlane.answer_initiations` returned for the private key of this session."""
    at: int
    """The time of the answer, in nanoseconds of the device's clock."""


@dataclass(frozen=True, slots=True)
class Stranger:
    """An initiation from the static key of an unknown peer was refused. The rate is limited like that of `Refused`."""

    public_key: bytes
    endpoint: Endpoint


Report = (
    Answered
    | Stranger
    | HandshakeDatagram
    | KeyWanted
    | KeyConfirmed
    | KeypairsDropped
    | Roamed
    | Active
    | SendFailed
    | TrainsLost
    | Refused
)


class DataPlane(Protocol):
    """The calls that the protocol makes to an engine.

    No call blocks, and each takes effect before the next batch of packets. Calls about an unknown peer are ignored,
    because its removal may race with any call.
    """

    answers_initiations: bool
    """Whether the data plane answers initiations by itself. It receives the necessary keys by the next three calls, and
    reports `Answered` instead of the initiation. The protocol still decides who is a peer and handles the session."""

    def answer_initiations(self, private_key: bytes | None, limits: SessionLimits) -> int:
        """Answer initiations with this 32-byte static key; None stops answering.

        After this returns, nothing more is begun under the former key. The returned number stands for this key in
        `Answered`; reports of former keys may still wait.
        """

    def set_identity(self, peer: PeerId, public_key: bytes, preshared_key: bytes | None) -> None:
        """Set the peer's keys, 32 bytes each. The next handshake uses the preshared key."""

    def set_peer_cookie(self, peer: PeerId, cookie: bytes, until: int) -> None:
        """Set the peer's 16-byte cookie, which keys mac2 of our responses up to and including `until`."""

    def set_mac1_key(self, key: bytes | None) -> None:
        """Set the 32-byte BLAKE2s key of mac1 in messages to us.

        None means no private key: all handshake messages drop.
        """

    def set_cookie_secret(self, secret: bytes | bytearray | None, until: int) -> None:
        """Set the 32-byte secret of the cookies that we issue, valid up to and including `until`; None clears it.

        Messages with a mac2 made from such a cookie have a separate queue and are not refused because of their source.
        """

    def begin_initiation(self, local_index: int) -> bool:
        """Begin to report responses and cookie replies to the initiation with this sender index, which leaves next.

        Return False if a session that the data plane began has this index, so another one must be drawn.
        """

    def end_initiation(self, local_index: int) -> None:
        """Stop reporting replies to the initiation, because it was answered or abandoned."""

    def add_peer(self, peer: PeerId) -> None: ...

    def remove_peer(self, peer: PeerId) -> None:
        """Forget the peer, its keys, allowed IPs and staged packets. The caller frees its indices."""

    def insert_allowed_ip(self, peer: PeerId, prefix: Prefix) -> None:
        """Give the prefix to the peer, and take it from its former owner."""

    def remove_allowed_ip(self, peer: PeerId, prefix: Prefix) -> None:
        """Take exactly this prefix from the peer, if the peer has it."""

    def set_endpoint(self, peer: PeerId, endpoint: Endpoint | None, source: Source | None = None) -> None: ...

    def clear_source(self, peer: PeerId) -> None:
        """Forget the sticky source address, because the path may have changed when no answer comes."""

    def install_keypair(self, peer: PeerId, params: KeypairParams) -> None:
        """Install a keypair and report the keypairs that it displaces (paper 5.4.5, 6.5).

        An initiator's keypair becomes current, and the staged packets leave, or a keepalive if there are none. A
        responder's keypair becomes next until it is confirmed.
        """

    def forget_keypairs(self, peer: PeerId) -> None:
        """Drop, wipe and report all of the peer's keypairs."""

    def expire_sending_keys(self, peer: PeerId) -> None:
        """Send nothing more under the present current and next keypairs, but continue to receive."""

    def expect_key(self, peer: PeerId) -> None:
        """Report `KeyWanted` again for the next packet, because the protocol does not start a handshake now."""

    def flush_staged(self, peer: PeerId) -> None:
        """Drop all staged packets, because the handshake gave up. The next packet asks for a key again."""

    def send_to_peer(self, peer: PeerId, datagram: bytes) -> None:
        """Send a handshake message to the peer, counted in `last_traversal`. Without an endpoint it is dropped."""

    def send_to(self, endpoint: Endpoint, source: Source | None, datagram: bytes) -> None:
        """Send a cookie reply to an unproven source. It is not counted."""

    def send_keepalive(self, peer: PeerId) -> None:
        """Send an empty packet if a keypair is usable and nothing is staged. Without a keypair, ask for one."""

    def note_handshake(self, peer: PeerId, rx_bytes: int, now: int) -> None:
        """Update counters and marks for an authentic handshake message of `rx_bytes`."""

    def marks(self, peer: PeerId) -> Marks:
        """Return a copy of the peer's marks, all zero for an unknown peer."""

    def release_activity(self, peer: PeerId) -> Marks:
        """Report `Active` again for the next pending mark. Return the marks after this took effect."""

    def forget_unanswered(self, peer: PeerId, since: int) -> None:
        """Zero `data_sent_since` if it still is `since`, because the no-answer rule has acted on it."""

    def forget_received(self, peer: PeerId, since: int) -> None:
        """Zero `data_received_since` if it still is `since`, because a keepalive was due, sent or not."""

    def counters(self, peer: PeerId) -> PeerCounters: ...

"""The seam between the protocol (policy) and whatever moves packets (an engine).

Downward the protocol calls `DataPlane`: what to route where, with which keys. Upward the data plane says what
happened as `Report` values, drained in batches and fed to `Interface.handle_report`.

Timers cost nothing per packet. The data plane keeps a few timestamps per peer (`Marks`) and reports `Active` only
when one goes from "nothing pending" to "pending" and the protocol is not already looking; the protocol reads the
marks at its deadlines and works out what is due. `release_activity` ends the looking.

All times are nanoseconds of the device's boottime clock (suspend counted). 0 in a mark means "nothing pending".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from wyrmhole.protocol.drops import DropReason
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.prefix import Prefix

PeerId = int
"""A peer's number inside one device: never reused while the device lives."""

NEVER = 1 << 63
"""A deadline that does not come."""

Source = bytes
"""The local address and interface a datagram came to, opaque to all but the bind (a PKTINFO control message)."""


@dataclass(frozen=True, slots=True)
class KeypairParams:
    """One session's keys, indices and limits. Keys are 32 bytes and never appear in `repr`."""

    local_index: int
    remote_index: int
    send_key: bytes | bytearray = field(repr=False)
    receive_key: bytes | bytearray = field(repr=False)
    """The data plane makes its ciphers and then wipes both, where they can be wiped."""
    is_initiator: bool
    birth: int
    rekey_send_at: int
    """The first transport message sent at or after this, a keepalive included, asks for a new key (initiator: birth +
    Rekey-After-Time; else NEVER)."""
    rekey_receive_at: int
    """The first transport message received at or after this, a keepalive included, asks for a new key, once
    (initiator: birth + 165 s; else NEVER). It counts if the session is current, whatever session it came under."""
    reject_at: int
    """Nothing is sent or received at or after this (birth + Reject-After-Time)."""
    rekey_after_messages: int
    reject_after_messages: int
    send_until: int = NEVER
    """Nothing is sent at or after this: a little before `reject_at`, so that what is sent still arrives in time."""


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """How long sessions may be used that a data plane begins by itself. Times are nanoseconds from the handshake on."""

    reject_after: int
    """Nothing is sent or received afterwards."""
    send_for: int
    """Nothing is sent afterwards."""
    rekey_after_messages: int
    reject_after_messages: int


@dataclass(slots=True)
class Marks:
    """When things last happened to a peer; see the module docstring."""

    data_sent_since: int = 0
    """First data sent since anything authenticated was received (drives the no-answer rule, paper 6.5)."""
    data_received_since: int = 0
    """First data received since anything was sent (drives the passive keepalive, paper 6.5)."""
    last_data_received: int = 0
    last_traversal: int = 0
    """Last authenticated packet, either way, keepalives and handshakes included (persistent keepalive)."""


@dataclass(frozen=True, slots=True)
class PeerCounters:
    """Bytes of authenticated messages, as `wg show` counts: headers, padding and handshakes included."""

    tx_bytes: int
    rx_bytes: int


@dataclass(frozen=True, slots=True)
class HandshakeDatagram:
    """A message of type 1, 2 or 3 with the right length; types 1 and 2 have a valid mac1, types 2 and 3 answer an
    initiation under way."""

    data: bytes
    endpoint: Endpoint
    source: Source | None
    queue_depth: int
    """How many messages of types 1 and 2 waited behind this one when it was taken: the load trigger. Replies to our
    own initiations are not counted, because there are no more of them than there are initiations."""


@dataclass(frozen=True, slots=True)
class KeyWanted:
    """Packets are staged, or a keepalive is due, and no session can send; or a session must be renewed. The first is
    reported once until a key is installed or confirmed, or `flush_staged` or `expect_key` is called; the second once
    for each session until `expect_key` is called."""

    peer: PeerId
    renews: int | None = None
    """The local index of the current session, which is to be renewed; None: there is none that can send."""


@dataclass(frozen=True, slots=True)
class KeyConfirmed:
    """The first transport message under a responder's next keypair: it is current from here on (paper 5.4.5)."""

    peer: PeerId
    local_index: int


@dataclass(frozen=True, slots=True)
class KeypairsDropped:
    """These receiver indices no longer lead to a key; the protocol may free them."""

    peer: PeerId
    local_indices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Roamed:
    """An authenticated packet came from a new endpoint; the data plane already uses it."""

    peer: PeerId
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class Active:
    """A mark of this peer went from nothing pending to pending, and nobody was looking."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class SendFailed:
    """The system refused a handshake message to the peer with this errno, in spite of all remedies. Every session
    needs handshakes, so a lasting failure is reported sooner or later whatever it is that cannot be sent."""

    peer: PeerId
    errno: int


@dataclass(frozen=True, slots=True)
class TrainsLost:
    """GSO batches to this peer are lost while single datagrams arrive, so that it gets single ones now. Said once, and
    again only after batches had arrived in between."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Refused:
    """A message was dropped, and `report_refusals(True)` asked to hear of it. Not every one is reported: a few a second
    from strangers, and as many from peers."""

    reason: DropReason
    endpoint: Endpoint
    peer: PeerId | None = None
    """Who sent it, if it proved that."""
    inner_source: bytes | None = None
    """The 4- or 16-byte address of the sender inside the tunnel, for a packet of a peer."""


@dataclass(frozen=True, slots=True)
class Answered:
    """The data plane answered an initiation of this peer: the response left, and the peer's next keypair has this
    index."""

    peer: PeerId
    endpoint: Endpoint
    local_index: int
    at: int
    """When, in nanoseconds of the device's clock."""


@dataclass(frozen=True, slots=True)
class Stranger:
    """An initiation of a static key that no peer has was refused. Reported as seldom as `Refused`."""

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
    """What the protocol asks of an engine. No call blocks, and each takes effect before the next batch of packets.

    Calls about a peer that is not there are ignored: removal races with everything.
    """

    answers_initiations: bool
    """Whether it answers initiations by itself. It is then told what it needs for that by the three calls below, and
    reports `Answered` instead of the initiation. Who is a peer and what follows from a session stays above."""

    def answer_initiations(self, private_key: bytes | None, limits: SessionLimits) -> None:
        """Answer with this static key (32 bytes) from now on. Nothing more is begun under the former one when this
        returns. None: do not answer."""

    def set_identity(self, peer: PeerId, public_key: bytes, preshared_key: bytes | None) -> None:
        """The keys by which the peer is known, 32 bytes each. The preshared key is used from the next handshake on."""

    def set_peer_cookie(self, peer: PeerId, cookie: bytes, until: int) -> None:
        """The peer's cookie for us (16 bytes), valid up to and including `until`: mac2 of our responses."""

    def set_mac1_key(self, key: bytes | None) -> None:
        """BLAKE2s key of mac1 for messages to us (32 bytes); None: no private key, every handshake message drops."""

    def set_cookie_secret(self, secret: bytes | bytearray | None, until: int) -> None:
        """The 32-byte secret of the cookies in our cookie replies, valid up to and including `until`. Messages with a
        mac2 that follows from it are queued apart and are not refused for their source. None: there is none."""

    def begin_initiation(self, local_index: int) -> bool:
        """An initiation with this sender index is about to leave: only now is a response or a cookie reply to it
        reported. False: a session that the data plane began has this index, so draw another one."""

    def end_initiation(self, local_index: int) -> None:
        """The initiation was answered or abandoned."""

    def add_peer(self, peer: PeerId) -> None: ...

    def remove_peer(self, peer: PeerId) -> None:
        """Forget the peer, its keys, allowed ips and staged packets. Its indices are freed by the caller."""

    def insert_allowed_ip(self, peer: PeerId, prefix: Prefix) -> None:
        """Give the prefix to the peer, whoever had it."""

    def remove_allowed_ip(self, peer: PeerId, prefix: Prefix) -> None:
        """Take exactly this prefix away, if this peer has it."""

    def set_endpoint(self, peer: PeerId, endpoint: Endpoint | None, source: Source | None = None) -> None: ...

    def clear_source(self, peer: PeerId) -> None:
        """Forget the sticky source address: no answer came, the path may have changed."""

    def install_keypair(self, peer: PeerId, params: KeypairParams) -> None:
        """Initiator: becomes current, staged packets leave, or a keepalive if there are none (paper 5.4.5, 6.5).
        Responder: becomes next until confirmed. Dropped keypairs are reported."""

    def forget_keypairs(self, peer: PeerId) -> None:
        """Drop and wipe all of the peer's keypairs; they are reported as dropped."""

    def expire_sending_keys(self, peer: PeerId) -> None:
        """Nothing more is sent under the present current and next keys; received packets still open."""

    def expect_key(self, peer: PeerId) -> None:
        """The protocol will not start a handshake now: say `KeyWanted` again when the next packet wants one."""

    def flush_staged(self, peer: PeerId) -> None:
        """Drop all staged packets (the handshake gave up); the next packet asks for a key again."""

    def send_to_peer(self, peer: PeerId, datagram: bytes) -> None:
        """Send a handshake message to the peer's endpoint; counts as authenticated traversal. No endpoint: dropped."""

    def send_to(self, endpoint: Endpoint, source: Source | None, datagram: bytes) -> None:
        """Send to an address that is no peer's (a cookie reply). Counts nowhere."""

    def send_keepalive(self, peer: PeerId) -> None:
        """Send an empty packet if there is a usable key and nothing is staged; without a key, ask for one."""

    def note_handshake(self, peer: PeerId, rx_bytes: int, now: int) -> None:
        """An authenticated handshake message of `rx_bytes` arrived: counters and marks."""

    def marks(self, peer: PeerId) -> Marks:
        """A copy; zeros for an unknown peer."""

    def release_activity(self, peer: PeerId) -> Marks:
        """From here on say `Active` again at the next happening; returns the marks after that took effect."""

    def forget_unanswered(self, peer: PeerId, since: int) -> None:
        """Zero `data_sent_since` if it still is `since`: the no-answer rule has acted on it."""

    def forget_received(self, peer: PeerId, since: int) -> None:
        """Zero `data_received_since` if it still is `since`: a keepalive was due, sent or not."""

    def counters(self, peer: PeerId) -> PeerCounters: ...

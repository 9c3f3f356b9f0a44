"""The protocol's record of one peer. Its parts do the work, driven by `interface`, `renewal` and `exchange`.

There may be tens of thousands of peers, so a peer without a session is small: parts that only a handshake needs are
made when the first handshake starts.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from wyrmhole.protocol.cookie import CookieGenerator
from wyrmhole.protocol.data_plane import PeerId
from wyrmhole.protocol.drops import DropReason
from wyrmhole.protocol.keys import PresharedKey, PublicKey
from wyrmhole.protocol.noise import InitiationSent
from wyrmhole.protocol.roaming import Roaming
from wyrmhole.protocol.timers import PeerTimers
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.prefix import Prefix

LONG_AGO = -(1 << 62)


@dataclass(frozen=True, slots=True)
class Session:
    """The protocol's record of a keypair that it installed in the data plane."""

    index: int
    birth: int
    yields: bool
    """The session resulted from crossed handshakes, and the other side must renew it."""


class Peer:
    __slots__ = (
        "_cookies",
        "allowed_ips",
        "drops",
        "endpoint",
        "id",
        "is_silent_since",
        "keypair_indices",
        "last_handshake_sent",
        "last_handshake_wall",
        "last_initiation_consumed",
        "last_stamp_received",
        "last_stamp_sent",
        "preshared_key",
        "problem",
        "public_key",
        "roaming",
        "send_error",
        "sent",
        "session",
        "static_static",
        "timers",
        "unanswered",
        "unanswered_since",
        "unconfirmed",
    )

    def __init__(self, peer_id: PeerId, public_key: PublicKey) -> None:
        self.id = peer_id
        self.public_key = public_key
        self.preshared_key: PresharedKey | None = None
        self.endpoint: Endpoint | None = None
        self.allowed_ips: dict[Prefix, None] = {}
        """The allowed IPs in the order in which they were added."""
        self.timers = PeerTimers()
        self.sent: InitiationSent | None = None
        """The initiation that waits for its response."""
        self.keypair_indices: tuple[int, ...] = ()
        self.session: Session | None = None
        """The session that packets leave in, according to the reports so far; None if there is none or our key
        changed."""
        self.unconfirmed: tuple[Session, ...] = ()
        """Sessions that the other side initiated and in which nothing was received yet."""
        self.static_static: bytes | None = None
        """dh(our static key, the peer's), computed when first needed; b"" if the result is zero."""
        self.last_stamp_received = b""
        self.last_stamp_sent: bytes | None = None
        self.last_initiation_consumed = LONG_AGO
        self.last_handshake_sent = LONG_AGO
        self.last_handshake_wall = 0
        """The time of the last completed handshake in nanoseconds since 1970; 0 if there was none."""
        self.unanswered = 0
        """Initiations sent since the last completed handshake."""
        self.unanswered_since = 0
        """When the first of these initiations was sent."""
        self.is_silent_since: int | None = None
        """When the peer was reported silent; None if it is not silent."""
        self.problem: DropReason | None = None
        """Why the peer's last response was refused; reset when a handshake completes."""
        self.roaming: Roaming | None = None
        self.send_error = 0
        """The errno last reported for sending to the peer; 0 if there is none."""
        self.drops: dict[DropReason, int] | None = None
        """The peer's refused handshake messages by reason; created with the first."""
        self._cookies: CookieGenerator | None = None

    @property
    def cookies(self) -> CookieGenerator:
        if self._cookies is None:
            self._cookies = CookieGenerator(self.public_key)
        return self._cookies

    def count_drop(self, reason: DropReason) -> None:
        if self.drops is None:
            self.drops = {}
        self.drops[reason] = self.drops.get(reason, 0) + 1

    def begin(self, session: Session, *, is_initiator: bool) -> None:
        """Record a session whose keypair is being installed in the data plane."""
        self.keypair_indices += (session.index,)
        if is_initiator:
            self.session = session
        else:
            self.unconfirmed += (session,)

    def keep_keypair(self, index: int) -> None:
        """Record a keypair that only receives; its index is freed when the data plane drops it."""
        self.keypair_indices += (index,)

    def confirm(self, index: int) -> bool:
        """Record that the first message of this session arrived. Return False if the session or our key is gone."""
        session = next((each for each in self.unconfirmed if each.index == index), None)
        if session is None:
            return False
        self.unconfirmed = tuple(each for each in self.unconfirmed if each is not session)
        if self.session is None or self.session.birth <= session.birth:
            self.session = session
        return True

    def end_sessions(self) -> None:
        """Send nothing more in the present sessions. Their indices are freed when the data plane has dropped them."""
        self.session, self.unconfirmed = None, ()

    def drop_keypairs(self, indices: Collection[int]) -> list[int]:
        """Forget keypairs that the data plane dropped. Return those of the indices that were the peer's."""
        dropped = [index for index in self.keypair_indices if index in indices]
        self.keypair_indices = tuple(index for index in self.keypair_indices if index not in dropped)
        self.unconfirmed = tuple(each for each in self.unconfirmed if each.index not in dropped)
        if self.session is not None and self.session.index in dropped:
            self.session = None
        return dropped

    def forget_static(self) -> None:
        """Forget values that depend on our private key."""
        self.static_static = None

    def __repr__(self) -> str:
        return f"<Peer {self.id} {self.public_key!r}>"

"""One peer as the protocol sees it. Composition only: the parts do the work, `interface` and `exchange` drive them.

A configured peer without a session is a small record, since there may be tens of thousands: what only a handshake
needs is made when the first one starts.
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
    """What the protocol remembers of a keypair that it gave to the data plane."""

    index: int
    birth: int
    yields: bool
    """It came of crossed handshakes, and the other side is the one that renews it."""


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
        """In the order they were given."""
        self.timers = PeerTimers()
        self.sent: InitiationSent | None = None
        """The initiation that waits for its response."""
        self.keypair_indices: tuple[int, ...] = ()
        self.session: Session | None = None
        """The one that packets leave under, as far as reports have told; None: there is none, or its identity ended."""
        self.unconfirmed: tuple[Session, ...] = ()
        """Sessions of the other side's initiations that nothing came under yet."""
        self.static_static: bytes | None = None
        """dh(our static key, theirs), made when first needed; b"" when it came out zero."""
        self.last_stamp_received = b""
        self.last_stamp_sent: bytes | None = None
        self.last_initiation_consumed = LONG_AGO
        self.last_handshake_sent = LONG_AGO
        self.last_handshake_wall = 0
        """Nanoseconds since 1970 of the last completed handshake; 0: none yet."""
        self.unanswered = 0
        """Initiations sent since the last completed handshake."""
        self.unanswered_since = 0
        """When the first of them left."""
        self.is_silent_since: int | None = None
        """When it was reported silent; None: it is not."""
        self.problem: DropReason | None = None
        """Why its last response was refused, until a handshake completes."""
        self.roaming: Roaming | None = None
        self.send_error = 0
        """The errno of sending to it that was last told, 0: none."""
        self.drops: dict[DropReason, int] | None = None
        """Its handshake messages that were refused, by cause; made with the first."""
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
        """The data plane got the keypair of this session."""
        self.keypair_indices += (session.index,)
        if is_initiator:
            self.session = session
        else:
            self.unconfirmed += (session,)

    def confirm(self, index: int) -> bool:
        """The first message under this session came. False: it ended since, or its identity did."""
        session = next((each for each in self.unconfirmed if each.index == index), None)
        if session is None:
            return False
        self.unconfirmed = tuple(each for each in self.unconfirmed if each is not session)
        if self.session is None or self.session.birth <= session.birth:
            self.session = session
        return True

    def end_sessions(self) -> None:
        """Nothing more is sent under the present sessions. Their indices are freed when the data plane dropped them."""
        self.session, self.unconfirmed = None, ()

    def drop_keypairs(self, indices: Collection[int]) -> list[int]:
        """The data plane dropped these keypairs; returns the indices that were the peer's."""
        gone = [index for index in self.keypair_indices if index in indices]
        self.keypair_indices = tuple(index for index in self.keypair_indices if index not in gone)
        self.unconfirmed = tuple(each for each in self.unconfirmed if each.index not in gone)
        if self.session is not None and self.session.index in gone:
            self.session = None
        return gone

    def forget_static(self) -> None:
        """Our private key changed."""
        self.static_static = None

    def __repr__(self) -> str:
        return f"<Peer {self.id} {self.public_key!r}>"

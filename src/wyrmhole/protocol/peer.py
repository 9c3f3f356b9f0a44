"""One peer as the protocol sees it. Composition only: the parts do the work, `interface` and `exchange` drive them.

A configured peer without a session is a small record, since there may be tens of thousands: what only a handshake
needs is made when the first one starts.
"""

from __future__ import annotations

from wyrmhole.protocol.cookie import CookieGenerator
from wyrmhole.protocol.data_plane import PeerId
from wyrmhole.protocol.keys import PresharedKey, PublicKey
from wyrmhole.protocol.noise import InitiationSent
from wyrmhole.protocol.timers import PeerTimers
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.prefix import Prefix

LONG_AGO = -(1 << 62)


class Peer:
    __slots__ = (
        "_cookies",
        "allowed_ips",
        "endpoint",
        "id",
        "keypair_indices",
        "last_handshake_sent",
        "last_handshake_wall",
        "last_initiation_consumed",
        "last_stamp_received",
        "last_stamp_sent",
        "preshared_key",
        "public_key",
        "sent",
        "static_static",
        "timers",
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
        self.static_static: bytes | None = None
        """dh(our static key, theirs), made when first needed; b"" when it came out zero."""
        self.last_stamp_received = b""
        self.last_stamp_sent: bytes | None = None
        self.last_initiation_consumed = LONG_AGO
        self.last_handshake_sent = LONG_AGO
        self.last_handshake_wall = 0
        """Nanoseconds since 1970 of the last completed handshake; 0: none yet."""
        self._cookies: CookieGenerator | None = None

    @property
    def cookies(self) -> CookieGenerator:
        if self._cookies is None:
            self._cookies = CookieGenerator(self.public_key)
        return self._cookies

    def forget_static(self) -> None:
        """Our private key changed."""
        self.static_static = None

    def __repr__(self) -> str:
        return f"<Peer {self.id} {self.public_key!r}>"

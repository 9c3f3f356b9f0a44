"""The model of one peer: its sessions in three slots, its marks, and its staged packets.

The constants of the whitepaper are repeated here so that a wrong constant in the protocol is found.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from wyrmhole.datapath.aead import TransportCipher
from wyrmhole.protocol.data_plane import KeypairParams, PeerId
from wyrmhole.wire.endpoint import SockAddr

SECOND = 1_000_000_000
REJECT_AFTER = 180 * SECOND
SEND_MARGIN = 1 * SECOND
"""How long before REJECT_AFTER the daemon stops sending on a keypair (docs/architecture.md)."""
REKEY_TIMEOUT = 5 * SECOND
KEEPALIVE = 10 * SECOND
COOKIE_LIFETIME = 120 * SECOND
LOAD_HOLD = 1 * SECOND
MESSAGE_LIMIT = (1 << 64) - (1 << 13) - 1
WINDOW = 8128
MAX_STAGED = 128
MAX_WAIT = 21 * (5342 * SECOND // 1000) + SECOND // 10
"""The longest wait of a staged packet: 20 initiations, each up to 5.333 s after the one before (rule M32), the timer
wheel's rounding, and one more interval because an initiation of the peer may postpone the last attempt."""
NOWHERE: SockAddr = ("", 0)


@dataclass(slots=True)
class Session:
    """The model of a keypair. `seen` holds the accepted counters, `identity` our public key at the handshake."""

    params: KeypairParams
    peer: PeerId
    birth: int
    identity: bytes
    confirmed: bool
    seen: set[int] = field(default_factory=set)
    greatest: int = -1
    expired: bool = False
    sealing: TransportCipher = field(init=False)
    opening: TransportCipher = field(init=False)

    def __post_init__(self) -> None:
        self.sealing = TransportCipher(self.params.send_key)
        self.opening = TransportCipher(self.params.receive_key)

    def accepts(self, counter: int) -> bool:
        """Return whether the replay window, kept as a set of numbers, accepts the counter, and add it."""
        if counter in self.seen or counter <= self.greatest - WINDOW:
            return False
        self.seen.add(counter)
        self.greatest = max(self.greatest, counter)
        if len(self.seen) > 4 * WINDOW:
            self.seen = {each for each in self.seen if each > self.greatest - WINDOW}
        return True


@dataclass(slots=True)
class ShadowPeer:
    """One peer in one life. `staged` holds (packet number, time of staging)."""

    id: PeerId
    public: bytes
    endpoint: SockAddr = NOWHERE
    previous: Session | None = None
    current: Session | None = None
    next: Session | None = None
    staged: deque[tuple[int, int]] = field(default_factory=deque)
    tx: int = 0
    rx: int = 0
    last_traversal: int = 0
    data_received_since: int = 0
    last_passive: int = -KEEPALIVE
    persistent: int = 0
    persistent_owed: bool = False
    last_initiation: int = -REKEY_TIMEOUT
    initiations: int = 0
    stamp_sent: bytes = b""
    stamp_accepted: bytes = b""
    session_at: int | None = None
    handshake_wall: int = 0
    cookies: list[tuple[int, bytes]] = field(default_factory=list)

    @property
    def slots(self) -> tuple[int | None, ...]:
        """The local indices of previous, current and next."""
        sessions = (self.previous, self.current, self.next)
        return tuple(None if session is None else session.params.local_index for session in sessions)

    def usable(self, now: int) -> bool:
        session = self.current
        return session is not None and not session.expired and now < session.birth + REJECT_AFTER - SEND_MARGIN

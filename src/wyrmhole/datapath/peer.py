"""One peer on the packet path: its endpoint, its keypairs, its staged packets, and the marks of its timers."""

from __future__ import annotations

from collections import deque

from wyrmhole.datapath.keypair import Keypairs
from wyrmhole.datapath.train_health import TrainHealth
from wyrmhole.protocol.data_plane import Marks, PeerId, Source
from wyrmhole.protocol.drops import DropReason
from wyrmhole.wire.endpoint import SockAddr

NO_SOCKADDR: SockAddr = ("", 0)
"""The address of a peer whose endpoint is unknown. Compared by identity, because every packet checks it."""


class EnginePeer:
    """One peer on the packet path. The marks (see data_plane) are attributes, because every batch writes them."""

    __slots__ = (
        "active_reported",
        "data_received_since",
        "data_sent_since",
        "drops",
        "health",
        "id",
        "key_wanted_reported",
        "keypairs",
        "last_data_received",
        "last_traversal",
        "proven_path",
        "roamed_reported",
        "rx_bytes",
        "sockaddr",
        "source",
        "staged",
        "tx_bytes",
    )

    def __init__(self, peer: PeerId, *, doubted: bool = False) -> None:
        self.id = peer
        self.health = TrainHealth(doubted=doubted)
        self.proven_path = 0
        """The value of `Tables.paths` when the last authenticated message came from the current endpoint; 0: none has
        come yet."""
        self.sockaddr: SockAddr = NO_SOCKADDR
        self.source: Source | None = None
        self.keypairs = Keypairs()
        self.staged: deque[bytes] | None = None
        self.tx_bytes = 0
        self.rx_bytes = 0
        self.drops: dict[DropReason, int] | None = None
        """Created at the first drop: most peers have none."""
        self.data_sent_since = 0
        self.data_received_since = 0
        self.last_data_received = 0
        self.last_traversal = 0
        self.active_reported = False
        self.key_wanted_reported = False
        self.roamed_reported = False

    def marks(self) -> Marks:
        return Marks(self.data_sent_since, self.data_received_since, self.last_data_received, self.last_traversal)

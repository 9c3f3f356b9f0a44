"""A session's keys, and the three places a peer has for them (whitepaper 6.3; kernel noise.c).

previous still opens what was under way when the key changed; current seals and opens; next is a responder's key
that waits for its first packet, which proves that the other side has it too (5.4.5).

    initiator installs:  previous <- next if there is one (and the old current goes), else previous <- current
                         current  <- the keypair
    responder installs:  next <- the keypair; previous and an older next go
    responder confirms:  previous <- current, current <- next
"""

from __future__ import annotations

from wyrmhole.datapath.aead import TransportCipher
from wyrmhole.datapath.replay import ReplayWindow
from wyrmhole.protocol.data_plane import KeypairParams
from wyrmhole.protocol.primitives import wipe

EXPIRED = -1
"""A `send_until` before any time."""


class Keypair:
    """One session, made from the keys of `params`, which are wiped. `send_counter` is the next nonce.

    Deadlines and limits are attributes of their own because every packet compares against them.
    """

    __slots__ = (
        "birth",
        "is_initiator",
        "local_index",
        "receive",
        "reject_after_messages",
        "reject_at",
        "rekey_after_messages",
        "rekey_asked",
        "rekey_receive_at",
        "rekey_send_at",
        "remote_index",
        "send",
        "send_counter",
        "send_until",
        "window",
    )

    def __init__(self, params: KeypairParams) -> None:
        self.local_index = params.local_index
        self.remote_index = params.remote_index
        self.send = TransportCipher(params.send_key)
        self.receive = TransportCipher(params.receive_key)
        wipe(params.send_key)
        wipe(params.receive_key)
        self.window = ReplayWindow()
        self.is_initiator = params.is_initiator
        self.birth = params.birth
        self.rekey_send_at = params.rekey_send_at
        self.rekey_receive_at = params.rekey_receive_at
        self.reject_at = params.reject_at
        self.rekey_after_messages = params.rekey_after_messages
        self.reject_after_messages = params.reject_after_messages
        self.send_counter = 0
        self.send_until = min(params.send_until, params.reject_at)
        self.rekey_asked = False

    def can_send(self, now: int) -> bool:
        return now < self.send_until and self.send_counter < self.reject_after_messages

    def take_nonces(self, count: int) -> tuple[int, int]:
        """Take up to `count` nonces; returns the first and how many."""
        first = self.send_counter
        left = self.reject_after_messages - first
        if count > left:
            count = left
        self.send_counter = first + count
        return first, count

    def wants_rekey(self, now: int) -> bool:
        """Whether a message that was just sent under it asks for another key."""
        return now >= self.rekey_send_at or self.send_counter > self.rekey_after_messages

    def __repr__(self) -> str:
        role = "initiator" if self.is_initiator else "responder"
        return f"<Keypair {self.local_index:#010x} {role} counter={self.send_counter}>"


class Keypairs:
    """previous, current and next of one peer. The methods return what fell out, for the caller to wipe and report."""

    __slots__ = ("current", "next", "previous")

    def __init__(self) -> None:
        self.previous: Keypair | None = None
        self.current: Keypair | None = None
        self.next: Keypair | None = None

    def install_initiator(self, keypair: Keypair) -> list[Keypair]:
        dropped = [self.previous]
        if self.next is not None:
            dropped.append(self.current)
            self.previous, self.next = self.next, None
        else:
            self.previous = self.current
        self.current = keypair
        return [gone for gone in dropped if gone is not None]

    def install_responder(self, keypair: Keypair) -> list[Keypair]:
        dropped = (self.next, self.previous)
        self.next, self.previous = keypair, None
        return [gone for gone in dropped if gone is not None]

    def confirm(self) -> list[Keypair]:
        """The first authenticated packet under `next` arrived."""
        dropped = [] if self.previous is None else [self.previous]
        self.previous, self.current, self.next = self.current, self.next, None
        return dropped

    def clear(self) -> list[Keypair]:
        dropped = [self.previous, self.current, self.next]
        self.previous = self.current = self.next = None
        return [gone for gone in dropped if gone is not None]

    def expire_sending(self) -> None:
        """Nothing more is sent under current or next (the static key changed)."""
        for keypair in (self.current, self.next):
            if keypair is not None:
                keypair.send_until = EXPIRED

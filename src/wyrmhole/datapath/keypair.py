"""A session's keypair, and the three slots that a peer has for keypairs (whitepaper 6.3; kernel noise.c).

`previous` still opens packets that were in flight when the key changed. `current` seals and opens. `next` is a
responder's keypair until its first packet arrives, which proves that the initiator has it too (5.4.5).

    initiator installs:  previous <- next if there is one (the old current is dropped), otherwise previous <- current
                         current  <- the keypair
    responder installs:  next <- the keypair; previous and an older next are dropped
    responder confirms:  previous <- current, current <- next
"""

from __future__ import annotations

from wyrmhole.datapath.aead import TransportCipher
from wyrmhole.datapath.replay import ReplayWindow
from wyrmhole.protocol.data_plane import KeypairParams
from wyrmhole.protocol.primitives import wipe

EXPIRED = -1
"""A `send_until` that has always passed."""


class Keypair:
    """One session, made from `params`, whose keys are wiped. `send_counter` is the next nonce.

    Deadlines and limits are copied into attributes because every packet compares against them.
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
        """Take up to `count` nonces. Returns the first nonce and their number."""
        first = self.send_counter
        left = self.reject_after_messages - first
        if count > left:
            count = left
        self.send_counter = first + count
        return first, count

    def wants_rekey(self, now: int) -> bool:
        """Whether to ask for another keypair, after a message was sent with this one."""
        return now >= self.rekey_send_at or self.send_counter > self.rekey_after_messages

    def __repr__(self) -> str:
        role = "initiator" if self.is_initiator else "responder"
        return f"<Keypair {self.local_index:#010x} {role} counter={self.send_counter}>"


class Keypairs:
    """previous, current and next of one peer. The methods return the keypairs that they dropped, for the caller to
    report."""

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
        return [keypair for keypair in dropped if keypair is not None]

    def install_responder(self, keypair: Keypair) -> list[Keypair]:
        dropped = (self.next, self.previous)
        self.next, self.previous = keypair, None
        return [keypair for keypair in dropped if keypair is not None]

    def confirm(self) -> list[Keypair]:
        """Make `next` current, after its first authenticated packet."""
        dropped = [] if self.previous is None else [self.previous]
        self.previous, self.current, self.next = self.current, self.next, None
        return dropped

    def clear(self) -> list[Keypair]:
        dropped = [self.previous, self.current, self.next]
        self.previous = self.current = self.next = None
        return [keypair for keypair in dropped if keypair is not None]

    def expire_sending(self) -> None:
        """Send nothing more with current and next, because the static key changed."""
        for keypair in (self.current, self.next):
            if keypair is not None:
                keypair.send_until = EXPIRED

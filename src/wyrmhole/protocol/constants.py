"""The protocol's numbers by their names (whitepaper sections 5 and 6), and below them our own limits with reasons.

Durations are nanoseconds: every deadline in this package is an integer on a boottime clock.
"""

from __future__ import annotations

from dataclasses import dataclass

MILLISECOND = 1_000_000
SECOND = 1_000_000_000

# Specification: 5.4.
CONSTRUCTION = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
IDENTIFIER = b"WireGuard v1 zx2c4 Jason@zx2c4.com"
LABEL_MAC1 = b"mac1----"
LABEL_COOKIE = b"cookie--"

# Specification: 6.1. The two message limits of the paper, as wireguard-go has them.
REKEY_AFTER_MESSAGES = 1 << 60
REJECT_AFTER_MESSAGES = (1 << 64) - (1 << 13) - 1
COOKIE_LIFETIME = 120 * SECOND
REKEY_TIMEOUT_JITTER = 333 * MILLISECOND


@dataclass(frozen=True, slots=True)
class Timings:
    """The five times of section 6.1. They are one value so that tests may shorten them together."""

    rekey_after: int = 120 * SECOND
    reject_after: int = 180 * SECOND
    rekey_attempt: int = 90 * SECOND
    rekey_timeout: int = 5 * SECOND
    keepalive: int = 10 * SECOND

    @property
    def rekey_on_receive_after(self) -> int:
        """Reject-After-Time - Keepalive-Timeout - Rekey-Timeout (6.2): the initiator renews while it still can."""
        return max(self.reject_after - self.keepalive - self.rekey_timeout, self.rekey_after)

    @property
    def rekey_when_yielding_after(self) -> int:
        """Ours: the side of two crossed handshakes that lets the other renew waits no longer than this: a
        Rekey-Timeout after even a silent other side should have renewed."""
        return self.rekey_on_receive_after + self.rekey_timeout

    @property
    def send_margin(self) -> int:
        """Ours: a session stops sending this long before it stops receiving. The other side's session is older or
        younger by the way of a handshake message, and data under way must not meet its end: it is staged for the
        next session. A second covers every round trip that the retransmission timer is made for."""
        return self.rekey_timeout // 5

    @property
    def max_retries(self) -> int:
        """Retransmissions by timer before giving up; the kernel and wireguard-go count, they do not measure."""
        return self.rekey_attempt // self.rekey_timeout

    @property
    def silence(self) -> int:
        """How long a peer may leave packets or initiations unanswered before it is reported silent: as long as data
        may go unanswered before a new handshake is tried (6.5)."""
        return self.keepalive + self.rekey_timeout

    @property
    def give_up_after(self) -> int:
        """How long that many retransmissions take at most; longer only if some were put off (6.1)."""
        return (self.max_retries + 1) * (self.rekey_timeout + REKEY_TIMEOUT_JITTER)

    @property
    def zero_keys_after(self) -> int:
        return 3 * self.reject_after


# Ours, or shared with the kernel module and wireguard-go without being in the paper.
MAX_PEERS = 1 << 16
"""As wireguard-go: bounds memory against a runaway configuration."""

MAX_STAGED_PACKETS = 128
"""Per peer, as the kernel: a handshake takes one round trip, and more would only be stale."""

MAX_STAGED_BYTES = 16 << 20
"""For a device: some 90 peers with full queues; beyond that, memory matters more than packets that may never leave."""

STAGED_SHARE = 8
"""A peer may hold an eighth of what the device has left. 84 silent peers have full queues then; when there are more,
each gives its oldest packets up with its next one, so that the first packet of another peer finds room."""

MAX_QUEUED_HANDSHAKES = 1024
"""As wireguard-go: some 0.2 s of work for one core, after which an answer would meet a retransmission."""

UNDER_LOAD_QUEUE_DEPTH = MAX_QUEUED_HANDSHAKES // 8
UNDER_LOAD_HOLD = 1 * SECOND

HANDSHAKE_FLOOR = 20 * MILLISECOND
"""Least time between two accepted initiations of one peer, as the kernel (INITIATIONS_PER_SECOND 50)."""

LIMITER_RATE = 20
LIMITER_BURST = 5
LIMITER_MAX_SOURCES = 1 << 16
"""Handshakes per second and at once for one IPv4 address or IPv6 /64, and how many of those are remembered."""

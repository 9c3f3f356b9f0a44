"""The constants of the protocol by their names (whitepaper sections 5 and 6), and our own limits with reasons.

Durations are in nanoseconds: every deadline in this package is an integer on a boottime clock.
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

# Specification: 6.1. The two message limits are those of wireguard-go.
REKEY_AFTER_MESSAGES = 1 << 60
REJECT_AFTER_MESSAGES = (1 << 64) - (1 << 13) - 1
COOKIE_LIFETIME = 120 * SECOND
REKEY_TIMEOUT_JITTER = 333 * MILLISECOND


@dataclass(frozen=True, slots=True)
class Timings:
    """The five times of section 6.1, as one value so that tests can shorten them together."""

    rekey_after: int = 120 * SECOND
    reject_after: int = 180 * SECOND
    rekey_attempt: int = 90 * SECOND
    rekey_timeout: int = 5 * SECOND
    keepalive: int = 10 * SECOND

    @property
    def rekey_on_receive_after(self) -> int:
        """Reject-After-Time - Keepalive-Timeout - Rekey-Timeout (6.2), which leaves the initiator time to renew."""
        return max(self.reject_after - self.keepalive - self.rekey_timeout, self.rekey_after)

    @property
    def rekey_when_yielding_after(self) -> int:
        """How old a session may get, after crossed handshakes, before the side that yields renews it (ours).

        This is a Rekey-Timeout later than the time at which even a side that only receives should have renewed.
        """
        return self.rekey_on_receive_after + self.rekey_timeout

    @property
    def send_margin(self) -> int:
        """How long before it stops receiving a session stops sending (ours).

        The ages of the two sides' sessions differ by the delay of a handshake message, and data in flight must arrive
        before the other side's session ends. Later packets are staged for the next session. One second covers every
        round trip for which the retransmission timer is suitable.
        """
        return self.rekey_timeout // 5

    @property
    def max_retries(self) -> int:
        """The number of retransmissions before giving up.

        The kernel and wireguard-go also count instead of measuring.
        """
        return self.rekey_attempt // self.rekey_timeout

    @property
    def silence(self) -> int:
        """How long packets or initiations may go unanswered before the peer is reported silent.

        This equals the time after which unanswered data causes a new handshake (6.5).
        """
        return self.keepalive + self.rekey_timeout

    @property
    def give_up_after(self) -> int:
        """How long all retransmissions take at most, unless some were postponed (6.1)."""
        return (self.max_retries + 1) * (self.rekey_timeout + REKEY_TIMEOUT_JITTER)

    @property
    def zero_keys_after(self) -> int:
        return 3 * self.reject_after


# Ours, or taken from the kernel module and wireguard-go but not in the paper.
MAX_PEERS = 1 << 16
"""Bounds memory against a runaway configuration, like in wireguard-go."""

MAX_STAGED_PACKETS = 128
"""Per peer, like the kernel. A handshake takes one round trip, and more packets would only be stale."""

MAX_STAGED_BYTES = 16 << 20
"""For a device: enough for about 90 peers with full queues. Beyond that, memory matters more than packets that may
never leave."""

STAGED_SHARE = 8
"""A peer may use one eighth of the bytes that the device has left, which lets 84 silent peers have full queues. With
more, a peer's next packet displaces its oldest ones, so that there is room for the first packet of another peer."""

MAX_QUEUED_HANDSHAKES = 1024
"""Like wireguard-go: about 0.2 s of work for one core. A later answer would meet a retransmission."""

UNDER_LOAD_QUEUE_DEPTH = MAX_QUEUED_HANDSHAKES // 8
UNDER_LOAD_HOLD = 1 * SECOND

HANDSHAKE_FLOOR = 20 * MILLISECOND
"""The minimum time between two accepted initiations of one peer, like the kernel (INITIATIONS_PER_SECOND 50)."""

LIMITER_RATE = 20
LIMITER_BURST = 5
LIMITER_MAX_SOURCES = 1 << 16
"""Handshake messages per second and burst of one source (an IPv4 address or IPv6 /64), and the most sources that are
remembered."""

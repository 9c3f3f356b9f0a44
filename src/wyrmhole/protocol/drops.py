"""Drop reasons, and oddities of packets that were delivered. Metrics, logs and tests use the same names."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum


class DropReason(Enum):
    # out: from the TUN towards a peer
    MALFORMED_FRAME = "malformed_frame"  # the virtio or IP header is inconsistent with the frame
    NO_ROUTE = "no_route"  # no peer has the destination in its allowed IPs
    NO_ENDPOINT = "no_endpoint"  # the peer's endpoint is not known yet
    ROUTE_LOOP = "route_loop"  # our own outer packet was routed back into the tunnel
    STAGING_FULL = "staging_full"  # the oldest staged packet was displaced (paper 7: 128 per peer)
    STAGING_CAP = "staging_cap"  # the device-wide cap on staged bytes
    HANDSHAKE_GAVE_UP = "handshake_gave_up"
    SEND_FAILED = "send_failed"  # the socket refused the datagram
    PEER_REMOVED = "peer_removed"
    # in: from the network
    TOO_SHORT = "too_short"
    UNKNOWN_TYPE = "unknown_type"  # also if reserved bytes are not zero
    WRONG_LENGTH = "wrong_length"  # a handshake message of a wrong size, or more data than a TUN accepts
    BAD_MAC1 = "bad_mac1"
    NO_PRIVATE_KEY = "no_private_key"
    HANDSHAKE_QUEUE_FULL = "handshake_queue_full"
    UNEXPECTED_COOKIE = "unexpected_cookie"  # a cookie reply without a pending initiation
    UNKNOWN_INDEX = "unknown_index"
    KEY_EXPIRED = "key_expired"
    MESSAGE_LIMIT = "message_limit"  # counter at or beyond Reject-After-Messages
    BAD_TAG = "bad_tag"
    REPLAYED = "replayed"
    NOT_IP = "not_ip"  # authentic, but length or version are not those of an IP packet
    BAD_SOURCE = "bad_source"  # the inner source address does not belong to this peer
    TUN_WRITE_FAILED = "tun_write_failed"
    REPORT_QUEUE_FULL = "report_queue_full"
    INTERNAL_ERROR = "internal_error"  # a bug: the batch was dropped and the tunnel continued
    # handshake, in the protocol
    RATE_LIMITED = "rate_limited"
    UNDER_LOAD = "under_load"  # answered by a cookie reply or not at all
    BAD_COOKIE = "bad_cookie"
    BAD_HANDSHAKE = "bad_handshake"  # a tag or a Diffie-Hellman failed
    UNKNOWN_PEER = "unknown_peer"
    REPLAYED_HANDSHAKE = "replayed_handshake"  # the timestamp is not greater than the last
    HANDSHAKE_FLOOD = "handshake_flood"  # less than 20 ms after the last initiation of that peer
    UNEXPECTED_RESPONSE = "unexpected_response"  # no initiation waits for this response


class Oddity(Enum):
    """Conditions that are counted although the packet is delivered."""

    ECN_UNHEEDED = "ecn_unheeded"  # the outer packet has a congestion mark that the inner packet cannot carry


def by_name(counts: Mapping[DropReason, int]) -> dict[str, int]:
    return {reason.value: count for reason, count in counts.items()}


def meaning_of(name: str) -> str:
    """Return a sentence that explains the named reason, or an empty text for a name of another version."""
    try:
        return MEANINGS[DropReason(name)]
    except ValueError:
        return ""


MEANINGS = {
    DropReason.MALFORMED_FRAME: "the host sent a packet whose headers are inconsistent with its length",
    DropReason.NO_ROUTE: "no peer has the destination in its allowed IPs",
    DropReason.NO_ENDPOINT: "the peer's endpoint is not known: set one, or wait until the peer sends something",
    DropReason.ROUTE_LOOP: "the tunnel's own datagrams were routed into it: give the endpoint a route outside of it",
    DropReason.STAGING_FULL: "more than 128 packets waited for a session with the peer; the oldest were dropped",
    DropReason.STAGING_CAP: "packets that waited for sessions used too much memory; the oldest were dropped",
    DropReason.HANDSHAKE_GAVE_UP: "the peer did not answer, and the packets that waited for a session were dropped",
    DropReason.SEND_FAILED: "the system refused to send: no route to the endpoint, a firewall, or an interface down",
    DropReason.PEER_REMOVED: "the peer was removed while packets waited for it",
    DropReason.TOO_SHORT: "a datagram from outside is too short to be WireGuard",
    DropReason.UNKNOWN_TYPE: "a datagram from outside is not WireGuard",
    DropReason.WRONG_LENGTH: "a message from outside has a length that its type does not allow",
    DropReason.BAD_MAC1: "a handshake for a public key other than ours: the sender has a wrong PublicKey for us",
    DropReason.NO_PRIVATE_KEY: "the interface has no private key",
    DropReason.HANDSHAKE_QUEUE_FULL: "more handshakes arrived than could be handled",
    DropReason.UNEXPECTED_COOKIE: "a cookie reply that does not belong to a pending handshake",
    DropReason.UNKNOWN_INDEX: "data of an unknown session, for example after a restart of this side",
    DropReason.KEY_EXPIRED: "data of a session that is older than three minutes",
    DropReason.MESSAGE_LIMIT: "data of a session that has reached its message limit",
    DropReason.BAD_TAG: "data that does not authenticate: altered on the way, or forged",
    DropReason.REPLAYED: "data that arrived twice or very late",
    DropReason.NOT_IP: "the peer sent something that is not an IP packet",
    DropReason.BAD_SOURCE: "the peer used an inner source address that is not in its allowed IPs here",
    DropReason.TUN_WRITE_FAILED: "the host did not accept the packet: the interface is down or its queue is full",
    DropReason.REPORT_QUEUE_FULL: "the control thread was too slow to handle all reports",
    DropReason.INTERNAL_ERROR: "a bug in wyrmhole: please report it",
    DropReason.RATE_LIMITED: "one source sent too many handshakes while others waited",
    DropReason.UNDER_LOAD: "a handshake arrived while too many waited; its sender was asked to prove its address",
    DropReason.BAD_COOKIE: "a cookie reply that does not authenticate",
    DropReason.BAD_HANDSHAKE: "a handshake that does not authenticate: the preshared keys differ, or it was altered",
    DropReason.UNKNOWN_PEER: "a handshake from a public key that is not configured as a peer",
    DropReason.REPLAYED_HANDSHAKE: "a handshake with an old timestamp: a replay, or the peer's clock was set back",
    DropReason.HANDSHAKE_FLOOD: "the peer initiated handshakes less than 20 ms apart",
    DropReason.UNEXPECTED_RESPONSE: "a handshake response that does not belong to a pending handshake",
}
"""A sentence for users that explains each reason."""

"""Why a packet died, or what was odd about one that lived: metric label, log word and test assertion at once."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum


class DropReason(Enum):
    # out: from the TUN towards a peer
    MALFORMED_FRAME = "malformed_frame"  # virtio header or IP header that does not fit the frame
    NO_ROUTE = "no_route"  # no peer's allowed ips hold the destination
    NO_ENDPOINT = "no_endpoint"  # the peer's address is not known (yet)
    ROUTE_LOOP = "route_loop"  # our own outer packet, routed back into the tunnel
    STAGING_FULL = "staging_full"  # oldest staged packet made room (paper 7: 128 per peer)
    STAGING_CAP = "staging_cap"  # the device-wide cap on staged bytes
    HANDSHAKE_GAVE_UP = "handshake_gave_up"
    SEND_FAILED = "send_failed"  # the socket refused it
    PEER_REMOVED = "peer_removed"
    # in: from the network
    TOO_SHORT = "too_short"
    UNKNOWN_TYPE = "unknown_type"  # also: reserved bytes that are not zero
    WRONG_LENGTH = "wrong_length"  # a handshake message of another size, or data beyond what a TUN takes
    BAD_MAC1 = "bad_mac1"
    NO_PRIVATE_KEY = "no_private_key"
    HANDSHAKE_QUEUE_FULL = "handshake_queue_full"
    UNEXPECTED_COOKIE = "unexpected_cookie"  # a cookie reply to no initiation under way
    UNKNOWN_INDEX = "unknown_index"
    KEY_EXPIRED = "key_expired"
    MESSAGE_LIMIT = "message_limit"  # counter at or beyond Reject-After-Messages
    BAD_TAG = "bad_tag"
    REPLAYED = "replayed"
    NOT_IP = "not_ip"  # authenticated, but its length or version is no IP packet
    BAD_SOURCE = "bad_source"  # the inner source is not this peer's
    TUN_WRITE_FAILED = "tun_write_failed"
    REPORT_QUEUE_FULL = "report_queue_full"
    INTERNAL_ERROR = "internal_error"  # a bug: the batch was given up and the tunnel went on
    # handshake, in the protocol
    RATE_LIMITED = "rate_limited"
    UNDER_LOAD = "under_load"  # answered by a cookie reply, or by nothing
    BAD_COOKIE = "bad_cookie"
    BAD_HANDSHAKE = "bad_handshake"  # a tag or a Diffie-Hellman that fails
    UNKNOWN_PEER = "unknown_peer"
    REPLAYED_HANDSHAKE = "replayed_handshake"  # timestamp not greater than the last
    HANDSHAKE_FLOOD = "handshake_flood"  # sooner than 20 ms after the last one of that peer
    UNEXPECTED_RESPONSE = "unexpected_response"  # no initiation waits for it


class Oddity(Enum):
    """Counted by packets that went their way all the same."""

    ECN_UNHEEDED = "ecn_unheeded"  # congestion outside, and the inner packet cannot carry the mark


def by_name(counts: Mapping[DropReason, int]) -> dict[str, int]:
    return {reason.value: count for reason, count in counts.items()}


def meaning_of(name: str) -> str:
    """A sentence for people about the reason of this name; empty for one of another version."""
    try:
        return MEANINGS[DropReason(name)]
    except ValueError:
        return ""


MEANINGS = {
    DropReason.MALFORMED_FRAME: "the host gave a packet whose headers do not fit its length",
    DropReason.NO_ROUTE: "no peer has the destination in its allowed IPs",
    DropReason.NO_ENDPOINT: "the peer's endpoint is not known: set one, or wait until the peer writes",
    DropReason.ROUTE_LOOP: "the tunnel's own datagrams were routed into the tunnel: the endpoint needs a route outside",
    DropReason.STAGING_FULL: "more packets than 128 waited for a session with the peer; the oldest went",
    DropReason.STAGING_CAP: "packets that waited for sessions took too much memory; the oldest went",
    DropReason.HANDSHAKE_GAVE_UP: "the peer did not answer, and the packets that waited for it went",
    DropReason.SEND_FAILED: "the system refused to send: no route to the endpoint, a firewall, or an interface down",
    DropReason.PEER_REMOVED: "the peer was removed while packets waited for it",
    DropReason.TOO_SHORT: "a datagram from outside is too short to be WireGuard",
    DropReason.UNKNOWN_TYPE: "a datagram from outside is not WireGuard",
    DropReason.WRONG_LENGTH: "a message from outside has a length that its type does not allow",
    DropReason.BAD_MAC1: "a handshake for another public key than ours: the sender has a wrong PublicKey for us",
    DropReason.NO_PRIVATE_KEY: "the interface has no private key",
    DropReason.HANDSHAKE_QUEUE_FULL: "more handshakes came than could be worked on",
    DropReason.UNEXPECTED_COOKIE: "a cookie reply that no handshake of ours waits for",
    DropReason.UNKNOWN_INDEX: "data of a session that is not known, as after a restart of this side",
    DropReason.KEY_EXPIRED: "data of a session that is older than three minutes",
    DropReason.MESSAGE_LIMIT: "data of a session that used up its messages",
    DropReason.BAD_TAG: "data that does not authenticate: altered on the way, or forged",
    DropReason.REPLAYED: "data that came twice, or very late",
    DropReason.NOT_IP: "the peer sent something that is not an IP packet",
    DropReason.BAD_SOURCE: "the peer used an inner source address that is not in its allowed IPs here",
    DropReason.TUN_WRITE_FAILED: "the host did not take the packet: the interface is down or its queue is full",
    DropReason.REPORT_QUEUE_FULL: "the control thread was too slow to hear of everything",
    DropReason.INTERNAL_ERROR: "a bug of wyrmhole: please report it",
    DropReason.RATE_LIMITED: "one source sent too many handshakes while others waited",
    DropReason.UNDER_LOAD: "a handshake came while too many waited; its sender was asked to prove its address",
    DropReason.BAD_COOKIE: "a cookie reply that does not authenticate",
    DropReason.BAD_HANDSHAKE: "a handshake that does not authenticate: the preshared keys differ, or it was altered",
    DropReason.UNKNOWN_PEER: "a handshake of a public key that no peer has",
    DropReason.REPLAYED_HANDSHAKE: "a handshake with an old timestamp: a replay, or the peer's clock went back",
    DropReason.HANDSHAKE_FLOOD: "the peer began handshakes less than 20 ms apart",
    DropReason.UNEXPECTED_RESPONSE: "a handshake response that no handshake of ours waits for",
}
"""What each reason means, for people."""

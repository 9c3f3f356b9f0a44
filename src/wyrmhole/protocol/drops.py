"""Why a packet died, or what was odd about one that lived: metric label, log word and test assertion at once."""

from __future__ import annotations

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

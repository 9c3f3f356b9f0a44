"""Log lines for a device's events, in wireguard-go's words where it has the same line.

`describe` returns the level and the text. Lines that others can cause at will also have a rate class: the log writes
one line per second of each class (see cli/log_lines.py), so a flood cannot fill a disk. Peers are written like in
wireguard-go: `peer(XXXX…XXXX)`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from wyrmhole.protocol import events
from wyrmhole.protocol.constants import SECOND
from wyrmhole.protocol.drops import DropReason
from wyrmhole.protocol.keys import PublicKey
from wyrmhole.wire.endpoint import Endpoint

REFUSALS = {
    DropReason.NO_PRIVATE_KEY: "the interface has no private key: set one",
    DropReason.UNKNOWN_PEER: "no peer has the public key {key}: add it, or correct the sender's private key",
    DropReason.BAD_HANDSHAKE: "{peer} does not authenticate: the preshared keys differ, or the message was altered",
    DropReason.REPLAYED_HANDSHAKE: "{peer} sent an old timestamp: a replay, or its clock went back",
    DropReason.HANDSHAKE_FLOOD: "{peer} initiated again within 20 ms",
    DropReason.UNEXPECTED_RESPONSE: "no initiation of ours is pending",
    DropReason.BAD_COOKIE: "no initiation of ours is pending, or its key is wrong",
    DropReason.BAD_MAC1: "it is not meant for this interface's public key: the sender has another PublicKey for us",
    DropReason.TOO_SHORT: "it is not a WireGuard message",
    DropReason.UNKNOWN_TYPE: "it is not a WireGuard message, or it is one of another version or an obfuscated variant",
    DropReason.WRONG_LENGTH: "its length is wrong for its type",
    DropReason.RATE_LIMITED: "too many handshakes wait, and its source sends many",
    DropReason.HANDSHAKE_QUEUE_FULL: "too many handshakes wait",
    DropReason.UNEXPECTED_COOKIE: "no initiation of ours is pending",
}
"""Why a message was refused, and the remedy if there is one."""

MESSAGES = {
    DropReason.UNEXPECTED_RESPONSE: "Received invalid response message",
    DropReason.BAD_COOKIE: "Received invalid cookie reply",
    DropReason.UNEXPECTED_COOKIE: "Received invalid cookie reply",
    DropReason.BAD_MAC1: "Received packet with invalid mac1",
    DropReason.NO_PRIVATE_KEY: "Received invalid handshake message",
    DropReason.RATE_LIMITED: "Dropped handshake message",
    DropReason.HANDSHAKE_QUEUE_FULL: "Dropped handshake message",
    DropReason.TOO_SHORT: "Received message with unknown type",
    DropReason.UNKNOWN_TYPE: "Received message with unknown type",
    DropReason.WRONG_LENGTH: "Received message with unknown type",
}
"""The beginning of a refusal's log line, in wireguard-go's words."""


BATCHES_LOST = (
    "GSO batches are lost while single datagrams arrive; a kernel or driver on the path probably damages them; sending "
    "single datagrams, which is slower, and trying batches again later (check with `wyrmhole doctor --to {key}`, or "
    "set WYRMHOLE_WITHOUT=gso to switch them off)"
)

WARNINGS = (events.PeerSilent, events.PeerBack, events.EndpointFlapping, events.SendRefused, events.BatchesLost)
"""Events that are logged at the default level."""


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line for the log."""

    level: int
    text: str
    rate_class: str | None = None


def peer_text(key: PublicKey) -> str:
    """Return a peer's name in the log, like in wireguard-go."""
    text = key.base64()
    return f"peer({text[:4]}…{text[39:43]})"


def describe(event: events.Event, hint: str | None = None) -> tuple[LogLine, ...]:
    """Return the lines of one event, in order. `hint` is the reason why this host cannot reach or send to the peer."""
    if isinstance(event, events.HandshakeRefused):
        return (_refused(event),)
    if isinstance(event, events.CookieReplySent):
        source = event.endpoint.host
        return (LogLine(logging.DEBUG, f"Sending cookie response for denied handshake message for {source}", "cookie"),)
    peer = peer_text(event.peer)
    if isinstance(event, events.PacketRefused):
        return (_disallowed(event, peer),)
    if isinstance(event, events.InitiationSent):
        return _initiation(event, peer)
    if isinstance(event, events.ResponseSent):
        received = LogLine(logging.DEBUG, f"{peer} - Received handshake initiation")
        return (received, LogLine(logging.DEBUG, f"{peer} - Sending handshake response to {event.endpoint.emit()}"))
    if isinstance(event, events.PeerSilent):
        return (LogLine(logging.WARNING, f"{peer} - {_silence(event, hint)}", f"silent {peer}"),)
    if isinstance(event, events.SendRefused):
        return (LogLine(logging.WARNING, f"{peer} - {hint or f'cannot send: errno {event.errno}'}", f"send {peer}"),)
    return (_of_peer(event, peer),)


def _initiation(event: events.InitiationSent, peer: str) -> tuple[LogLine, ...]:
    sending = LogLine(logging.DEBUG, f"{peer} - Sending handshake initiation to {event.endpoint.emit()}")
    if event.attempt == 1:
        return (sending,)
    retry = f"{peer} - Handshake did not complete after 5 seconds, retrying (try {event.attempt})"
    return (LogLine(logging.DEBUG, retry), sending)


def _of_peer(event: events.Event, peer: str) -> LogLine:
    level, rate_class = logging.DEBUG, None
    match event:
        case events.HandshakeCompleted(as_initiator=True):
            text = "Received handshake response, keypair created"
        case events.HandshakeCompleted():
            text = "Received first packet of the session, keypair created"
        case events.HandshakeGaveUp():
            text = f"Handshake did not complete after {event.attempts} attempts, giving up"
        case events.HandshakeImpossible():
            text, rate_class = f"Cannot send handshake initiation: {event.reason}", f"impossible {peer}"
        case events.CookieReceived():
            text = "Received cookie response: the peer is under load, the next initiation carries the cookie"
        case events.KeepaliveSent():
            text = f"Sending {'persistent ' if event.persistent else ''}keepalive packet"
        case events.Roamed():
            text, rate_class = f"Endpoint changed to {event.endpoint.emit()}", f"endpoint {peer}"
        case events.SessionExpired():
            text = "Removing all keys, since we haven't received a new one in 540 seconds"
        case events.PeerBack():
            level, text, rate_class = logging.WARNING, f"is back after {event.silent_for // SECOND} s", f"back {peer}"
        case events.BatchesLost():
            level, text = logging.ERROR, BATCHES_LOST.format(key=event.peer.base64())
        case events.EndpointFlapping():
            level, text, rate_class = logging.WARNING, _flapping(event), f"flapping {peer}"
        case _:
            text = type(event).__name__
    return LogLine(level, f"{peer} - {text}", rate_class)


def _silence(event: events.PeerSilent, hint: str | None) -> str:
    where = "without an endpoint" if event.endpoint is None else f"at {event.endpoint.emit()}"
    if event.problem is DropReason.BAD_HANDSHAKE:
        return f"{where} answers, but its response does not authenticate: the preshared keys of the two sides differ"
    if hint is not None:
        return f"{where} cannot be reached: {hint}"
    if not event.initiations:
        return (
            f"{where} has not answered for 15 s within a session: it may have restarted, moved or been cut off, a NAT "
            "may have forgotten it (set PersistentKeepalive = 25 on its side), or another host uses our private key; "
            "starting a new handshake"
        )
    return (
        f"{where} does not answer: {event.initiations} handshake initiations in 15 s, nothing received; check that "
        "the endpoint is right and running, that the keys match on both sides, that UDP is not filtered, and that the "
        "clock of this host is not behind"
    )


def _flapping(event: events.EndpointFlapping) -> str:
    one, other = (endpoint.emit() for endpoint in event.endpoints)
    return (
        f"keeps moving between {one} and {other}: two hosts or programs seem to use its private key; "
        "give each its own key"
    )


def _disallowed(event: events.PacketRefused, peer: str) -> LogLine:
    version = "IPv6" if ":" in event.inner_source else "IPv4"
    text = (
        f"{version} packet with disallowed source address from {peer} at {event.endpoint.emit()}: {event.inner_source} "
        "is not in its allowed IPs"
    )
    return LogLine(logging.DEBUG, text, f"refused {event.endpoint.host}")


def _refused(event: events.HandshakeRefused) -> LogLine:
    key = event.peer
    reason = REFUSALS.get(event.reason, event.reason.value).format(
        key="(hidden)" if key is None else key.base64(), peer="the sender" if key is None else peer_text(key)
    )
    # An initiation that does not authenticate has no known sender; a response answers an initiation to a known peer.
    is_response = event.reason is DropReason.BAD_HANDSHAKE and key is not None
    default = f"Received invalid {'response' if is_response else 'initiation'} message"
    message = MESSAGES.get(event.reason, default)
    source: Endpoint = event.endpoint
    text = f"{message} from {source.emit()}: {reason}"
    return LogLine(logging.DEBUG, text, f"refused {source.host}")

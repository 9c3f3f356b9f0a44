"""A peer that a test drives by hand: a socket, a key and the handshake's functions, without timers or replay windows.

It can send any message at any moment, including messages that no implementation would send. It uses the product's Noise
functions, which are verified by published vectors and by three other implementations.
"""

from __future__ import annotations

import base64
import os
import select
import socket
import struct
import time
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from tests.netns.host import PATIENCE, Host
from tests.netns.lab import Lab, inner
from tests.netns.node import Key, Node, peer_section
from wyrmhole.protocol import noise, tai64n
from wyrmhole.protocol.cookie import cookie_key, mac1_key
from wyrmhole.protocol.keys import PrivateKey, PublicKey
from wyrmhole.protocol.primitives import dh, mac, xopen, xseal
from wyrmhole.wire.messages import CookieReply, Initiation, Response, before_mac1, before_mac2, mac1_of, mac2_of

Address = tuple[str, int]
NO_MACS = bytes(16)
FLOOR_SECONDS = 0.03


@dataclass
class Session:
    """Transport keys and the next counter to send."""

    send_key: bytes = field(repr=False)
    receive_key: bytes = field(repr=False)
    local_index: int
    remote_index: int
    counter: int = 0

    def seal(self, packet: bytes = b"", counter: int | None = None) -> bytes:
        """Return a transport data message with exactly this plaintext, under `counter` or the next counter."""
        if counter is None:
            counter, self.counter = self.counter, self.counter + 1
        header = struct.pack("<IIQ", 4, self.remote_index, counter)
        return header + ChaCha20Poly1305(self.send_key).encrypt(bytes(4) + header[8:], packet, None)

    def open(self, message: bytes) -> bytes:
        """Decrypt a transport data message. Raises InvalidTag."""
        assert int.from_bytes(message[4:8], "little") == self.local_index
        return ChaCha20Poly1305(self.receive_key).decrypt(bytes(4) + message[8:16], message[16:], None)


class RawPeer:
    """A hand-driven peer. Close it, or use it as a context manager."""

    def __init__(self, host: Host, address: Address, node_public: str, target: Address, key: Key | None = None) -> None:
        self.host = host
        self.key = key or Key.generate()
        self.target = target
        self._static = PrivateKey(base64.b64decode(self.key.private))
        self._node = PublicKey(base64.b64decode(node_public))
        self._stamp: bytes | None = None
        self._socket = self._open(address)

    def __enter__(self) -> RawPeer:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _open(self, address: Address) -> socket.socket:
        with self.host.entered():
            opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        opened.bind(address)
        return opened

    def move(self, address: Address) -> None:
        """Change to another address; datagrams to the former one are lost."""
        former, self._socket = self._socket, self._open(address)
        former.close()

    @property
    def address(self) -> Address:
        host, port = self._socket.getsockname()
        return host, port

    def send(self, *messages: bytes) -> None:
        for message in messages:
            self._socket.sendto(message, self.target)

    def receive(self, kind: int, wait: float = PATIENCE) -> bytes:
        """Return the next message of that type, and discard others. Raises AssertionError if there is none."""
        deadline = time.monotonic() + wait
        while self._is_readable(deadline - time.monotonic()):
            message = self._socket.recv(0x10000)
            if int.from_bytes(message[:4], "little") == kind:
                return message
        raise AssertionError(f"no message of type {kind} within {wait} s")

    def waiting(self, wait: float = 0.0) -> list[bytes]:
        """Return the messages received so far, after waiting at most `wait` seconds for the first."""
        messages: list[bytes] = []
        while self._is_readable(0.0 if messages else wait):
            messages.append(self._socket.recv(0x10000))
        return messages

    def _is_readable(self, wait: float) -> bool:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(max(0.0, wait) * 1000))

    # Handshake

    def initiation(
        self, *, stamp: bytes | None = None, cookie: bytes | None = None
    ) -> tuple[bytes, noise.InitiationSent]:
        """Return an initiation with a fresh ephemeral key, index and timestamp."""
        if stamp is None:
            stamp = self._stamp = tai64n.next_stamp(time.time_ns(), self._stamp)
        static_static = dh(self._static.exchange_key, self._node.raw)
        sent, body = noise.create_initiation(
            self._static,
            self._node,
            static_static,
            ephemeral_private=os.urandom(32),
            local_index=int.from_bytes(os.urandom(4), "little"),
            payload=stamp,
        )
        fields = (body.ephemeral, body.encrypted_static, body.encrypted_payload, NO_MACS, NO_MACS)
        return self.with_macs(Initiation(sent.local_index, *fields).emit(), cookie), sent

    def with_macs(self, message: bytes, cookie: bytes | None = None) -> bytes:
        """Return the handshake message with valid MACs."""
        unauthenticated = before_mac1(message)
        with_mac1 = unauthenticated + mac(mac1_key(self._node), unauthenticated)
        return with_mac1 + (NO_MACS if cookie is None else mac(cookie, with_mac1))

    def finish(self, sent: noise.InitiationSent, message: bytes) -> Session:
        """Return the session that the response completes. Raises InvalidTag."""
        answer = Response.parse(message)
        assert answer.receiver == sent.local_index
        body = noise.ResponseBody(answer.ephemeral, answer.encrypted_nothing)
        keys, _, _ = noise.consume_response(sent, self._static, None, body)
        return Session(bytes(keys.send), bytes(keys.receive), sent.local_index, answer.sender)

    def begin(self) -> Session:
        """Complete a handshake as the initiator, without confirming it.

        Initiations are repeated, because the node accepts only one in 20 ms.
        """
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            message, sent = self.initiation()
            self.send(message)
            for answer in self.waiting(wait=0.2):
                if answer[:4] == b"\2\0\0\0" and Response.parse(answer).receiver == sent.local_index:
                    return self.finish(sent, answer)
        raise AssertionError("no initiation was answered")

    def connect(self) -> Session:
        """Complete a handshake as the initiator, and confirm it by a keepalive."""
        session = self.begin()
        self.send(session.seal())
        return session

    def respond(self, message: bytes) -> tuple[bytes, Session]:
        """Return a response to the node's initiation, and the responder's session."""
        question = Initiation.parse(message)
        body = noise.InitiationBody(question.ephemeral, question.encrypted_static, question.encrypted_timestamp)
        received = noise.consume_initiation(
            self._static,
            self._static.public_key(),
            body,
            question.sender,
            lambda key: dh(self._static.exchange_key, key.raw),
        )
        keys, made, _ = noise.create_response(received, None, ephemeral_private=os.urandom(32))
        index = int.from_bytes(os.urandom(4), "little")
        answer = Response(index, question.sender, made.ephemeral, made.encrypted_payload, NO_MACS, NO_MACS).emit()
        return self.with_macs(answer), Session(bytes(keys.send), bytes(keys.receive), index, question.sender)

    # Cookies

    def cookie_reply(self, message: bytes, cookie: bytes = b"\x11" * 16) -> bytes:
        """Return a cookie reply to a handshake message of the node."""
        nonce = os.urandom(24)
        sealed = xseal(cookie_key(self._static.public_key()), nonce, cookie, mac1_of(message))
        return CookieReply(int.from_bytes(message[4:8], "little"), nonce, sealed).emit()

    def read_cookie(self, reply: bytes, message: bytes) -> bytes:
        """Return the cookie in the node's cookie reply to our message. Raises InvalidTag."""
        parsed = CookieReply.parse(reply)
        assert parsed.receiver == int.from_bytes(message[4:8], "little")
        return xopen(cookie_key(self._node), parsed.nonce, parsed.encrypted_cookie, mac1_of(message))

    def carries_cookie(self, message: bytes, cookie: bytes) -> bool:
        """Whether mac2 of the node's handshake message was computed with the cookie."""
        return mac2_of(message) == mac(cookie, before_mac2(message))

    # Unanswered messages

    def stays_unanswered(self, *messages: bytes) -> None:
        """Send the messages, then a valid initiation, and assert that only the latter is answered.

        Datagrams keep their order. The node accepts one initiation of a peer in 20 ms, so a pause comes first: rate
        limiting must not be the reason for the silence.
        """
        self.waiting(wait=FLOOR_SECONDS)
        self.send(*messages)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            probe, sent = self.initiation()
            self.send(probe)
            for answer in self.waiting(wait=0.2):
                assert answer[:4] == b"\2\0\0\0" and Response.parse(answer).receiver == sent.local_index, answer.hex()
                return
        raise AssertionError("not even a valid initiation was answered")


def lonely_node(
    lab: Lab, implementation: str, *, knows_endpoint: bool = False, keepalive: int = 0
) -> tuple[Node, RawPeer]:
    """Return a node at 192.0.2.1 and its only peer, a raw one: 192.0.2.2 port 40000 outside, 10.77.0.2 inside."""
    a, b = lab.neighbours()
    node, key = lab.node(a, implementation), Key.generate()
    raw = RawPeer(b, ("192.0.2.2", 40000), node.key.public, ("192.0.2.1", node.port), key)
    endpoint = "192.0.2.2:40000" if knows_endpoint else None
    node.configure(peer_section(key.public, *inner(2), endpoint=endpoint, keepalive=keepalive))
    node.assign(*inner(1, 24, 64))
    node.up()
    return node, raw

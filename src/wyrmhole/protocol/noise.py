"""Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s, the handshake (whitepaper 5.4.1 to 5.4.5, Noise specification rev. 34).

    initiator                                              responder
    create_initiation -> InitiationSent    e, es, s, ss    consume_initiation -> InitiationReceived
    consume_response  -> TransportKeys     e, ee, se, psk  create_response    -> TransportKeys

Both sides keep a chaining key (all secrets agreed so far) and a hash (all messages so far, authenticated with each
encryption). State exists only between the two calls of a side and is dropped with them; a failed call changes nothing.
Functions take the ephemeral private key and the index as arguments, because the protocol has no source of randomness.

The prologue and the payloads are arguments that default to WireGuard's values, so that published Noise vectors can be
run through this code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from wyrmhole.protocol.constants import CONSTRUCTION, IDENTIFIER
from wyrmhole.protocol.keys import KEY_SIZE, PresharedKey, PrivateKey, PublicKey
from wyrmhole.protocol.primitives import derive_keys, dh, hash2s, kdf1, kdf2, kdf3, open_handshake, seal_handshake

_CHAINING_KEY = hash2s(CONSTRUCTION)
_NO_PSK = bytes(KEY_SIZE)


class UnknownPeer(Exception):
    """The initiation is well formed but comes from a static key that is not configured."""

    def __init__(self, public_key: PublicKey) -> None:
        super().__init__(f"no peer has the public key {public_key}")
        self.public_key = public_key


@dataclass(frozen=True, slots=True)
class TransportKeys:
    """The 32-byte keys that a handshake produces (5.4.5). The code that makes ciphers of them must wipe them."""

    send: bytearray = field(repr=False)
    receive: bytearray = field(repr=False)


@dataclass(slots=True)
class Symmetric:
    """Chaining key and hash, and the operations on them (Noise 5.2)."""

    chaining_key: bytes = field(repr=False)
    hash: bytes = field(repr=False)

    @classmethod
    def start(cls, responder_static: bytes, prologue: bytes) -> Symmetric:
        return cls(_CHAINING_KEY, hash2s(hash2s(_CHAINING_KEY, prologue), responder_static))

    def copy(self) -> Symmetric:
        return Symmetric(self.chaining_key, self.hash)

    def mix_hash(self, data: bytes) -> None:
        self.hash = hash2s(self.hash, data)

    def mix_ephemeral(self, public: bytes) -> None:
        """Mix an ephemeral key into the hash and, because the pattern has a psk, into the chaining key (Noise 9.2)."""
        self.mix_hash(public)
        self.chaining_key = kdf1(self.chaining_key, public)

    def mix_key(self, secret: bytes) -> None:
        self.chaining_key = kdf1(self.chaining_key, secret)

    def mix_key_for_use(self, secret: bytes) -> bytes:
        self.chaining_key, key = kdf2(self.chaining_key, secret)
        return key

    def mix_psk(self, psk: bytes) -> bytes:
        self.chaining_key, to_hash, key = kdf3(self.chaining_key, psk)
        self.mix_hash(to_hash)
        return key

    def seal(self, key: bytes, plaintext: bytes) -> bytes:
        sealed = seal_handshake(key, plaintext, self.hash)
        self.mix_hash(sealed)
        return sealed

    def open(self, key: bytes, sealed: bytes) -> bytes:
        opened = open_handshake(key, sealed, self.hash)
        self.mix_hash(sealed)
        return opened

    def split(self) -> tuple[bytearray, bytearray]:
        """Return the keys from initiator to responder and from responder to initiator."""
        return derive_keys(self.chaining_key)


@dataclass(frozen=True, slots=True)
class InitiationSent:
    """The state of an initiator that waits for a response under `local_index`."""

    symmetric: Symmetric = field(repr=False)
    ephemeral: X25519PrivateKey = field(repr=False)
    local_index: int


@dataclass(frozen=True, slots=True)
class InitiationReceived:
    """The state of a responder: the initiator's static key, which it has proved to hold, and its timestamp."""

    symmetric: Symmetric = field(repr=False)
    remote_static: PublicKey
    remote_ephemeral: bytes = field(repr=False)
    remote_index: int
    payload: bytes
    """The timestamp."""


@dataclass(frozen=True, slots=True)
class InitiationBody:
    """The fields of an initiation that Noise produces."""

    ephemeral: bytes
    encrypted_static: bytes
    encrypted_payload: bytes


@dataclass(frozen=True, slots=True)
class ResponseBody:
    """The fields of a response that Noise produces."""

    ephemeral: bytes
    encrypted_payload: bytes


def create_initiation(
    static: PrivateKey,
    remote_static: PublicKey,
    static_static: bytes,
    *,
    ephemeral_private: bytes,
    local_index: int,
    payload: bytes,
    prologue: bytes = IDENTIFIER,
) -> tuple[InitiationSent, InitiationBody]:
    """Create an initiation. `static_static` is dh(static, remote_static). Raises ZeroSharedSecret."""
    ephemeral = X25519PrivateKey.from_private_bytes(ephemeral_private)
    ephemeral_public = ephemeral.public_key().public_bytes_raw()
    symmetric = Symmetric.start(remote_static.raw, prologue)
    symmetric.mix_ephemeral(ephemeral_public)
    key = symmetric.mix_key_for_use(dh(ephemeral, remote_static.raw))
    encrypted_static = symmetric.seal(key, static.public_key().raw)
    key = symmetric.mix_key_for_use(static_static)
    encrypted_payload = symmetric.seal(key, payload)
    body = InitiationBody(ephemeral_public, encrypted_static, encrypted_payload)
    return InitiationSent(symmetric, ephemeral, local_index), body


def consume_initiation(
    static: PrivateKey,
    public: PublicKey,
    body: InitiationBody,
    remote_index: int,
    static_static_of: Callable[[PublicKey], bytes | None],
    *,
    prologue: bytes = IDENTIFIER,
) -> InitiationReceived:
    """Open an initiation. `static_static_of` returns dh(static, key) for a configured peer, otherwise None.

    Raises InvalidTag, ZeroSharedSecret or UnknownPeer.
    """
    symmetric = Symmetric.start(public.raw, prologue)
    symmetric.mix_ephemeral(body.ephemeral)
    key = symmetric.mix_key_for_use(dh(static.exchange_key, body.ephemeral))
    remote_static = PublicKey(symmetric.open(key, body.encrypted_static))
    static_static = static_static_of(remote_static)
    if static_static is None:
        raise UnknownPeer(remote_static)
    key = symmetric.mix_key_for_use(static_static)
    payload = symmetric.open(key, body.encrypted_payload)
    return InitiationReceived(symmetric, remote_static, body.ephemeral, remote_index, payload)


def create_response(
    received: InitiationReceived,
    psk: PresharedKey | None,
    *,
    ephemeral_private: bytes,
    payload: bytes = b"",
) -> tuple[TransportKeys, ResponseBody, bytes]:
    """Create a response. Return keys, body and the handshake hash (a channel binding). Raises ZeroSharedSecret."""
    ephemeral = X25519PrivateKey.from_private_bytes(ephemeral_private)
    ephemeral_public = ephemeral.public_key().public_bytes_raw()
    symmetric = received.symmetric.copy()
    symmetric.mix_ephemeral(ephemeral_public)
    symmetric.mix_key(dh(ephemeral, received.remote_ephemeral))
    symmetric.mix_key(dh(ephemeral, received.remote_static.raw))
    key = symmetric.mix_psk(_NO_PSK if psk is None else psk.raw)
    encrypted_payload = symmetric.seal(key, payload)
    from_initiator, to_initiator = symmetric.split()
    keys = TransportKeys(send=to_initiator, receive=from_initiator)
    return keys, ResponseBody(ephemeral_public, encrypted_payload), symmetric.hash


def consume_response(
    sent: InitiationSent, static: PrivateKey, psk: PresharedKey | None, body: ResponseBody
) -> tuple[TransportKeys, bytes, bytes]:
    """Open a response. Return keys, payload and handshake hash.

    Raises InvalidTag or ZeroSharedSecret; `sent` can then be used again.
    """
    symmetric = sent.symmetric.copy()
    symmetric.mix_ephemeral(body.ephemeral)
    symmetric.mix_key(dh(sent.ephemeral, body.ephemeral))
    symmetric.mix_key(dh(static.exchange_key, body.ephemeral))
    key = symmetric.mix_psk(_NO_PSK if psk is None else psk.raw)
    payload = symmetric.open(key, body.encrypted_payload)
    to_responder, from_responder = symmetric.split()
    return TransportKeys(send=to_responder, receive=from_responder), payload, symmetric.hash

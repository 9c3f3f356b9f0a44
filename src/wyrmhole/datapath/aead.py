"""ChaCha20-Poly1305 (RFC 8439) for data: one direction of a session, and its nonces (whitepaper 5.4.6)."""

from __future__ import annotations

import struct

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

nonce = struct.Struct("<4xQ").pack
"""The 12-byte nonce of a counter: four zeros and the counter, little endian. A function of the library's, because it
runs per packet."""


class TransportCipher:
    """`seal(nonce, plaintext, None, out)` writes ciphertext and tag; `open(nonce, ciphertext, None, out)` writes the
    plaintext or raises InvalidTag. `out` has just the length of what is written. `open_copy(nonce, ciphertext, None)`
    returns the plaintext as bytes. They are the library's own methods, bound once, because they run per packet.
    """

    __slots__ = ("open", "open_copy", "seal")

    def __init__(self, key: bytes | bytearray) -> None:
        """The library keeps a copy of its own, and overwrites that when the cipher goes."""
        aead = ChaCha20Poly1305(key)
        self.seal = aead.encrypt_into
        self.open = aead.decrypt_into
        self.open_copy = aead.decrypt

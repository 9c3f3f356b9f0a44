"""ChaCha20-Poly1305 (RFC 8439) for data: one direction of a session, and its nonces (whitepaper 5.4.6)."""

from __future__ import annotations

import struct

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

nonce = struct.Struct("<4xQ").pack
"""Return the 12-byte nonce of a counter: four zeros, then the counter, little endian. The library's function is used
directly, because it runs per packet."""


class TransportCipher:
    """The key of one direction.

    `seal(nonce, plaintext, None, out)` writes ciphertext and tag. `open(nonce, ciphertext, None, out)` writes the
    plaintext or raises InvalidTag. `out` must have exactly the length of the result. `open_copy(nonce, ciphertext,
    None)` returns the plaintext as bytes. These are the library's methods, bound once, because they run per packet.
    """

    __slots__ = ("open", "open_copy", "seal")

    def __init__(self, key: bytes | bytearray) -> None:
        """Create the ciphers. The library copies the key, and overwrites its copy when the cipher is freed."""
        aead = ChaCha20Poly1305(key)
        self.seal = aead.encrypt_into
        self.open = aead.decrypt_into
        self.open_copy = aead.decrypt

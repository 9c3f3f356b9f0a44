"""The cryptographic functions of the whitepaper (5.4), under its names. Each one comes from a library.

`cryptography` (OpenSSL) provides Curve25519 and the AEADs, the standard library BLAKE2s and HMAC. HChaCha20 is derived
from the library's ChaCha20: a keystream block is the permuted state plus the input state. Subtracting the input words
yields the permuted state, whose first and last rows are the output of HChaCha20 (draft-irtf-cfrg-xchacha-03, 2.2).
"""

from __future__ import annotations

import hmac
import struct
from hashlib import blake2s

import cryptography
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

__all__ = [
    "InvalidTag",
    "ZeroSharedSecret",
    "derive_keys",
    "dh",
    "hash2s",
    "hchacha20",
    "kdf1",
    "kdf2",
    "kdf3",
    "library_text",
    "mac",
    "open_handshake",
    "same",
    "seal_handshake",
    "wipe",
    "xopen",
    "xseal",
]

_ZERO_NONCE = bytes(12)
_ZERO_KEY = bytes(32)
_BLAKE2S = hashes.BLAKE2s(32)
_HMAC_BLOCK = 64
_INNER_PAD = bytes(byte ^ 0x36 for byte in range(256))
_OUTER_PAD = bytes(byte ^ 0x5C for byte in range(256))
_CHACHA_CONSTANTS = struct.unpack("<4I", b"expand 32-byte k")


class ZeroSharedSecret(ValueError):
    """The other side's key is of low order: the shared secret is zero and does not protect anything."""


def dh(private: X25519PrivateKey, public: bytes) -> bytes:
    """Return Curve25519 (RFC 7748) of a private and a 32-byte public key. Raises ZeroSharedSecret."""
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise ZeroSharedSecret("the shared secret is zero: the public key is of low order") from None


def hash2s(*parts: bytes) -> bytes:
    return blake2s(b"".join(parts)).digest()


def mac(key: bytes | bytearray, data: bytes) -> bytes:
    """Return the keyed BLAKE2s of the data, 16 bytes long. The key has at most 32 bytes."""
    return blake2s(data, digest_size=16, key=key).digest()


def same(a: bytes, b: bytes) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(a, b)


class _Hmac:
    """HMAC-BLAKE2s (RFC 2104) under one key of at most 64 bytes.

    This calls hashlib's BLAKE2s directly. The standard library's HMAC looks its hash up each time, which costs more
    than hashing 32 bytes, and a handshake needs 21 of these.
    """

    __slots__ = ("_inner", "_outer")

    def __init__(self, key: bytes) -> None:
        block = key.ljust(_HMAC_BLOCK, b"\0")
        self._inner = block.translate(_INNER_PAD)
        self._outer = block.translate(_OUTER_PAD)

    def digest(self, data: bytes) -> bytes:
        return blake2s(self._outer + blake2s(self._inner + data).digest()).digest()


def kdf1(key: bytes, data: bytes) -> bytes:
    return _Hmac(_Hmac(key).digest(data)).digest(b"\x01")


def kdf2(key: bytes, data: bytes) -> tuple[bytes, bytes]:
    keyed = _Hmac(_Hmac(key).digest(data))
    first = keyed.digest(b"\x01")
    return first, keyed.digest(first + b"\x02")


def kdf3(key: bytes, data: bytes) -> tuple[bytes, bytes, bytes]:
    keyed = _Hmac(_Hmac(key).digest(data))
    first = keyed.digest(b"\x01")
    second = keyed.digest(first + b"\x02")
    return first, second, keyed.digest(second + b"\x03")


def derive_keys(key: bytes) -> tuple[bytearray, bytearray]:
    """Return `kdf2(key, b"")` in buffers that can be wiped.

    These two keys outlive the handshake, and immutable copies would stay in freed memory until it happens to be reused.
    """
    both = bytearray(64)
    HKDF(_BLAKE2S, 64, key, b"").derive_into(b"", both)
    first, second = both[:32], both[32:]
    # The library leaves the second key on its stack; deriving from a zero key overwrites the same bytes.
    HKDF(_BLAKE2S, 64, _ZERO_KEY, b"").derive_into(b"", both)
    wipe(both)
    return first, second


def wipe(secret: bytes | bytearray) -> None:
    """Overwrite a mutable secret in place. Immutable bytes cannot be wiped."""
    if isinstance(secret, bytearray):
        secret[:] = bytes(len(secret))


def seal_handshake(key: bytes, plaintext: bytes, ad: bytes) -> bytes:
    """Seal by ChaCha20-Poly1305 (RFC 8439) with nonce 0, because each handshake key seals once."""
    return ChaCha20Poly1305(key).encrypt(_ZERO_NONCE, plaintext, ad)


def open_handshake(key: bytes, ciphertext: bytes, ad: bytes) -> bytes:
    """Open the result of `seal_handshake`. Raises InvalidTag."""
    return ChaCha20Poly1305(key).decrypt(_ZERO_NONCE, ciphertext, ad)


def hchacha20(key: bytes, nonce: bytes) -> bytes:
    """Return the 32-byte subkey of a 32-byte key and a 16-byte nonce."""
    encryptor = Cipher(algorithms.ChaCha20(key, nonce), mode=None).encryptor()
    block = struct.unpack("<16I", encryptor.update(bytes(64)))
    inputs = struct.unpack("<4I", nonce)
    first = [(word - constant) & 0xFFFFFFFF for word, constant in zip(block[:4], _CHACHA_CONSTANTS, strict=True)]
    last = [(word - given) & 0xFFFFFFFF for word, given in zip(block[12:], inputs, strict=True)]
    return struct.pack("<8I", *first, *last)


def xseal(key: bytes, nonce: bytes, plaintext: bytes, ad: bytes) -> bytes:
    """Seal by XChaCha20-Poly1305 with a 24-byte nonce (draft-irtf-cfrg-xchacha-03)."""
    subkey = hchacha20(key, nonce[:16])
    return ChaCha20Poly1305(subkey).encrypt(bytes(4) + nonce[16:], plaintext, ad)


def xopen(key: bytes, nonce: bytes, ciphertext: bytes, ad: bytes) -> bytes:
    """Open the result of `xseal`. Raises InvalidTag."""
    subkey = hchacha20(key, nonce[:16])
    return ChaCha20Poly1305(subkey).decrypt(bytes(4) + nonce[16:], ciphertext, ad)


def library_text() -> str:
    """Return a text that names the library of Curve25519 and the AEADs, and its version of OpenSSL."""
    # Imported here, because it takes 8 ms, and only diagnosis needs it.
    from cryptography.hazmat.backends.openssl import backend

    return f"cryptography {cryptography.__version__} with {backend.openssl_version_text()}"

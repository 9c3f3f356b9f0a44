"""The three kinds of 32-byte keys, which compare in constant time. Their `repr` shows at most the first characters.

Text forms are those of wg(8): base64 in files and on screens, hex in the UAPI.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from typing import Self

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

KEY_SIZE = 32


class Key:
    """A key of 32 bytes. Keys of different subclasses never compare equal, so kinds cannot be confused."""

    __slots__ = ("_raw",)

    def __init__(self, raw: bytes) -> None:
        if len(raw) != KEY_SIZE:
            raise ValueError(f"a key is {KEY_SIZE} bytes long, not {len(raw)}")
        self._raw = bytes(raw)

    @classmethod
    def from_hex(cls, text: str) -> Self:
        """Parse 64 hexadecimal digits of either case. Raises ValueError, whose message does not repeat the text."""
        try:
            raw = binascii.unhexlify(text)
        except ValueError:
            raise ValueError("a key is 64 hexadecimal digits") from None
        return cls(raw)

    @classmethod
    def from_base64(cls, text: str) -> Self:
        """Parse 44 characters as printed by `wg genkey`. Raises ValueError, whose message does not repeat the text."""
        try:
            raw = base64.b64decode(text, validate=True)
        except ValueError:
            raw = b""
        if len(raw) != KEY_SIZE or base64.b64encode(raw).decode() != text:
            raise ValueError("a key is 44 characters of base64, as `wg genkey` prints it")
        return cls(raw)

    @property
    def raw(self) -> bytes:
        return self._raw

    @property
    def is_zero(self) -> bool:
        return hmac.compare_digest(self._raw, bytes(KEY_SIZE))

    def hex(self) -> str:
        return self._raw.hex()

    def base64(self) -> str:
        return base64.b64encode(self._raw).decode()

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return hmac.compare_digest(self._raw, other._raw)

    def __hash__(self) -> int:
        return hash(self._raw)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(hidden)"

    __str__ = __repr__

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError(f"cannot pickle {type(self).__name__}: keys leave a process only explicitly (use `raw`)")


class PublicKey(Key):
    __slots__ = ()

    def __repr__(self) -> str:
        return f"PublicKey({self.base64()[:4]}…)"

    __str__ = __repr__


class PresharedKey(Key):
    """A preshared key. An all-zero key means that there is none, and is mixed in like any other (whitepaper 5.2)."""

    __slots__ = ()


class PrivateKey(Key):
    """A private key, clamped on creation like in wg(8) (RFC 7748 section 5).

    An all-zero key means none and stays zero.
    """

    __slots__ = ("_exchange", "_public")

    def __init__(self, raw: bytes) -> None:
        super().__init__(raw)
        self._exchange: X25519PrivateKey | None = None
        self._public: PublicKey | None = None
        if not self.is_zero:
            self._raw = clamp(self._raw)

    @property
    def exchange_key(self) -> X25519PrivateKey:
        """The key in the library's form, made once because importing a key costs as much as an exchange."""
        if self._exchange is None:
            self._exchange = X25519PrivateKey.from_private_bytes(self._raw)
        return self._exchange

    def public_key(self) -> PublicKey:
        if self._public is None:
            self._public = PublicKey(self.exchange_key.public_key().public_bytes_raw())
        return self._public


def clamp(raw: bytes) -> bytes:
    return bytes((raw[0] & 248,)) + raw[1:31] + bytes((raw[31] & 127 | 64,))

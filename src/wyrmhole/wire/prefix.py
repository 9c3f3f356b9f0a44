"""An IP prefix as a small value: the unit of AllowedIPs."""

from __future__ import annotations

import ipaddress
from typing import NamedTuple


class Prefix(NamedTuple):
    """An IP prefix. `network` is the address as an integer with its host bits cleared; `length` is 0..32 or 0..128."""

    version: int
    network: int
    length: int

    @classmethod
    def parse(cls, text: str) -> Prefix:
        """Parse `address/length`, masking host bits like wg(8). Raises ValueError, also if `/length` is missing."""
        address_text, slash, length_text = text.partition("/")
        if not slash or not (length_text.isascii() and length_text.isdigit()):
            raise ValueError(f"allowed ip {text!r} is not address/length")
        address, length = ipaddress.ip_address(address_text), int(length_text)
        bits = address.max_prefixlen
        if length > bits or "%" in address_text:
            raise ValueError(f"allowed ip {text!r} is not address/length")
        return cls(address.version, int(address) >> (bits - length) << (bits - length), length)

    @property
    def bits(self) -> int:
        return 32 if self.version == 4 else 128

    @property
    def network_bytes(self) -> bytes:
        """The network address as 4 or 16 bytes in network order."""
        return self.network.to_bytes(self.bits // 8, "big")

    def emit(self) -> str:
        address: ipaddress.IPv4Address | ipaddress.IPv6Address
        address = ipaddress.IPv4Address(self.network) if self.version == 4 else ipaddress.IPv6Address(self.network)
        return f"{address}/{self.length}"

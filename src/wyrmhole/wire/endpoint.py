"""A peer's UDP address as a value, in the text form of the UAPI (`1.2.3.4:51820`, `[fe80::1%3]:51820`)."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

SockAddr = tuple[str, int] | tuple[str, int, int, int]
"""An address of `socket.recvmsg` and `socket.sendmsg`: (host, port) or (host, port, flowinfo, scope id)."""

MAX_PORT = 65_535
_MAX_SCOPE_ID = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A numeric host, a port 0..65535, and for link-local IPv6 the interface index as `scope_id`."""

    host: str
    port: int
    scope_id: int = 0

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """Parse `ip:port` or `[ip6]:port`, with an optional numeric `%scope`. Names are not resolved.

        An IPv4-mapped IPv6 address becomes the IPv4 address, to which the kernel would send. Raises ValueError.
        """
        host, separator, port_text = text.rpartition(":")
        if not separator or not (port_text.isascii() and port_text.isdigit()) or int(port_text) > MAX_PORT:
            raise ValueError(f"endpoint {text!r} is not ip:port or [ip6]:port")
        bracketed = host.startswith("[") and host.endswith("]")
        address = ipaddress.ip_address(host[1:-1] if bracketed else host)
        if bracketed != (address.version == 6):
            raise ValueError(
                f"endpoint {text!r}: brackets are required around an IPv6 address and not allowed around IPv4"
            )
        return cls.from_address(address, int(port_text))

    @classmethod
    def from_address(cls, address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> Endpoint:
        if isinstance(address, ipaddress.IPv4Address):
            return cls(str(address), port)
        if address.ipv4_mapped is not None:
            return cls(str(address.ipv4_mapped), port)
        scope = address.scope_id or "0"
        if not (scope.isascii() and scope.isdigit()) or int(scope) > _MAX_SCOPE_ID:
            raise ValueError(f"scope {scope!r} is not an interface index")
        return cls(str(address).partition("%")[0], port, int(scope))

    @classmethod
    def from_sockaddr(cls, sockaddr: SockAddr) -> Endpoint:
        host = sockaddr[0].partition("%")[0]
        return cls(host, sockaddr[1], sockaddr[3] if len(sockaddr) == 4 else 0)

    @property
    def is_v6(self) -> bool:
        return ":" in self.host

    @property
    def sockaddr(self) -> SockAddr:
        return (self.host, self.port, 0, self.scope_id) if self.is_v6 else (self.host, self.port)

    @property
    def address_bytes(self) -> bytes:
        """The address as 4 or 16 bytes in network order: the key of cookies and of the rate limiter."""
        return ipaddress.ip_address(self.host).packed

    def emit(self) -> str:
        if not self.is_v6:
            return f"{self.host}:{self.port}"
        scope = f"%{self.scope_id}" if self.scope_id else ""
        return f"[{self.host}{scope}]:{self.port}"

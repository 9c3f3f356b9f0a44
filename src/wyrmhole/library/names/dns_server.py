"""A client for one name server inside a tunnel.

Each question is sent by UDP from its own connected socket. So the kernel drops datagrams from other hosts, and reports
a closed port or a missing route at once (IP_RECVERR). The question is repeated until the caller gives up, and any
answer counts, also a late one. Faults of a server are worked around and remembered for `MEMORY` seconds:

- EDNS that is answered with an error, or not at all: the question is sent without it.
- A truncated answer without TCP: UDP with a larger size is tried, then the part that arrived is used.
- A referral to other servers instead of an answer (a lame delegation): the server counts as failed for this question.

Nothing here reads the wall clock: the times of asyncio and of the caller do not jump.
"""

from __future__ import annotations

import asyncio
import inspect
import socket
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import TypeAlias

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype

from wyrmhole.library.common.socket_address import SocketAddress
from wyrmhole.library.names.failures import ServerFailed
from wyrmhole.wire.ip import MAX_PACKET_SIZE

OpenSocket: TypeAlias = Callable[[int, int], socket.socket | Awaitable[socket.socket]]
"""Takes family and type, and returns a socket inside the tunnel. Raises OSError."""

PAYLOAD, LARGE_PAYLOAD = 1232, 4096
"""Size of a UDP answer in bytes: one that fits every path without fragments (DNS flag day 2020), and one that may be
fragmented."""
MEMORY = 600.0
TCP_SECONDS = 2.0
GROWTH = 1.5
"""Factor from one wait for an answer to the next."""
LARGEST = MAX_PACKET_SIZE
RECVERR = {socket.AF_INET: (socket.IPPROTO_IP, 11), socket.AF_INET6: (socket.IPPROTO_IPV6, 25)}
EDNS_REFUSALS = frozenset({dns.rcode.FORMERR, dns.rcode.NOTIMP, dns.rcode.BADVERS})


@dataclass(eq=False, slots=True)
class NameServer:
    """A name server and its known faults. `clock` returns monotonic seconds."""

    address: str
    port: int
    clock: Callable[[], float]
    _no_edns_until: float = field(default=0.0, repr=False)
    _no_tcp_until: float = field(default=0.0, repr=False)
    failing_until: float = field(default=0.0, repr=False)
    """Until then, other servers are asked first."""

    @property
    def is_failing(self) -> bool:
        return self.failing_until > self.clock()

    async def ask(
        self, name: dns.name.Name, kind: str, open_socket: OpenSocket, attempt: float
    ) -> dns.message.QueryMessage:
        """Return an answer with NOERROR or NXDOMAIN; the caller limits the wait. Raises ServerFailed."""
        question = Question(self, name, kind, open_socket)
        try:
            return await question.answer(attempt)
        except OSError as error:
            raise ServerFailed(f"{self.address}: {error.strerror or error}") from error

    @property
    def has_edns(self) -> bool:
        return self._no_edns_until <= self.clock()

    @property
    def has_tcp(self) -> bool:
        return self._no_tcp_until <= self.clock()

    def mark_without_edns(self) -> None:
        self._no_edns_until = self.clock() + MEMORY

    def mark_without_tcp(self) -> None:
        self._no_tcp_until = self.clock() + MEMORY

    @property
    def socket_address(self) -> tuple[int, SocketAddress]:
        host, _, scope = self.address.partition("%")
        if ":" in host:
            return socket.AF_INET6, (host, self.port, 0, int(scope) if scope.isdigit() else 0)
        return socket.AF_INET, (host, self.port)


class Question:
    """A question to a server."""

    def __init__(self, server: NameServer, name: dns.name.Name, kind: str, open_socket: OpenSocket) -> None:
        self._server = server
        self._open_socket = open_socket
        self._query = dns.message.make_query(name, kind)
        self._payload = PAYLOAD
        self._has_edns = server.has_edns
        self._partial: dns.message.QueryMessage | None = None

    async def answer(self, attempt: float) -> dns.message.QueryMessage:
        """Ask until there is a usable answer. Raises ServerFailed, OSError."""
        with closing(await self._open(socket.SOCK_DGRAM)) as sock:
            family, address = self._server.socket_address
            sock.setsockopt(*RECVERR[socket.AddressFamily(family)], 1)
            sock.connect(address)
            while True:
                received = await self._ask_udp(sock, attempt)
                response = await self._complete(received) if received.flags & dns.flags.TC else received
                if response is not None and (usable := self._judge(response)) is not None:
                    return usable

    async def _ask_udp(self, sock: socket.socket, attempt: float) -> dns.message.QueryMessage:
        """Send the question until an answer arrives. Repeat it without EDNS, because some paths drop EDNS."""
        sent = 0
        while True:
            if sent == 1 and self._has_edns:
                self._has_edns = False
            await asyncio.get_running_loop().sock_sendall(sock, self._wire())
            sent += 1
            try:
                async with asyncio.timeout(attempt):
                    response = await self._receive(sock)
            except TimeoutError:
                attempt *= GROWTH
                continue
            if sent > 1 and response.edns < 0:
                self._server.mark_without_edns()
            return response

    async def _receive(self, sock: socket.socket) -> dns.message.QueryMessage:
        """Return the next datagram that answers the question."""
        while True:
            data = await asyncio.get_running_loop().sock_recv(sock, LARGEST)
            if (response := self._parse(data)) is not None:
                return response

    def _parse(self, data: bytes) -> dns.message.QueryMessage | None:
        try:
            response = dns.message.from_wire(data, ignore_trailing=True)
        except dns.exception.DNSException:
            return None
        is_answer = isinstance(response, dns.message.QueryMessage) and self._query.is_response(response)
        return response if is_answer and isinstance(response, dns.message.QueryMessage) else None

    def _wire(self) -> bytes:
        self._query.use_edns(0 if self._has_edns else False, 0, self._payload)
        return bytes(self._query.to_wire())

    def _judge(self, response: dns.message.QueryMessage) -> dns.message.QueryMessage | None:
        """Return a usable answer, or None to ask again with other options. Raises ServerFailed."""
        rcode = response.rcode()
        if rcode in EDNS_REFUSALS and self._has_edns:
            self._has_edns = False
            self._server.mark_without_edns()
            return None
        if rcode not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
            raise ServerFailed(f"{self._server.address}: {dns.rcode.to_text(rcode)}")
        if rcode == dns.rcode.NOERROR and is_referral(response):
            raise ServerFailed(f"{self._server.address}: a referral to other servers instead of an answer")
        return response

    async def _complete(self, truncated: dns.message.QueryMessage) -> dns.message.QueryMessage | None:
        """Return the complete form of a truncated answer, or None to ask for a larger one by UDP.

        Raises ServerFailed.
        """
        if truncated.answer:
            self._partial = truncated
        reason = "it does not answer by TCP"
        if self._server.has_tcp:
            try:
                async with asyncio.timeout(TCP_SECONDS):
                    return await self._ask_tcp()
            except (OSError, EOFError) as error:
                self._server.mark_without_tcp()
                reason = f"TCP failed: {getattr(error, 'strerror', None) or error or 'no answer'}"
        if self._has_edns and self._payload < LARGE_PAYLOAD:
            self._payload = LARGE_PAYLOAD
            return None
        if self._partial is None:
            raise ServerFailed(f"{self._server.address}: the answer is truncated, and {reason}")
        return self._partial

    async def _ask_tcp(self) -> dns.message.QueryMessage:
        """Ask by TCP. Raises OSError, EOFError."""
        loop = asyncio.get_running_loop()
        with closing(await self._open(socket.SOCK_STREAM)) as sock:
            await loop.sock_connect(sock, self._server.socket_address[1])
            wire = self._wire()
            await loop.sock_sendall(sock, len(wire).to_bytes(2) + wire)
            size = int.from_bytes(await receive_exactly(sock, 2))
            response = self._parse(await receive_exactly(sock, size))
        if response is None:
            raise EOFError("the answer does not match the question")
        return response

    async def _open(self, kind: int) -> socket.socket:
        result = self._open_socket(self._server.socket_address[0], kind)
        sock = await result if inspect.isawaitable(result) else result
        sock.setblocking(False)
        return sock


def is_referral(response: dns.message.QueryMessage) -> bool:
    """Report whether a response names other servers instead of an answer (RFC 2308, 2.2).

    From a resolver, it is a failure.
    """
    kinds = {rrset.rdtype for rrset in response.authority}
    return not response.answer and dns.rdatatype.NS in kinds and dns.rdatatype.SOA not in kinds


async def receive_exactly(sock: socket.socket, size: int) -> bytes:
    """Receive `size` bytes. Raises OSError, EOFError."""
    data = b""
    while len(data) < size:
        part = await asyncio.get_running_loop().sock_recv(sock, size - len(data))
        if not part:
            raise EOFError("the server closed the connection")
        data += part
    return data

"""A name server for tests: UDP and TCP on one port, records from a table, and misbehaviour on demand."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rrset

Records = dict[tuple[str, str], list[str]]
"""(name without its last dot, type) to the data of the records."""


class NameServer(asyncio.DatagramProtocol):
    """`asked` lists the questions in order, as ("udp", name, type)."""

    def __init__(self, records: Records, ttl: int = 60) -> None:
        self.records = records
        self.ttl = ttl
        self.asked: list[tuple[str, str, str]] = []
        self.truncates = False
        self.has_tcp = True
        self.silent = 0
        self.rcode: dns.rcode.Rcode | None = None
        self.soa = True
        self.rcodes: dict[str, dns.rcode.Rcode] = {}
        """Response codes by record type, sent instead of an answer."""
        self.mute: set[str] = set()
        """Record types whose questions are ignored."""
        self.edns = "answered"
        """Otherwise `refused` or `swallowed`."""
        self.refers = False
        self.follows_aliases = True
        self.partial = False
        """Whether a truncated answer still holds some records."""
        self.largest = 65535
        """With `truncates`, a question that allows this size in bytes is answered in full."""
        self.answering = asyncio.Event()
        self.answering.set()
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        task = asyncio.ensure_future(self._by_udp(data, addr))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _by_udp(self, data: bytes, addr: Any) -> None:
        answer = self.answer("udp", data)
        await self.answering.wait()
        query = dns.message.from_wire(data)
        is_mute = query.question[0].rdtype.name in self.mute or (self.edns == "swallowed" and query.edns >= 0)
        if is_mute:
            return
        if self.silent:
            self.silent -= 1
        else:
            self.transport.sendto(answer, addr)

    async def by_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.has_tcp:
            writer.transport.abort()
            return
        size = int.from_bytes(await reader.readexactly(2))
        answer = self.answer("tcp", await reader.readexactly(size))
        writer.write(len(answer).to_bytes(2) + answer)
        await writer.drain()
        writer.close()

    def answer(self, how: str, data: bytes) -> bytes:
        query = dns.message.from_wire(data)
        question = query.question[0]
        name, kind = question.name.to_text(omit_final_dot=True), question.rdtype.name
        self.asked.append((how, name, kind))
        response = dns.message.make_response(query)
        if self.rcode is not None:
            response.set_rcode(self.rcode)
        elif self.edns == "refused" and query.edns >= 0:
            response.set_rcode(dns.rcode.FORMERR)
        elif kind in self.rcodes:
            response.set_rcode(self.rcodes[kind])
        elif self.refers:
            response.authority.append(dns.rrset.from_text(".", 60, "IN", "NS", "a.root-servers.net."))
        elif how == "udp" and self.truncates and query.payload <= self.largest:
            response.flags |= dns.flags.TC
            if self.partial:
                self._fill(response, name, kind)
        else:
            self._fill(response, name, kind)
        return response.to_wire()

    def _fill(self, response: dns.message.Message, name: str, kind: str) -> None:
        alias = self.records.get((name, "CNAME"))
        if alias is not None:
            response.answer.append(dns.rrset.from_text_list(f"{name}.", self.ttl, "IN", "CNAME", alias))
            if not self.follows_aliases:
                return
            name = alias[0].rstrip(".")
        found = self.records.get((name, kind))
        if found is not None:
            response.answer.append(dns.rrset.from_text_list(f"{name}.", self.ttl, "IN", kind, found))
            return
        if not any(known == name for known, _ in self.records):
            response.set_rcode(dns.rcode.NXDOMAIN)
        if self.soa:
            soa = f"ns.internal. root.internal. 1 2 3 4 {self.ttl}"
            response.authority.append(dns.rrset.from_text("internal.", self.ttl, "IN", "SOA", soa))


@asynccontextmanager
async def name_server(
    records: Records, ttl: int = 60, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[tuple[NameServer, int]]:
    """Run the server, and yield it with its port."""
    server = NameServer(records, ttl)
    listening = await asyncio.start_server(server.by_tcp, host, port)
    port = listening.sockets[0].getsockname()[1]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: server, (host, port), family=family
    )
    try:
        yield server, port
    finally:
        transport.close()
        listening.close()

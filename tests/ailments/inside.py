"""The servers behind the peer: `python -m tests.ailments.inside ADDRESS [silent|refused|closed]`.

The last word says how its name server misbehaves.
"""

from __future__ import annotations

import asyncio
import socket
import sys

import dns.rcode

from tests.library.names.name_server import NameServer

RECORDS = {("web.internal", "A"): ["10.77.0.2"]}


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readline()
    writer.write(b"HTTP/1.0 200 OK\r\n\r\nhello")
    writer.close()


def bound(kind: int, address: str, port: int) -> socket.socket:
    """Return a socket bound to the address, which need not exist yet."""
    sock = socket.socket(socket.AF_INET, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.IPPROTO_IP, 15, 1)  # IP_FREEBIND
    sock.bind((address, port))
    return sock


async def main(address: str, *manners: str) -> None:
    names = NameServer(RECORDS)
    if "silent" in manners:
        names.silent = 1_000_000
    if "refused" in manners:
        names.rcode = dns.rcode.REFUSED
    await asyncio.start_server(answer, sock=bound(socket.SOCK_STREAM, address, 80))
    if "closed" not in manners:
        loop = asyncio.get_running_loop()
        await loop.create_datagram_endpoint(lambda: names, sock=bound(socket.SOCK_DGRAM, address, 53))
        await asyncio.start_server(names.by_tcp, sock=bound(socket.SOCK_STREAM, address, 53))
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

"""An HTTP client of the proxy: CONNECT, and plain requests fetched for it, one after the other.

How it works. Two h11 state machines, the server's towards the client and the client's towards the server behind us,
and two directions at once: a server may answer before it has the whole request, and a client may wait for `100
Continue` before it sends one. Each piece is sent before the next is read, so that back-pressure goes through. The
connection to the server is kept for the next request to the same place. What h11 cannot parse ends here, and is not
passed on for somebody else to read in another way.
"""

from __future__ import annotations

import asyncio
import http
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import TypeAlias

import h11

from wyrmhole.library.http_proxy import (
    HttpError,
    Target,
    authorized,
    error_headers,
    request_headers,
    response_headers,
    target_of,
)
from wyrmhole.library.service import Limits, reason_of
from wyrmhole.library.splice import prepare, splice

log = logging.getLogger(__name__)

CHUNK = 1 << 16
LONGEST_HEAD = 1 << 16
"""Bytes of a request's or an answer's first line and fields: twice of what common servers take."""

Connect: TypeAlias = Callable[[str, int], Awaitable[socket.socket]]


class Wire:
    """A socket and the h11 connection that speaks on it."""

    def __init__(self, sock: socket.socket, role: type[h11.CLIENT] | type[h11.SERVER], first: bytes = b"") -> None:
        prepare(sock)
        self.sock = sock
        self.http = h11.Connection(role, max_incomplete_event_size=LONGEST_HEAD)
        self._loop = asyncio.get_running_loop()
        if first:
            self.http.receive_data(first)

    async def receive(self) -> h11.Event | type[h11.PAUSED]:
        """Raises h11.RemoteProtocolError, OSError."""
        while (event := self.http.next_event()) is h11.NEED_DATA:
            self.http.receive_data(await self._loop.sock_recv(self.sock, CHUNK))
        assert event is not h11.NEED_DATA
        return event  # type: ignore[return-value]

    async def send(self, event: h11.Event) -> None:
        data = self.http.send(event)
        if data:
            await self._loop.sock_sendall(self.sock, data)

    @property
    def kept(self) -> bool:
        """Whether the connection can carry another request."""
        return self.http.our_state is h11.DONE and self.http.their_state is h11.DONE

    def close(self) -> None:
        self.sock.close()


class HttpClient:
    """`first` is what already came from the client. `connect` makes connections inside the tunnel."""

    def __init__(
        self, sock: socket.socket, first: bytes, connect: Connect, users: Mapping[str, str] | None, limits: Limits
    ) -> None:
        self._client = Wire(sock, h11.SERVER, first)
        self._connect = connect
        self._users = users
        self._limits = limits
        self._upstream: Wire | None = None
        self._place: tuple[str, int] | None = None

    async def run(self) -> None:
        """Until the client ends, or a request leaves no other way. Raises OSError when the client broke off."""
        patience = self._limits.greeting
        try:
            while await self._one(patience):
                self._client.http.start_next_cycle()
                patience = self._limits.keep_alive
        finally:
            self._close_upstream()
            self._client.close()

    async def _one(self, patience: float) -> bool:
        """One request; whether another may follow."""
        try:
            async with asyncio.timeout(patience):
                request = await self._client.receive()
            if not isinstance(request, h11.Request):
                return False
            return await self._answer(request)
        except HttpError as error:
            await self._refuse(error.status, str(error))
        except h11.RemoteProtocolError as error:
            await self._refuse(error.error_status_hint or 400, f"this is no HTTP request: {error}")
        except TimeoutError:
            if self._client.http.trailing_data[0]:
                await self._refuse(408, f"the request was not complete within {patience:g} s")
        return False

    async def _answer(self, request: h11.Request) -> bool:
        if not authorized(request.headers, self._users):
            raise HttpError(407, "this proxy wants a user and a password")
        target = target_of(request.method, request.target)
        if target.path is None:
            await self._tunnel(target)
            return False
        upstream = await self._reach(target)
        await self._exchange(request, target, upstream)
        if not upstream.kept:
            self._close_upstream()
        return self._client.kept

    async def _tunnel(self, target: Target) -> None:
        """CONNECT: after 200 there are only bytes."""
        upstream = await self._open(target)
        try:
            while await self._client.receive() is not h11.PAUSED:
                pass
            await self._client.send(h11.Response(status_code=200, headers=[], reason=b"Connection established"))
        except BaseException:
            upstream.close()
            raise
        await splice(self._client.sock, upstream, first=self._client.http.trailing_data[0])

    async def _reach(self, target: Target) -> Wire:
        """A connection to the target: the one that is there, or a new one."""
        same_place = self._place == (target.host, target.port)
        if self._upstream is not None and same_place and is_open(self._upstream.sock):
            self._upstream.http.start_next_cycle()
            return self._upstream
        self._close_upstream()
        self._upstream = Wire(await self._open(target), h11.CLIENT)
        self._place = target.host, target.port
        return self._upstream

    async def _open(self, target: Target) -> socket.socket:
        """Raises HttpError: 502 or 504, with the reason."""
        try:
            return await self._connect(target.host, target.port)
        except TimeoutError as error:
            raise HttpError(504, f"{target.authority.decode()}: {reason_of(error)}") from None
        except OSError as error:
            raise HttpError(502, f"{target.authority.decode()}: {reason_of(error)}") from None

    async def _exchange(self, request: h11.Request, target: Target, upstream: Wire) -> None:
        """The request up and the answer down. When the answer ends first, the rest of the request is not waited for."""
        assert target.path is not None
        fields = request_headers(request.headers, target, request.http_version)
        try:
            await upstream.send(h11.Request(method=request.method, target=target.path, headers=fields))
            up = asyncio.ensure_future(self._send_body(upstream))
            try:
                await self._relay_answer(upstream)
            finally:
                up.cancel()
                with suppress(asyncio.CancelledError, OSError, h11.ProtocolError):
                    await up
        except (h11.RemoteProtocolError, h11.LocalProtocolError, ConnectionError, EOFError) as error:
            self._close_upstream()
            if self._client.http.our_state is not h11.SEND_RESPONSE:
                raise ConnectionResetError(f"{target.authority.decode()} broke off: {error}") from error
            raise HttpError(502, f"{target.authority.decode()} gave no answer that can be read: {error}") from error

    async def _send_body(self, upstream: Wire) -> None:
        while True:
            event = await self._client.receive()
            if isinstance(event, h11.Data | h11.EndOfMessage):
                await upstream.send(event)
            if not isinstance(event, h11.Data):
                return

    async def _relay_answer(self, upstream: Wire) -> None:
        while True:
            event = await upstream.receive()
            if isinstance(event, h11.InformationalResponse):
                if event.status_code != http.HTTPStatus.SWITCHING_PROTOCOLS:
                    await self._client.send(event)
            elif isinstance(event, h11.Response):
                fields = response_headers(event.headers, event.http_version)
                await self._client.send(
                    h11.Response(status_code=event.status_code, headers=fields, reason=event.reason)
                )
            elif isinstance(event, h11.Data):
                await self._client.send(h11.Data(data=event.data))
            elif isinstance(event, h11.EndOfMessage):
                await self._client.send(h11.EndOfMessage(headers=event.headers))
                return
            else:
                raise EOFError("it closed the connection")

    async def _refuse(self, status: int, reason: str) -> None:
        """Answer here, as far as an answer was not begun."""
        log.debug("a request was refused with %d: %s", status, reason)
        if self._client.http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        body = f"{reason}\n".encode()
        phrase = http.HTTPStatus(status).phrase.encode()
        with suppress(OSError, h11.LocalProtocolError):
            await self._client.send(
                h11.Response(status_code=status, headers=error_headers(status, body), reason=phrase)
            )
            await self._client.send(h11.Data(data=body))
            await self._client.send(h11.EndOfMessage())
            await drain(self._client.sock)

    def _close_upstream(self) -> None:
        if self._upstream is not None:
            self._upstream.close()
        self._upstream = None


def is_open(sock: socket.socket) -> bool:
    """Whether a connection that should be quiet is still so: neither ended nor spoken on."""
    try:
        sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


DRAIN = 1 << 20
PATIENCE = 2.0


async def drain(sock: socket.socket) -> None:
    """Read what the client still sends, for a while: closing over unread bytes is a reset, and takes the answer that
    is on its way with it (RFC 9112, 9.6)."""
    with suppress(OSError, TimeoutError):
        sock.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(PATIENCE):
            for _ in range(DRAIN // CHUNK):
                if not await asyncio.get_running_loop().sock_recv(sock, CHUNK):
                    return

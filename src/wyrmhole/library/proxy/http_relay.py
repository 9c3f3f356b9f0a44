"""Serve an HTTP client of the proxy: CONNECT, and plain requests, one after the other.

There are two h11 state machines: in the server role towards the client, and in the client role towards the upstream
server. Both directions run at once, because a server may answer before it has the whole request, and a client may wait
for `100 Continue` before it sends the body. Each piece is sent before the next is read, so that back-pressure passes
through. The connection to the server is kept for the next request to the same address. A message that h11 cannot parse
is refused and never forwarded, because the next parser might read it differently.
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

from wyrmhole.library.proxy.http_head import clean_request, clean_response, take_head
from wyrmhole.library.proxy.http_proxy import (
    HttpError,
    Target,
    authorized,
    check_framing,
    error_headers,
    has_two_lengths,
    request_headers,
    response_headers,
    target_of,
    upgrade_of,
)
from wyrmhole.library.services.service import Limits, reason_of
from wyrmhole.library.services.splice import drain, prepare, splice

log = logging.getLogger(__name__)

CHUNK = 1 << 16
LONGEST_HEAD = 1 << 16
"""Limit in bytes for the head of a message: twice the limit of common servers."""
CLIENT_CHECK_SECONDS = 1.0
"""Interval of the checks whether the client is still connected while the server is silent."""
TCP_CLOSE = 7
"""The state TCP_CLOSE of include/net/tcp_states.h."""

ConnectTo: TypeAlias = Callable[[str, int], Awaitable[socket.socket]]


class Wire:
    """A socket with its h11 connection."""

    def __init__(self, sock: socket.socket, role: type[h11.CLIENT] | type[h11.SERVER], first: bytes = b"") -> None:
        prepare(sock)
        self.sock = sock
        self.http = h11.Connection(role, max_incomplete_event_size=LONGEST_HEAD)
        self._loop = asyncio.get_running_loop()
        self._is_server = role is h11.SERVER
        self._waiting = first
        """Bytes that h11 has not received yet."""
        self._ended = False
        self.is_doubtful = False
        """Whether the end of the other side's message is ambiguous."""

    async def receive(self) -> h11.Event | type[h11.PAUSED]:
        """Return the next event. Raises h11.RemoteProtocolError, OSError."""
        while (event := self.http.next_event()) is h11.NEED_DATA:
            if not self._feed_parser():
                data = await self._loop.sock_recv(self.sock, CHUNK)
                self._waiting += data
                self._ended = not data
        assert event is not h11.NEED_DATA
        return event  # type: ignore[return-value]

    def _feed_parser(self) -> bool:
        """Pass waiting bytes to h11, and a head only when it is complete and corrected.

        Return False if there were none.
        """
        if self.http.their_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return self._pass_on()
        taken = take_head(self._waiting)
        if taken is None:
            return (self._ended or len(self._waiting) > LONGEST_HEAD) and self._pass_on()
        head, self._waiting = taken
        if self._is_server:
            head = clean_request(head)
        else:
            head, left_out = clean_response(head)
            if left_out:
                log.info("removed %d invalid fields from a response", len(left_out))
        self.http.receive_data(head)
        return True

    def _pass_on(self) -> bool:
        if self._waiting:
            self.http.receive_data(self._waiting)
            self._waiting = b""
            return True
        if self._ended:
            self.http.receive_data(b"")
        return self._ended

    @property
    def trailing(self) -> bytes:
        """The bytes after the last message. After CONNECT or an upgrade they are not HTTP."""
        return bytes(self.http.trailing_data[0]) + self._waiting

    @property
    def has_begun(self) -> bool:
        """Whether a part of a message has arrived."""
        return bool(self._waiting or self.http.trailing_data[0])

    async def send(self, event: h11.Event) -> None:
        data = self.http.send(event)
        if data:
            await self._loop.sock_sendall(self.sock, data)

    @property
    def kept(self) -> bool:
        """Whether the connection can carry another request."""
        is_done = self.http.our_state is h11.DONE and self.http.their_state is h11.DONE
        return is_done and not self.is_doubtful

    def close(self) -> None:
        self.sock.close()


class HttpClient:
    """Serves a client. `first` was already received from it; `connect` opens connections inside the tunnel."""

    def __init__(
        self,
        sock: socket.socket,
        first: bytes,
        connect: ConnectTo,
        users: Mapping[str, str] | None,
        limits: Limits,
        prove: Callable[[], None],
        deadline: float,
    ) -> None:
        """`prove` is called when the client is authorized. `deadline` limits the first request, on the loop's clock."""
        self._prove = prove
        self._deadline = deadline
        self._client = Wire(sock, h11.SERVER, first)
        self._connect = connect
        self._users = users
        self._limits = limits
        self._upstream: Wire | None = None
        self._upstream_address: tuple[str, int] | None = None

    async def run(self) -> None:
        """Serve requests until the client disconnects or a request ends the connection.

        Raises OSError for a lost client.
        """
        loop = asyncio.get_running_loop()
        try:
            while await self._serve_request(self._deadline):
                self._client.http.start_next_cycle()
                self._deadline = loop.time() + self._limits.keep_alive
        finally:
            self._close_upstream()
            self._client.close()

    async def _serve_request(self, deadline: float) -> bool:
        """Serve one request. Return whether another may follow."""
        try:
            async with asyncio.timeout_at(deadline):
                request = await self._client.receive()
            if not isinstance(request, h11.Request):
                return False
            return await self._answer(request)
        except HttpError as error:
            await self._refuse(error.status, str(error))
        except h11.RemoteProtocolError as error:
            await self._refuse(error.error_status_hint or 400, f"not a valid HTTP request: {error}")
        except TimeoutError:
            if self._client.has_begun:
                await self._refuse(408, "the request was not completed in time")
        return False

    async def _answer(self, request: h11.Request) -> bool:
        if not authorized(request.headers, self._users):
            raise HttpError(407, "this proxy requires a user and a password")
        self._prove()
        check_framing(request)
        target = target_of(request.method, request.target)
        if target.path is None:
            await self._tunnel(target)
            return False
        upstream = await self._upstream_for(target)
        if await self._exchange(request, target, upstream):
            await self._splice_upgraded(upstream)
            return False
        if not upstream.kept:
            self._close_upstream()
        return self._client.kept

    async def _splice_upgraded(self, upstream: Wire) -> None:
        """Copy bytes after 101, like after CONNECT."""
        if trailing := upstream.trailing:
            await asyncio.get_running_loop().sock_sendall(self._client.sock, trailing)
        self._upstream = None
        await splice(self._client.sock, upstream.sock, first=self._client.trailing)

    async def _tunnel(self, target: Target) -> None:
        """Serve CONNECT: copy bytes after the response 200."""
        upstream = await self._open(target)
        try:
            while await self._client.receive() is not h11.PAUSED:
                pass
            await self._client.send(h11.Response(status_code=200, headers=[], reason=b"Connection established"))
        except BaseException:
            upstream.close()
            raise
        await splice(self._client.sock, upstream, first=self._client.trailing)

    async def _upstream_for(self, target: Target) -> Wire:
        """Return the open connection to the target, or a new one."""
        is_same_address = self._upstream_address == (target.host, target.port)
        if self._upstream is not None and is_same_address and is_open(self._upstream.sock):
            self._upstream.http.start_next_cycle()
            return self._upstream
        self._close_upstream()
        self._upstream = Wire(await self._open(target), h11.CLIENT)
        self._upstream_address = target.host, target.port
        return self._upstream

    async def _open(self, target: Target) -> socket.socket:
        """Connect to the target. Raises HttpError with status 502 or 504 and the reason."""
        try:
            return await self._connect(target.host, target.port)
        except TimeoutError as error:
            raise HttpError(504, f"{target.authority.decode()}: {reason_of(error)}") from None
        except OSError as error:
            raise HttpError(502, f"{target.authority.decode()}: {reason_of(error)}") from None

    async def _exchange(self, request: h11.Request, target: Target, upstream: Wire) -> bool:
        """Forward the request and relay the response. Return whether the protocol was switched.

        If the response ends first, the rest of the request is not awaited.
        """
        assert target.path is not None
        fields = request_headers(request.headers, target, request.http_version)
        try:
            await upstream.send(h11.Request(method=request.method, target=target.path, headers=fields))
            up = asyncio.ensure_future(self._send_body(upstream))
            down = asyncio.ensure_future(self._relay_response(upstream))
            try:
                await self._wait_for_response(up, down)
                return await down
            finally:
                up.cancel()
                down.cancel()
                await asyncio.wait((up, down))
        except (h11.RemoteProtocolError, h11.LocalProtocolError, ConnectionError, EOFError) as error:
            self._close_upstream()
            if self._client.http.our_state is not h11.SEND_RESPONSE:
                raise ConnectionResetError(
                    f"{target.authority.decode()} closed the connection early: {error}"
                ) from error
            raise HttpError(502, f"{target.authority.decode()} gave no valid response: {error}") from error

    async def _wait_for_response(self, up: asyncio.Future[None], down: asyncio.Future[bool]) -> None:
        """Wait until the response has ended. The server may take any time; raises HttpError when the client is gone."""
        while not down.done():
            pending = [task for task in (up, down) if not task.done()]
            await asyncio.wait(pending, timeout=CLIENT_CHECK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if up.done() and isinstance(error := up.exception(), h11.RemoteProtocolError):
                raise HttpError(400, f"the body of the request is invalid: {error}")
            if is_reset(self._client.sock):
                raise HttpError(400, "the client has disconnected")

    async def _send_body(self, upstream: Wire) -> None:
        while True:
            event = await self._client.receive()
            if isinstance(event, h11.Data | h11.EndOfMessage):
                await upstream.send(event)
            if not isinstance(event, h11.Data):
                return

    async def _relay_response(self, upstream: Wire) -> bool:
        """Relay the response. Return whether the server switched to the requested protocol."""
        while True:
            event = await upstream.receive()
            if isinstance(event, h11.InformationalResponse):
                if event.status_code == http.HTTPStatus.SWITCHING_PROTOCOLS:
                    fields = [*response_headers(event.headers, event.http_version), *upgrade_of(event.headers)]
                    await self._client.send(
                        h11.InformationalResponse(status_code=101, headers=fields, reason=event.reason)
                    )
                    return True
                if self._client.http.their_http_version != b"1.0":  # which has no interim responses (RFC 9110, 15.2)
                    await self._client.send(event)
            elif isinstance(event, h11.Response):
                upstream.is_doubtful = has_two_lengths(event.headers)
                fields = response_headers(event.headers, event.http_version)
                await self._client.send(
                    h11.Response(status_code=event.status_code, headers=fields, reason=event.reason)
                )
            elif isinstance(event, h11.Data):
                await self._client.send(h11.Data(data=event.data))
            elif isinstance(event, h11.EndOfMessage):
                await self._client.send(h11.EndOfMessage(headers=event.headers))
                return False
            else:
                raise EOFError("the server closed the connection")

    async def _refuse(self, status: int, reason: str) -> None:
        """Send an error response, unless a response has begun."""
        log.info("refused a request with %d: %s", status, reason)
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


def is_reset(sock: socket.socket) -> bool:
    """Report whether the other end reset the connection or no longer answers keepalives.

    A client that only closed its own direction may still wait for the response.
    """
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == TCP_CLOSE


def is_open(sock: socket.socket) -> bool:
    """Report whether an idle connection is still usable: neither closed nor with unexpected data."""
    try:
        sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False

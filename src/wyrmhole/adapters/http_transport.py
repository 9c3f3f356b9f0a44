"""The common part of the transports for httpx and httpx2, which are one library under two names.

`httpx.py` and `httpx2.py` derive from these classes, add the base classes of their library, and set its modules as
attributes. The `Any` of a request and a response stands for the class of either library.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Protocol, TypeVar

from wyrmhole.adapters import http_core
from wyrmhole.adapters.blocking import BlockingDialer
from wyrmhole.library.services.dialer import Dialer

_Pool = TypeVar("_Pool")


class PoolLimits(Protocol):
    """`httpx.Limits`."""

    @property
    def max_connections(self) -> int | None: ...
    @property
    def max_keepalive_connections(self) -> int | None: ...
    @property
    def keepalive_expiry(self) -> float | None: ...


class CoreResponse(Protocol):
    """`httpcore.Response`."""

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> list[tuple[bytes, bytes]]: ...
    @property
    def stream(self) -> object: ...
    @property
    def extensions(self) -> Mapping[str, object]: ...


class _Transport:
    client: ModuleType
    """The module httpx or httpx2."""
    core: ModuleType
    """The module httpcore or httpcore2."""
    body: Callable[..., http_core.AsyncBody | http_core.BlockingBody]
    """The class of response bodies: one of http_core's that is also a byte stream of `client`."""

    def _make_pool(
        self,
        kind: Callable[..., _Pool],
        backend: http_core.AsyncBackend | http_core.BlockingBackend,
        verify: ssl.SSLContext | bool,
        limits: PoolLimits | None,
        options: Mapping[str, object],
    ) -> _Pool:
        # The defaults of httpx's own transports, which it keeps under a private name.
        limits = limits or self.client.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=5.0)
        return kind(
            ssl_context=self.client.create_ssl_context(verify=verify),
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            network_backend=backend,
            **options,
        )

    def _response(self, answer: CoreResponse) -> Any:
        return self.client.Response(
            answer.status,
            headers=answer.headers,
            stream=self.body(answer.stream, self.client, self.core),
            extensions=answer.extensions,
        )


class AsyncTransport(_Transport):
    """A transport through a tunnel. Names are resolved inside.

    `verify` is True for the usual certificates, or an SSLContext, for example for a private authority. `limits` is the
    library's `Limits`, or None for its defaults. Raises the exceptions of the library.
    """

    def __init__(
        self,
        tunnel: Dialer,
        *,
        verify: ssl.SSLContext | bool = True,
        http1: bool = True,
        http2: bool = False,
        limits: PoolLimits | None = None,
        retries: int = 0,
    ) -> None:
        options = {"http1": http1, "http2": http2, "retries": retries}
        backend = http_core.AsyncBackend(tunnel, self.core)
        self._pool = self._make_pool(self.core.AsyncConnectionPool, backend, verify, limits, options)

    async def handle_async_request(self, request: Any) -> Any:
        with http_core.in_terms_of(self.client, self.core):
            answer = await self._pool.handle_async_request(http_core.core_request(self.core, request))
        return self._response(answer)

    async def aclose(self) -> None:
        await self._pool.aclose()


class BlockingTransport(_Transport):
    """Like `AsyncTransport`, with a tunnel of `wyrmhole.sync.open`."""

    def __init__(
        self,
        tunnel: BlockingDialer,
        *,
        verify: ssl.SSLContext | bool = True,
        http1: bool = True,
        http2: bool = False,
        limits: PoolLimits | None = None,
        retries: int = 0,
    ) -> None:
        options = {"http1": http1, "http2": http2, "retries": retries}
        backend = http_core.BlockingBackend(tunnel, self.core)
        self._pool = self._make_pool(self.core.ConnectionPool, backend, verify, limits, options)

    def handle_request(self, request: Any) -> Any:
        with http_core.in_terms_of(self.client, self.core):
            answer = self._pool.handle_request(http_core.core_request(self.core, request))
        return self._response(answer)

    def close(self) -> None:
        self._pool.close()

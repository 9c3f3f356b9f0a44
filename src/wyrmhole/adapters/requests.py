"""requests through a tunnel.

with wyrmhole.sync.open("wg0.conf") as tunnel, requests.Session() as session:
    mount(session, tunnel)
    page = session.get("https://intranet/")
"""

from __future__ import annotations

import socket
import sys
from typing import Any, NoReturn

from wyrmhole.adapters.blocking import BlockingDialer
from wyrmhole.adapters.extra import needed
from wyrmhole.library.services.service import reason_of

with needed("requests"):
    import requests
    import requests.adapters
    import urllib3
    import urllib3.connection
    import urllib3.exceptions
    from urllib3.poolmanager import PoolManager


def mount(session: requests.Session, tunnel: BlockingDialer) -> None:
    """Send all requests of a session through the tunnel. Proxies in the environment are ignored."""
    session.trust_env = False
    adapter = TunnelAdapter(tunnel)
    session.mount("http://", adapter)
    session.mount("https://", adapter)


class TunnelAdapter(requests.adapters.HTTPAdapter):
    """For `session.mount("https://", ...)`, with a tunnel of `wyrmhole.sync.open`.

    Raises the exceptions of requests: ConnectionError, ConnectTimeout, ReadTimeout, SSLError. Proxies are refused,
    because they are outside the tunnel.
    """

    def __init__(self, tunnel: BlockingDialer, **options: Any) -> None:
        self._tunnel = tunnel
        super().__init__(**options)

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        manager: PoolManager = self.poolmanager
        manager.pool_classes_by_scheme = pools_of(self._tunnel)

    def proxy_manager_for(self, proxy: str, **options: object) -> NoReturn:
        raise requests.exceptions.InvalidProxyURL(f"cannot use the proxy {proxy}: these requests go through a tunnel")


def pools_of(tunnel: BlockingDialer) -> dict[str, type[urllib3.HTTPConnectionPool]]:
    """Return pool classes whose connections use the tunnel. urllib3 expects classes; its SOCKS support works like
    this."""

    class HTTPConnection(TunnelConnection, urllib3.connection.HTTPConnection):
        _tunnel_of_wyrmhole = tunnel

    class HTTPSConnection(TunnelConnection, urllib3.connection.HTTPSConnection):
        _tunnel_of_wyrmhole = tunnel

    class HTTPPool(urllib3.HTTPConnectionPool):
        ConnectionCls = HTTPConnection

    class HTTPSPool(urllib3.HTTPSConnectionPool):
        ConnectionCls = HTTPSConnection

    return {"http": HTTPPool, "https": HTTPSPool}


class TunnelConnection:
    """A mixin for connections of urllib3."""

    _tunnel_of_wyrmhole: BlockingDialer

    def _new_conn(self) -> socket.socket:
        connection: Any = self
        try:
            timeout = urllib3.Timeout.resolve_default_timeout(connection.timeout)
            sock = self._tunnel_of_wyrmhole.create_connection((connection._dns_host, connection.port), timeout=timeout)
        except socket.gaierror as error:
            raise urllib3.exceptions.NameResolutionError(connection.host, connection, error) from error
        except TimeoutError as error:
            raise urllib3.exceptions.ConnectTimeoutError(connection, f"through the tunnel: {error}") from error
        except OSError as error:
            message = f"{connection.host} through the tunnel: {reason_of(error)}"
            raise urllib3.exceptions.NewConnectionError(connection, message) from error
        sys.audit("http.client.connect", connection, connection.host, connection.port)
        for option in connection.socket_options or ():
            sock.setsockopt(*option)
        sock.settimeout(timeout)
        return sock

"""`getaddrinfo` inside a tunnel, which asks the tunnel's name servers and never the host's."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Sequence

from wyrmhole.library.common import arguments
from wyrmhole.library.common.reachability import Reachability
from wyrmhole.library.common.socket_address import AddressInfo
from wyrmhole.library.names import address_info
from wyrmhole.library.names.resolver import Resolver

STREAM = socket.SOCK_STREAM


class TunnelNames:
    """Name resolution for one configuration. A reload makes a new object with an empty cache."""

    def __init__(
        self,
        servers: Sequence[address_info.Address],
        search: Sequence[str],
        families: Sequence[int],
        reachability: Reachability,
        open_socket: Callable[..., Awaitable[socket.socket]],
    ) -> None:
        self._servers = servers
        self._search = search
        self._families = tuple(families)
        self._reachability = reachability
        self._open_socket = open_socket
        self._made: Resolver | None = None

    async def getaddrinfo(
        self, host: str | bytes | None, port: int | str | bytes | None, family: int, type: int, proto: int, flags: int
    ) -> list[AddressInfo]:
        """See `Tunnel.getaddrinfo`."""
        arguments.check_lookup(host, port)
        address_info.check(family, type, flags)
        name, number = address_info.as_host(host), address_info.as_port(port, type, flags)
        if not name:
            wanted = [address_info.ANY[each] for each in self._families if family in (0, each)]
            found = address_info.infos(wanted, number, address_info.kinds_of(type, proto))
        else:
            asked = self._resolver().getaddrinfo(name, number, family=family, type=type, proto=proto, flags=flags)
            try:
                found = await asked
            except socket.gaierror as error:
                raise self._unresolved(error) from None
        return list(address_info.filter_by_service(found, port, flags))

    def is_incomplete(self, host: str) -> bool:
        """Whether addresses of the other family may still arrive."""
        return self._made is not None and self._made.is_incomplete(host)

    async def late_addresses(self, host: str, patience: float) -> list[address_info.Address]:
        """Return all addresses, after waiting up to `patience` seconds for those of the other family."""
        return await self._resolver().addresses(host, complete=True, patience=patience)

    def explain(self) -> str:
        """Explain why a name may not have been resolved."""
        reason = f": {self._reachability.explain_peer_of(self._servers[0])}" if self._servers else ""
        return f"its name was not resolved{reason}"

    def _unresolved(self, error: socket.gaierror) -> socket.gaierror:
        """Return the error, with the reasons if no server could be reached."""
        servers = self._servers if error.errno == socket.EAI_AGAIN else []
        reasons = (self._reachability.no_session(server) for server in servers)
        found = dict.fromkeys(reason for reason in reasons if reason)
        if not found:
            return error
        return socket.gaierror(error.errno, "; ".join([error.strerror or str(error), *found])).with_traceback(
            error.__traceback__
        )

    def _resolver(self) -> Resolver:
        if self._made is None:
            self._made = Resolver(
                self._servers,
                self._open_socket,
                search=self._search,
                families=self._families,
                leads_to=self._reachability.leads_to,
            )
        return self._made

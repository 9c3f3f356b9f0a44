"""Names to addresses, asked of the tunnel's own name servers through the tunnel, and of nobody else.

How it works. Literals and `localhost` are answered here. Any other name becomes a list of candidates by the search
domains and `ndots` of resolv.conf(5); for each candidate A and AAAA are asked at once, and the first candidate with an
address of either family wins, so that the two families never come from two different hosts. dnspython does the rest:
several servers, another try after `attempt` seconds, TCP after a truncated answer, CNAME chains. Answers are kept for
their TTL, also negative ones (`dns_cache.py`). The same question asked twice at once goes out once. Sockets come from
the tunnel (`dns_backend.py`).

Nothing here knows the host's resolver: a tunnel without name servers refuses names.
"""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import socket
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Any, TypeAlias

from wyrmhole.library.dns_cache import DnsCache

if TYPE_CHECKING:
    import dns.name
    import dns.resolver

    from wyrmhole.library.dns_backend import OpenSocket

AddressInfo: TypeAlias = tuple[int, int, int, str, tuple[Any, ...]]
"""What socket.getaddrinfo gives: family, type, protocol, canonical name, socket address."""
Address: TypeAlias = IPv4Address | IPv6Address

RECORDS = {socket.AF_INET6: "AAAA", socket.AF_INET: "A"}
PROTOCOLS = {socket.SOCK_STREAM: socket.IPPROTO_TCP, socket.SOCK_DGRAM: socket.IPPROTO_UDP}
QUESTIONS = 64
"""Names asked at once; others wait. A burst of questions must not use up the program's descriptors."""
LOCALHOST: dict[int, Address] = {socket.AF_INET6: IPv6Address("::1"), socket.AF_INET: IPv4Address("127.0.0.1")}


class Resolver:
    """`servers` are addresses inside the tunnel; `families` those that the tunnel has addresses of, in order of liking.

    `attempt` and `lifetime` are seconds: of one try of one server, and of one candidate name in all.
    """

    def __init__(
        self,
        servers: Sequence[Address | str],
        open_socket: OpenSocket,
        *,
        search: Sequence[str] = (),
        ndots: int = 1,
        families: Sequence[int] = (socket.AF_INET6, socket.AF_INET),
        attempt: float = 2.0,
        lifetime: float = 6.0,
        port: int = 53,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._servers = [str(ipaddress.ip_address(server)) for server in servers]
        self._open_socket = open_socket
        self._search = tuple(search)
        self._ndots = ndots
        self._families = tuple(families)
        self._attempt = attempt
        self._lifetime = lifetime
        self._port = port
        self._cache = DnsCache(clock or (lambda: asyncio.get_running_loop().time()))
        self._turn = asyncio.Semaphore(QUESTIONS)
        self._asked: dict[tuple[str, str], asyncio.Future[dns.resolver.Answer | None]] = {}

    def __repr__(self) -> str:
        return f"<Resolver {', '.join(self._servers) or 'without servers'}>"

    async def getaddrinfo(
        self, host: str, port: int, *, family: int = 0, type: int = socket.SOCK_STREAM
    ) -> list[AddressInfo]:
        """As socket.getaddrinfo, in the order to try: families interleaved (RFC 8305, 4).

        Raises socket.gaierror: EAI_NONAME when there is no such name or nobody to ask, EAI_AGAIN when no server
        answered.
        """
        addresses = await self.addresses(host, family=family)
        return [info(address, port, type) for address in addresses]

    async def addresses(self, host: str, *, family: int = 0) -> list[Address]:
        """The addresses of a name, or of a literal, in the order to try. Raises socket.gaierror."""
        wanted = [family] if family else list(self._families)
        known = literal(host)
        if known is not None:
            return of_family(host, [known], family)
        if is_localhost(host):
            return [LOCALHOST[each] for each in wanted]
        for candidate in self._candidates(host):
            if found := interleave(await self._ask_all(candidate, wanted)):
                return found
        raise no_name(host)

    async def srv(self, name: str) -> list[tuple[str, int]]:
        """Hosts and ports of a service (RFC 2782), in the order to try. Raises socket.gaierror.

        `name` is as `_postgresql._tcp.db.internal`.
        """
        for candidate in self._candidates(name):
            answer = await self._ask(candidate, "SRV")
            if answer is not None and answer.rrset is not None:
                records: list[Any] = answer.rrset.processing_order()
                if [str(record.target) for record in records] == ["."]:
                    break  # RFC 2782: the service is decidedly not available
                return [(record.target.to_text(omit_final_dot=True), record.port) for record in records]
        raise no_name(name)

    def flush(self) -> None:
        """Forget what was answered so far."""
        self._cache.flush()

    def _candidates(self, host: str) -> list[dns.name.Name]:
        """The absolute names to ask for, as resolv.conf(5) says of `search` and `ndots`."""
        if not self._servers:
            raise socket.gaierror(
                socket.EAI_NONAME,
                f"{host!r} is a name and this tunnel has no name server: add DNS = ADDRESS to its configuration, or "
                "use an address",
            )
        dns_name = import_dns().name
        if not host.strip("."):
            raise socket.gaierror(socket.EAI_NONAME, "an empty name has no address")
        try:
            name = dns_name.from_text(host, None)
            domains = [] if name.is_absolute() else [dns_name.from_text(domain) for domain in self._search]
            whole = name if name.is_absolute() else name.concatenate(dns_name.root)
            searched = [name.concatenate(domain) for domain in domains]
        except (dns_name.LabelTooLong, dns_name.NameTooLong, dns_name.EmptyLabel, dns_name.IDNAException) as error:
            raise socket.gaierror(socket.EAI_NONAME, f"{host!r} is no name: {error}") from None
        dots = len(name) - 1
        return [whole, *searched] if dots >= self._ndots else [*searched, whole]

    async def _ask_all(self, name: dns.name.Name, families: Sequence[int]) -> list[list[Address]]:
        """The addresses of each family. One family that failed does not matter while the other has addresses."""
        questions = (self._ask(name, RECORDS[socket.AddressFamily(family)]) for family in families)
        answers = await asyncio.gather(*questions, return_exceptions=True)
        found = [addresses_of(answer) for answer in answers if not isinstance(answer, BaseException)]
        failures = [answer for answer in answers if isinstance(answer, BaseException)]
        if failures and not any(found):
            raise failures[0]
        return found

    async def _ask(self, name: dns.name.Name, kind: str) -> dns.resolver.Answer | None:
        """One question; None when there is no such record. Raises socket.gaierror."""
        key = str(name).lower(), kind
        asked = self._asked.get(key)
        if asked is None:
            asked = self._asked[key] = asyncio.ensure_future(self._ask_servers(name, kind))
            asked.add_done_callback(lambda done: self._forget(key, done))
        # Shielded: one that no longer wants to know must not take the answer from the others.
        return await asyncio.shield(asked)

    def _forget(self, key: tuple[str, str], asked: asyncio.Future[dns.resolver.Answer | None]) -> None:
        self._asked.pop(key, None)
        if not asked.cancelled():
            asked.exception()  # looked at, lest a failure nobody waits for any more is reported as lost

    async def _ask_servers(self, name: dns.name.Name, kind: str) -> dns.resolver.Answer | None:
        library = import_dns()
        async with self._turn:
            try:
                answer: dns.resolver.Answer = await self._client().resolve(
                    name, kind, raise_on_no_answer=False, search=False, backend=self._backend()
                )
                return answer
            except library.resolver.NXDOMAIN:
                return None
            except (library.exception.DNSException, OSError) as error:
                raise socket.gaierror(
                    socket.EAI_AGAIN, f"no name server of the tunnel answered for {name}: {error}"
                ) from error

    def _client(self) -> Any:
        client = import_dns().asyncresolver.Resolver(configure=False)
        client.nameservers = self._servers
        client.port = self._port
        client.timeout = self._attempt
        client.lifetime = self._lifetime
        client.cache = self._cache
        client.use_edns(0, 0, 1232)  # fits every path without fragments (DNS flag day 2020)
        return client

    def _backend(self) -> Any:
        from wyrmhole.library.dns_backend import TunnelBackend

        return TunnelBackend(self._open_socket)


def import_dns() -> Any:
    """dnspython, when the first name is asked for. Raises socket.gaierror that says how to install it."""
    try:
        import dns
        import dns.asyncresolver
    except ImportError:
        message = "names inside a tunnel need dnspython: pip install 'wyrmhole[dns]'"
        raise socket.gaierror(socket.EAI_NONAME, message) from None
    return dns


def literal(host: str) -> Address | None:
    """An address as it is written, with brackets or without, or None for a name."""
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]") if host.startswith("[") else host)
    except ValueError:
        return None


def is_localhost(host: str) -> bool:
    """RFC 6761, 6.3: such names are loopback and never asked for. Loopback here is the tunnel's own."""
    name = host.lower().rstrip(".")
    return name == "localhost" or name.endswith(".localhost")


def family_of(address: Address) -> socket.AddressFamily:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def of_family(host: str, addresses: list[Address], family: int) -> list[Address]:
    found = [address for address in addresses if family in (0, family_of(address))]
    if not found:
        raise socket.gaierror(socket.EAI_ADDRFAMILY, f"{host} is no address of the family asked for")
    return found


def info(address: Address, port: int, type: int) -> AddressInfo:
    family = family_of(address)
    if isinstance(address, IPv4Address):
        return family, type, PROTOCOLS.get(socket.SocketKind(type), 0), "", (str(address), port)
    scope = int(address.scope_id) if address.scope_id and address.scope_id.isdigit() else 0
    host = str(address).partition("%")[0]
    return family, type, PROTOCOLS.get(socket.SocketKind(type), 0), "", (host, port, 0, scope)


def addresses_of(answer: dns.resolver.Answer | None) -> list[Address]:
    return [] if answer is None or answer.rrset is None else [ipaddress.ip_address(str(each)) for each in answer.rrset]


def interleave(families: Sequence[Sequence[Address]]) -> list[Address]:
    """One of each family in turn, so that a family without a way costs one attempt and not all of them."""
    turns = itertools.zip_longest(*families)
    return [address for turn in turns for address in turn if address is not None]


def no_name(host: str) -> socket.gaierror:
    return socket.gaierror(socket.EAI_NONAME, f"the tunnel's name servers know no {host!r}")

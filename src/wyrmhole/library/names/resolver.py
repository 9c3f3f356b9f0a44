"""Resolve names through the tunnel, only with the tunnel's own name servers.

Literals and `localhost` are resolved here. Any other name becomes a list of candidates, by the search domains and
`ndots` of resolv.conf(5). For each candidate, A and AAAA are asked for at once, and the first candidate with an address
of either family wins, so that the two families never belong to different hosts.

Servers may be old, slow or incomplete (`dns_server.py` asks one of them). The first answer wins: if a server has not
answered within `STAGGER`, the next one is asked as well, and a server that was silent while another answered is asked
last for a minute. As soon as one family has addresses, the other has 50 ms left (RFC 8305, 3). A question that is still
open then is not asked again for a minute, unless its answer arrives later.

Positive and negative answers are kept for their TTL (`dns_cache.py`). If several tasks ask the same question at once,
it is sent once. The host's resolver is never used: a tunnel without name servers refuses names.
"""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import socket
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from wyrmhole.errors import how_to_install
from wyrmhole.library.common.descriptors import nofile
from wyrmhole.library.common.socket_address import AddressInfo
from wyrmhole.library.names.address_info import Address, family_of, infos, kinds_of, literal
from wyrmhole.library.names.dns_cache import CAPACITY, DnsCache
from wyrmhole.library.names.failures import ServerFailed, unanswered, unknown_name

if TYPE_CHECKING:
    import dns.message
    import dns.name
    import dns.resolver

    from wyrmhole.library.names.dns_server import NameServer, OpenSocket

_T = TypeVar("_T")

RECORDS = {socket.AF_INET6: "AAAA", socket.AF_INET: "A"}
QUESTIONS = 32
"""Limit of open questions for each record type; further ones wait. A burst of questions must not use up the program's
descriptors, and a type that no server answers must not delay the others."""
RESOLUTION_DELAY = 0.05
"""Seconds to wait for the second family after the first (RFC 8305, 8)."""
STAGGER = 0.4
"""Seconds before the next server is asked as well."""
UNANSWERED = 60.0
"""Seconds for which a question is not repeated, if it had no answer while another question about its name had one."""
FAILING = 60.0
"""Seconds for which a server is asked last, after it was silent while another answered."""
GRACE = 1.0
"""Seconds for which a question continues after its last caller was cancelled, because callers often retry."""
LONGEST_CHAIN = 8
"""Limit of aliases to follow for a server that does not follow them."""
LOCALHOST: dict[int, Address] = {socket.AF_INET6: IPv6Address("::1"), socket.AF_INET: IPv4Address("127.0.0.1")}


class Resolver:
    """Resolves names with the tunnel's name servers.

    `servers` are addresses inside the tunnel. `families` are the families of the tunnel's own addresses, in order of
    preference. `attempt` is the time in seconds before a question is repeated, and `lifetime` the limit for a name.
    `leads_to` reports whether a server can be reached now; by default all can.
    """

    def __init__(
        self,
        servers: Sequence[Address | str],
        open_socket: OpenSocket,
        *,
        search: Sequence[str] = (),
        ndots: int = 1,
        families: Sequence[int] = (socket.AF_INET6, socket.AF_INET),
        attempt: float = 1.0,
        lifetime: float = 4.5,
        port: int = 53,
        clock: Callable[[], float] | None = None,
        leads_to: Callable[[Address], bool] | None = None,
    ) -> None:
        self._addresses = [ipaddress.ip_address(server) for server in servers]
        self._servers: list[NameServer] = []
        self._leads_to = leads_to or (lambda _: True)
        self._open_socket = open_socket
        self._search = tuple(search)
        self._ndots = ndots
        self._families = tuple(families)
        self._attempt = attempt
        self._lifetime = lifetime
        self._port = port
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._cache = DnsCache(self._clock)
        self._question_limits: defaultdict[str, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(most_questions())
        )
        self._open_questions: dict[Question, SharedQuestion] = {}
        self._unanswered: OrderedDict[Question, float] = OrderedDict()
        """The time until which each question is not repeated."""

    def __repr__(self) -> str:
        return f"<Resolver {', '.join(map(str, self._addresses)) or 'without servers'}>"

    async def getaddrinfo(
        self, host: str, port: int, *, family: int = 0, type: int = socket.SOCK_STREAM, proto: int = 0, flags: int = 0
    ) -> list[AddressInfo]:
        """Like socket.getaddrinfo, with families interleaved in the order to try (RFC 8305, 4).

        Raises socket.gaierror: EAI_NONAME if the name does not exist or the tunnel has no server, EAI_AGAIN if no
        server answers.
        """
        kinds = kinds_of(type, proto)
        if flags & socket.AI_NUMERICHOST and literal(host) is None:
            raise socket.gaierror(socket.EAI_NONAME, f"{host!r} is not an address, and AI_NUMERICHOST allows no names")
        addresses = await self.addresses(host, family=family)
        return infos(addresses, port, kinds, host if flags & socket.AI_CANONNAME else "")

    async def addresses(
        self, host: str, *, family: int = 0, complete: bool = False, patience: float | None = None
    ) -> list[Address]:
        """Return the addresses of a name or literal, in the order to try. Raises socket.gaierror.

        With `complete`, wait for all families instead of the first with addresses. `patience` replaces `lifetime`.
        """
        wanted = [family] if family else list(self._families)
        known = literal(host)
        if known is not None:
            return filter_by_family(host, [known], family)
        if is_localhost(host):
            return [LOCALHOST[family] for family in wanted]
        failure: OSError | None = None
        candidates = self._candidates(host)
        end = asyncio.get_running_loop().time() + (self._lifetime if patience is None else patience)
        for number, candidate in enumerate(candidates):
            share = (end - asyncio.get_running_loop().time()) / (len(candidates) - number)
            try:
                found = interleave(await self._ask_all(candidate, wanted, share, complete))
            except socket.gaierror as error:  # for example, a server that does not serve a search domain
                failure = failure or error
                continue
            if found:
                return found
        raise failure or unknown_name(host)

    def is_incomplete(self, host: str) -> bool:
        """Report whether a question about this name is still open, so that more addresses may follow."""
        if literal(host) is not None or is_localhost(host) or not self._open_questions:
            return False
        open_names = {name for name, _ in self._open_questions}
        return any(str(candidate).lower() in open_names for candidate in self._candidates(host))

    async def srv(self, name: str) -> list[tuple[str, int]]:
        """Return the hosts and ports of a service (RFC 2782), in the order to try. Raises socket.gaierror.

        An example of `name` is `_postgresql._tcp.db.internal`.
        """
        for candidate in self._candidates(name):
            answer = await self._ask(candidate, "SRV")
            if answer is not None and answer.rrset is not None:
                records: list[Any] = answer.rrset.processing_order()
                if [str(record.target) for record in records] == ["."]:
                    break  # RFC 2782: the service is not offered
                return [(record.target.to_text(omit_final_dot=True), record.port) for record in records]
        raise unknown_name(name)

    def flush(self) -> None:
        """Forget all answers and all unanswered questions."""
        self._cache.flush()
        self._unanswered.clear()

    def _candidates(self, host: str) -> list[dns.name.Name]:
        """Return the absolute names to ask for, by `search` and `ndots` of resolv.conf(5)."""
        if not self._addresses:
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
        except (import_dns().exception.DNSException, UnicodeError) as error:
            raise socket.gaierror(socket.EAI_NONAME, f"{host!r} is not a name: {error}") from None
        dots = len(name) - 1
        return [whole, *searched] if dots >= self._ndots else [*searched, whole]

    async def _ask_all(
        self, name: dns.name.Name, families: Sequence[int], patience: float, complete: bool
    ) -> list[list[Address]]:
        """Return the addresses of each family. A family may fail if the other has addresses."""
        kinds = [RECORDS[socket.AddressFamily(family)] for family in families]
        questions = [asyncio.ensure_future(self._ask(name, kind, complete)) for kind in kinds]
        try:
            await first_usable(questions, patience, patience if complete else RESOLUTION_DELAY)
        finally:
            for question in questions:
                question.cancel()
        servers = ", ".join(server.address for server in self._servers)
        outcomes = [outcome_of(question, name, servers, patience) for question in questions]
        found = [[] if isinstance(outcome, OSError) else outcome for outcome in outcomes]
        failures = {
            kind: outcome for kind, outcome in zip(kinds, outcomes, strict=True) if isinstance(outcome, OSError)
        }
        if failures and not any(found):
            raise next(iter(failures.values()))
        for kind in failures:
            self._remember_unanswered((str(name).lower(), kind))
        return found

    def _remember_unanswered(self, key: Question) -> None:
        if key not in self._unanswered:
            self._unanswered[key] = self._clock() + UNANSWERED
            while len(self._unanswered) > CAPACITY:
                self._unanswered.popitem(last=False)

    def _was_unanswered(self, key: Question) -> bool:
        if self._unanswered.get(key, 0.0) > self._clock():
            return True
        self._unanswered.pop(key, None)
        return False

    async def _ask(self, name: dns.name.Name, kind: str, complete: bool = False) -> dns.resolver.Answer | None:
        """Ask a question; return None if there is no such record. Raises socket.gaierror.

        With `complete`, also wait for an open question that was recently left unanswered.
        """
        key = str(name).lower(), kind
        question = self._open_questions.get(key)
        is_open = question is not None and question.is_open
        if self._was_unanswered(key) and not (complete and is_open):
            raise unanswered(name, f"a question for {kind} records had no answer less than {UNANSWERED:g} s ago")
        if question is not None and is_open:
            # The open question may have been close to its time limit: if it fails, ask again.
            with suppress(socket.gaierror):
                return await question.wait()
        return await self._open_question(key, name).wait()

    def _open_question(self, key: Question, name: dns.name.Name) -> SharedQuestion:
        """Ask a question, unless it is already open."""
        known = self._open_questions.get(key)
        if known is not None and known.is_open:
            return known
        question = SharedQuestion(asyncio.ensure_future(self._answer(name, key[1])))
        self._open_questions[key] = question
        question.task.add_done_callback(partial(self._forget, key, question))
        return question

    def _forget(
        self, key: Question, question: SharedQuestion, done: asyncio.Future[dns.resolver.Answer | None]
    ) -> None:
        if self._open_questions.get(key) is question:
            del self._open_questions[key]
        # `exception` also marks a failure as retrieved, so that asyncio does not log it.
        if not done.cancelled() and done.exception() is None:
            self._unanswered.pop(key, None)

    async def _answer(self, name: dns.name.Name, kind: str) -> dns.resolver.Answer | None:
        """Return the answer from the cache or the servers. Follow aliases for a server that does not."""
        library = import_dns()
        records, internet = library.rdatatype.from_text(kind), library.rdataclass.IN
        for _ in range(LONGEST_CHAIN):
            answer: dns.resolver.Answer | None = self._cache.get((name, records, internet))
            if answer is None:
                async with self._question_limits[kind]:
                    response = await self._ask_servers(name, kind)
                try:
                    answer = library.resolver.Answer(name, records, internet, response)
                except library.exception.DNSException as error:
                    raise unanswered(name, "the answer is inconsistent") from error
                self._cache.put((name, records, internet), answer)
            if answer is None or answer.rrset is not None or not is_cut_off(answer):
                break
            name = answer.chaining_result.canonical_name
        return answer

    async def _ask_servers(self, name: dns.name.Name, kind: str) -> dns.message.QueryMessage:
        """Return the first usable answer. Raises socket.gaierror."""
        failures: list[str] = []
        waiting: dict[asyncio.Task[dns.message.QueryMessage], NameServer] = {}
        limit = asyncio.timeout(self._lifetime)
        try:
            async with limit:
                return await self._race(name, kind, waiting, failures)
        except TimeoutError:
            if not limit.expired():
                raise
            silent = [f"{server.address} did not answer within {self._lifetime:g} s" for server in waiting.values()]
            raise unanswered(name, ", ".join(failures + silent)) from None
        finally:
            for task in waiting:
                task.cancel()

    async def _race(
        self,
        name: dns.name.Name,
        kind: str,
        waiting: dict[asyncio.Task[dns.message.QueryMessage], NameServer],
        failures: list[str],
    ) -> dns.message.QueryMessage:
        """Ask one server after the other, without giving up those that have not answered yet."""
        order = sorted(self._reachable(), key=lambda server: server.is_failing)
        cause: ServerFailed | None = None
        while order or waiting:
            if order:
                server = order.pop(0)
                question = server.ask(name, kind, self._open_socket, self._attempt)
                task = asyncio.ensure_future(question)
                task.add_done_callback(retrieve_exception)
                waiting[task] = server
            done, _ = await asyncio.wait(
                waiting, timeout=STAGGER if order else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                server = waiting.pop(task)
                try:
                    response = task.result()
                except ServerFailed as error:
                    failures.append(str(error))
                    cause = error
                    continue
                server.failing_until = 0.0
                for slow in waiting.values():
                    slow.failing_until = self._clock() + FAILING
                return response
        raise unanswered(name, ", ".join(failures)) from cause

    def _reachable(self) -> list[NameServer]:
        """Return the servers that can be reached. Raises socket.gaierror if there are none."""
        from wyrmhole.library.names.dns_server import NameServer

        if not self._servers:
            self._servers = [NameServer(str(address), self._port, self._clock) for address in self._addresses]
        found = [server for server in self._servers if self._leads_to(ipaddress.ip_address(server.address))]
        if not found:
            outside = ", ".join(map(str, self._addresses))
            raise socket.gaierror(
                socket.EAI_AGAIN,
                f"no name can be resolved: DNS server {outside} is in no peer's AllowedIPs (add it to one, or use a "
                "server inside the tunnel)",
            )
        return found


Question: TypeAlias = tuple[str, str]
"""Name and type of a question."""


class SharedQuestion:
    """An open question with its waiting callers. Without a caller it ends after `GRACE` seconds."""

    def __init__(self, task: asyncio.Task[dns.resolver.Answer | None]) -> None:
        self.task = task
        self._waiting = 0
        self._end: asyncio.TimerHandle | None = None

    @property
    def is_open(self) -> bool:
        return not (self.task.done() or self.task.cancelling())

    async def wait(self) -> dns.resolver.Answer | None:
        """Wait for the answer. Raises socket.gaierror."""
        self._waiting += 1
        if self._end is not None:
            self._end.cancel()
            self._end = None
        try:
            # Shielded, because a caller that is cancelled must not cancel the question for the others.
            return await asyncio.shield(self.task)
        finally:
            self._waiting -= 1
            if not self._waiting and not self.task.done():
                self._end = asyncio.get_running_loop().call_later(GRACE, self.task.cancel)


async def first_usable(
    questions: Sequence[asyncio.Task[dns.resolver.Answer | None]], patience: float, delay: float
) -> None:
    """Wait until all have an answer, for `patience` seconds, or until `delay` after the first addresses."""
    loop = asyncio.get_running_loop()
    end = loop.time() + patience
    pending = set(questions)
    while pending and (left := end - loop.time()) > 0:
        done, pending = await asyncio.wait(pending, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if any(question.exception() is None and addresses_of(question.result()) for question in done):
            end = min(end, loop.time() + delay)


def outcome_of(
    question: asyncio.Task[dns.resolver.Answer | None], name: dns.name.Name, servers: str, patience: float
) -> list[Address] | OSError:
    """Return the addresses or the failure of a question. Raises an unexpected error."""
    if not question.done():
        return unanswered(name, f"{servers} did not answer within {patience:.1f} s")
    error = question.exception()
    if error is None:
        return addresses_of(question.result())
    if isinstance(error, OSError):
        return error
    raise error


def retrieve_exception(task: asyncio.Task[_T]) -> None:
    """Mark the failure of an abandoned task as retrieved, so that asyncio does not log it."""
    if not task.cancelled():
        task.exception()


def is_cut_off(answer: dns.resolver.Answer) -> bool:
    """Report whether the answer ends at an alias that the server did not follow."""
    has_soa = any(rrset.rdtype.name == "SOA" for rrset in answer.response.authority)
    return bool(answer.chaining_result.cnames) and not has_soa


def most_questions() -> int:
    """Return the limit of open questions. It is below `QUESTIONS` if the process may have few descriptors, because each
    question takes one for each server."""
    return max(2, min(QUESTIONS, nofile() // 32))


def import_dns() -> ModuleType:
    """Import dnspython for the first name. Raises socket.gaierror with the command that installs it."""
    try:
        import dns.resolver
    except ImportError:
        message = f"names inside a tunnel need dnspython: {how_to_install('dns')}"
        raise socket.gaierror(socket.EAI_NONAME, message) from None
    return dns


def is_localhost(host: str) -> bool:
    """Report whether a name is loopback and must not be sent to a server (RFC 6761, 6.3).

    Loopback is the tunnel's own.
    """
    name = host.lower().rstrip(".")
    return name == "localhost" or name.endswith(".localhost")


def filter_by_family(host: str, addresses: list[Address], family: int) -> list[Address]:
    found = [address for address in addresses if family in (0, family_of(address))]
    if not found:
        raise socket.gaierror(socket.EAI_ADDRFAMILY, f"{host} is not an address of the requested family")
    return found


def addresses_of(answer: dns.resolver.Answer | None) -> list[Address]:
    return (
        [] if answer is None or answer.rrset is None else [ipaddress.ip_address(str(record)) for record in answer.rrset]
    )


def interleave(families: Sequence[Sequence[Address]]) -> list[Address]:
    """Alternate between the families, so that a family without a route costs one attempt instead of all."""
    turns = itertools.zip_longest(*families)
    return [address for turn in turns for address in turn if address is not None]

"""Why does this tunnel not work? One step after the other, from the configuration to the path inside.

    configuration - clock - for each peer: endpoint, route, handshake, ping, path MTU - name servers

Each step yields a Finding: what was looked at, what was found, and what to do if it is not good. A step whose
foundation failed is left out rather than failed too, so the first failure is the one to read. Nothing needs rights:
the packets come from `library/probe.py`, or from a running tunnel.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import socket
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from wyrmhole.control.lint import contains, lint
from wyrmhole.control.wg_quick import Config, ConfigPeer
from wyrmhole.control.wg_values import ConfigEndpoint
from wyrmhole.device.clock import SystemClock
from wyrmhole.errors import ConfigError, TunnelError, how_to_install
from wyrmhole.library.configuring import load_config
from wyrmhole.library.endpoints import look_up_host
from wyrmhole.library.probe import HandshakeResult, IpAddress, Probe, Refused
from wyrmhole.net.udp_route import Route, family_of, find_route, why_unreachable
from wyrmhole.protocol.constants import SECOND
from wyrmhole.protocol.drops import DropReason
from wyrmhole.protocol.keys import PublicKey
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.prefix import Prefix

GOOD, POOR, BAD, NOTE = "good", "poor", "bad", "note"
RESOLVE_SECONDS = 10.0
ICMP_SECONDS = 1.0
"""A closed port is reported within a round trip; longer than most paths take."""
LATE_ICMP_SECONDS = 3.5
"""A host that is off is reported after three questions for its link address, a second each."""
HANDSHAKE_SECONDS = 7.0
"""Two initiations: the second one carries the cookie of a peer under load (5.4 s after the first at most)."""
PING_SECONDS = 2.0
DNS_SECONDS = 3.0
MAX_PEERS = 16
"""Asked in one run: a gateway's file may list thousands."""
MAX_TARGETS = 4
"""Pinged for each peer."""
OVERHEAD = {False: 60, True: 80}
"""Outer header, UDP, message header and tag: by whether the outside is IPv6."""
LEAST_MTU = 576
PLAUSIBLE_CLOCK = 1_700_000_000
"""Seconds since 1970: a clock before November 2023 is certainly wrong."""
_IP_RECVERR = {socket.AF_INET: (socket.IPPROTO_IP, 11), socket.AF_INET6: (socket.IPPROTO_IPV6, 25)}


@dataclass(frozen=True, slots=True)
class Finding:
    """`level`: good, poor (works, but), bad (does not work) or note (could not be tried)."""

    step: str
    level: str
    found: str
    advice: str = ""
    peer: str = ""


class Contact(Protocol):
    """What the steps inside need: a probe without an interface, or a running tunnel."""

    @property
    def mtu(self) -> int: ...

    def drops(self) -> Mapping[DropReason, int]: ...

    async def handshakes(self, keys: Iterable[PublicKey], seconds: float) -> dict[PublicKey, HandshakeResult]:
        """Begin one with each peer that has no session; wait until all are decided, at most so long."""
        ...

    async def echo(self, target: IpAddress, length: int, seconds: float) -> float:
        """Seconds until the answer to a ping of `length` bytes in all. Raises OSError."""
        ...

    async def ask(self, target: IpAddress, port: int, payload: bytes, seconds: float) -> bytes:
        """What a UDP service answers. Raises TimeoutError, Refused, OSError."""
        ...


async def diagnose(config: Config | str | os.PathLike[str], *, names: Sequence[str] = ()) -> AsyncIterator[Finding]:
    """Try everything that a tunnel of this configuration needs. `names`: looked up inside as well.

    Takes under a second for a tunnel that works, and at most some 30 s otherwise. The peer sees a handshake from a port
    of this host that is not the tunnel's: do not run it beside a running tunnel with the same key.
    """
    config = load_config(config)
    findings = list(_configuration(config))
    for finding in [*findings, _clock()]:
        yield finding
    if any(finding.level == BAD for finding in findings):
        return
    reachable: dict[ConfigEndpoint, Endpoint] = {}
    for peer in config.peers[:MAX_PEERS]:
        async for finding in _outside(config, peer, reachable):
            yield finding
    if len(config.peers) > MAX_PEERS:
        yield Finding("peers", NOTE, f"only the first {MAX_PEERS} of {len(config.peers)} peers are tried")
    asked = [peer for peer in config.peers[:MAX_PEERS] if peer.endpoint in reachable]
    if not asked:
        return
    try:
        async with Probe(config, reachable) as probe:
            async for finding in _inside(config, asked, reachable, probe, names):
                yield finding
    except (ConfigError, TunnelError, OSError) as error:
        yield Finding("handshake", BAD, f"the probe could not be started: {error}")


async def diagnose_running(config: Config, contact: Contact, *, names: Sequence[str] = ()) -> AsyncIterator[Finding]:
    """The same for a tunnel that is open, over its own sessions; its endpoints are asked from this host."""
    for finding in [*_configuration(config), _clock()]:
        yield finding
    reachable: dict[ConfigEndpoint, Endpoint] = {}
    for peer in config.peers[:MAX_PEERS]:
        async for finding in _outside(config, peer, reachable):
            yield finding
    asked = [peer for peer in config.peers[:MAX_PEERS] if peer.endpoint in reachable]
    async for finding in _inside(config, asked, reachable, contact, names):
        yield finding


# Before anything is sent


def _configuration(config: Config) -> Iterator[Finding]:
    interface = config.interface
    if interface.private_key is None:
        yield Finding("configuration", BAD, "there is no PrivateKey", "make one with `wyrmhole genkey`")
    if not config.peers:
        yield Finding("configuration", BAD, "there is no [Peer]", "add the other side: its PublicKey and AllowedIPs")
    if not interface.addresses:
        advice = "add Address = with the address that the other side has in its AllowedIPs for this key"
        yield Finding("configuration", BAD, "there is no Address, so nothing can be sent inside", advice)
    # Name servers have a step of their own, which knows that the library asks nobody outside.
    problems = [each for each in lint(config) if each.level in ("error", "warning") and "DNS" not in each.message]
    for finding in problems[:MAX_TARGETS]:
        where = f"line {finding.line}: " if finding.line else ""
        yield Finding("configuration", POOR, f"{where}{finding.message}")
    if not problems:
        yield Finding("configuration", GOOD, f"{config.source}: nothing to object to")


def _clock() -> Finding:
    if SystemClock().wall() // SECOND < PLAUSIBLE_CLOCK:
        advice = "set the clock: a peer refuses handshakes with an older timestamp than the last one it accepted"
        return Finding("clock", BAD, "the wall clock is years behind", advice)
    return Finding("clock", GOOD, "plausible")


# Outside


def label(config: Config, peer: ConfigPeer) -> str:
    return peer.name or f"{peer.public_key.base64()[:8]}…"


async def _outside(
    config: Config, peer: ConfigPeer, reachable: dict[ConfigEndpoint, Endpoint]
) -> AsyncIterator[Finding]:
    """Name, route and ICMP errors of one peer's endpoint; what can be tried goes into `reachable`."""
    name = label(config, peer)
    if peer.endpoint is None:
        advice = "only the peer can begin; if this side should, add Endpoint = HOST:PORT"
        yield Finding("endpoint", NOTE, "no Endpoint is configured", advice, name)
        return
    text = peer.endpoint.emit()
    try:
        async with asyncio.timeout(RESOLVE_SECONDS):
            found = [literal] if (literal := peer.endpoint.literal) else await _look_up(peer.endpoint)
    except TimeoutError:
        advice = "the host's name servers do not answer: see /etc/resolv.conf, or write the address"
        yield Finding("endpoint", BAD, f"{text} could not be resolved within {RESOLVE_SECONDS:g} s", advice, name)
        return
    except OSError as error:
        advice = "correct the name, or write the address; the host's own name servers are asked"
        yield Finding("endpoint", BAD, f"{text} cannot be resolved: {error.strerror or error}", advice, name)
        return
    routes = {endpoint: _route(endpoint) for endpoint in found}
    usable = [(endpoint, route) for endpoint, route in routes.items() if isinstance(route, Route)]
    if not usable:
        yield _no_route(text, routes, name)
        return
    endpoint, route = usable[0]
    resolved = "" if peer.endpoint.literal else f"{text} is {endpoint.emit()}, "
    yield Finding("endpoint", GOOD, f"{resolved}sent from {route.source}, path MTU {route.mtu}", peer=name)
    if (refusal := await _icmp_error(endpoint, ICMP_SECONDS)) is not None:
        yield _refused(endpoint, refusal, name)
        return
    wanted = (config.interface.mtu or 1420) + OVERHEAD[endpoint.is_v6]
    if route.mtu < wanted:
        advice = f"set MTU = {route.mtu - OVERHEAD[endpoint.is_v6]} in [Interface]"
        found_text = f"the way to {endpoint.host} takes {route.mtu} bytes, the tunnel's packets have up to {wanted}"
        yield Finding("MTU", POOR, f"{found_text}: they are cut up outside", advice, name)
    reachable[peer.endpoint] = endpoint


async def _look_up(endpoint: ConfigEndpoint) -> list[Endpoint]:
    return await look_up_host(endpoint.host, endpoint.port)


def _route(endpoint: Endpoint) -> Route | OSError:
    try:
        return find_route(endpoint)
    except OSError as error:
        return error


def _no_route(text: str, routes: Mapping[Endpoint, Route | OSError], name: str) -> Finding:
    endpoint = next(iter(routes))
    advice = "see `ip route` and `ip address`; an endpoint of the other address family may work"
    return Finding("route", BAD, f"no way to {text}: {why_unreachable(endpoint)}", advice, name)


async def _icmp_error(endpoint: Endpoint, seconds: float) -> OSError | None:
    """What the network answers to a datagram that no peer answers. None: nothing within so long."""
    family = family_of(endpoint)
    loop = asyncio.get_running_loop()
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        # Without it a host or network that is unreachable is not reported to a UDP socket.
        sock.setsockopt(*_IP_RECVERR[family], 1)
        try:
            sock.connect(endpoint.sockaddr)
            sock.send(bytes(4))
            async with asyncio.timeout(seconds):
                await loop.sock_recv(sock, 2048)
        except TimeoutError as error:
            return error if error.errno else None
        except OSError as error:
            return error
    return None


def _refused(endpoint: Endpoint, error: OSError, name: str) -> Finding:
    where = endpoint.emit()
    if error.errno == errno.ECONNREFUSED:
        advice = "start the tunnel there, or correct the port: `wg show` on the other side has its listening port"
        return Finding("route", BAD, f"{where} answers that nothing listens on this UDP port", advice, name)
    if error.errno in (errno.EPERM, errno.EACCES):
        advice = "a firewall on this host forbids it: see `nft list ruleset`"
        return Finding("route", BAD, f"this host refuses to send to {where}: {error.strerror}", advice, name)
    advice = "the host is down, the address is wrong, or a firewall on the way rejects UDP to it"
    return Finding("route", BAD, f"{where} cannot be reached: {error.strerror}", advice, name)


# Inside


async def _inside(
    config: Config,
    peers: Sequence[ConfigPeer],
    endpoints: Mapping[ConfigEndpoint, Endpoint],
    probe: Contact,
    names: Sequence[str],
) -> AsyncIterator[Finding]:
    results = await probe.handshakes([peer.public_key for peer in peers], HANDSHAKE_SECONDS)
    up = []
    for peer in peers:
        assert peer.endpoint is not None
        result, endpoint, name = results[peer.public_key], endpoints[peer.endpoint], label(config, peer)
        late = None if result.is_answered else await _icmp_error(endpoint, LATE_ICMP_SECONDS)
        yield _handshake(result, endpoint, name) if late is None else _refused(endpoint, late, name)
        if result.completed:
            up.append(peer)
    for peer in up:
        async for finding in _reach(config, peer, probe):
            yield finding
    if up:
        async for finding in _name_servers(config, up, probe, names):
            yield finding


def _handshake(result: HandshakeResult, endpoint: Endpoint, name: str) -> Finding:
    if result.completed:
        under_load = " (after a cookie: the peer is under load)" if result.cookie else ""
        return Finding("handshake", GOOD, f"there is a session with {endpoint.emit()}{under_load}", peer=name)
    if result.refused is DropReason.BAD_HANDSHAKE:
        advice = "the PresharedKey must be the same on both sides, or absent on both"
        return Finding("handshake", BAD, "the peer answers, but its response does not authenticate", advice, name)
    if result.cookie:
        advice = "the peer is there and knows its key, but is under load: try again, or raise its limits"
        return Finding("handshake", BAD, "the peer answered with a cookie and then not at all", advice, name)
    return _unanswered(result, endpoint, name)


def _unanswered(result: HandshakeResult, endpoint: Endpoint, name: str) -> Finding:
    """The protocol stays silent for a stranger, so these cannot be told apart from here; the peer's log can."""
    found = f"no answer from {endpoint.emit()} to {result.initiations} initiations, and no ICMP error either"
    advice = (
        "one of: (1) the peer's PublicKey here is not its key, or our public key is not a peer there (its log says "
        "which: LOG_LEVEL=debug); (2) UDP to that port is filtered on the way, or the host is off; (3) our clock is "
        "behind an earlier handshake, so that the peer takes this one for a replay"
    )
    return Finding("handshake", BAD, found, advice, name)


async def _reach(config: Config, peer: ConfigPeer, probe: Contact) -> AsyncIterator[Finding]:
    name = label(config, peer)
    targets = ping_targets(config, peer)
    if not targets:
        yield Finding("ping", NOTE, "no address inside to ask: its AllowedIPs name networks only", peer=name)
        return
    before = probe.drops().get(DropReason.BAD_SOURCE, 0)
    answers = await asyncio.gather(*(_ping(probe, target, 84) for target in targets))
    reached = [target for target, answer in zip(targets, answers, strict=True) if isinstance(answer, float)]
    if not reached:
        refused = probe.drops().get(DropReason.BAD_SOURCE, 0) - before
        yield _silence_inside(config, targets, answers, refused, name)
        return
    seconds = next(answer for answer in answers if isinstance(answer, float))
    yield Finding("ping", GOOD, f"{reached[0]} answers after {seconds * 1000:.1f} ms", peer=name)
    yield await _path_mtu(probe, reached[0], name)


async def _ping(probe: Contact, target: IpAddress, length: int) -> float | OSError:
    try:
        return await probe.echo(target, length, PING_SECONDS)
    except OSError as error:
        return error


def ping_targets(config: Config, peer: ConfigPeer) -> list[IpAddress]:
    """Single hosts in its AllowedIPs, name servers, and the first hosts of our own network: usually the gateway."""
    own = {address.ip for address in config.interface.addresses}
    candidates: list[IpAddress] = [server for server in config.interface.dns_servers if routed(peer, server)]
    for prefix in peer.allowed_ips:
        if prefix.length == prefix.bits:
            candidates.append(address_of(prefix))
    for address in config.interface.addresses:
        if address.network.num_addresses > 2:
            first = address.network.network_address + 1
            candidates += [each for each in (first, first + 1) if each in address.network and routed(peer, each)]
    versions = {address.version for address in config.interface.addresses}
    return [each for each in dict.fromkeys(candidates) if each not in own and each.version in versions][:MAX_TARGETS]


def address_of(prefix: Prefix) -> IpAddress:
    kind = ipaddress.IPv4Address if prefix.version == 4 else ipaddress.IPv6Address
    return kind(prefix.network)


def routed(peer: ConfigPeer, address: IpAddress) -> bool:
    host = Prefix(address.version, int(address), address.max_prefixlen)
    return any(contains(prefix, host) for prefix in peer.allowed_ips)


def _silence_inside(
    config: Config, targets: Sequence[IpAddress], answers: Sequence[float | OSError], refused: int, name: str
) -> Finding:
    asked = ", ".join(map(str, targets))
    if refused:
        advice = "add the addresses that the peer sends from to its AllowedIPs here"
        found = f"{refused} answers came from addresses outside the peer's AllowedIPs and were dropped"
        return Finding("ping", BAD, found, advice, name)
    errors = [str(answer) for answer in answers if isinstance(answer, Refused)]
    if errors:
        advice = "the peer works and has no way to that host: it is off, or the peer does not forward to it"
        return Finding("ping", POOR, f"nobody answers; {errors[0]}", advice, name)
    own = ", ".join(str(address.ip) for address in config.interface.addresses)
    advice = (
        f"either these hosts do not answer pings, or the peer drops our packets because its AllowedIPs for this key do "
        f"not contain {own}, or the way back from those hosts does not lead through the peer"
    )
    return Finding("ping", POOR, f"there is a session, but no answer from {asked}", advice, name)


async def _path_mtu(probe: Contact, target: IpAddress, name: str) -> Finding:
    """By echoes of rising size: both ways at once, as the answer is as long as the question."""
    if isinstance(await _ping(probe, target, probe.mtu), float):
        return Finding("path MTU", GOOD, f"packets of {probe.mtu} bytes pass both ways", peer=name)
    low, high = LEAST_MTU, probe.mtu
    if not isinstance(await _ping(probe, target, low), float):
        found = f"a ping of 84 bytes is answered, one of {low} is not"
        return Finding("path MTU", POOR, found, "the host may refuse large pings, or packets are lost", name)
    while high - low > 8:
        middle = (low + high) // 2
        if isinstance(await _ping(probe, target, middle), float):
            low = middle
        else:
            high = middle
    advice = f"set MTU = {low // 8 * 8} in [Interface], on both sides if the other one sends large packets too"
    found = f"packets above about {low} bytes get lost ({probe.mtu} was tried): large transfers will hang"
    return Finding("path MTU", BAD, found, advice, name)


# Names inside


async def _name_servers(
    config: Config, peers: Sequence[ConfigPeer], probe: Contact, names: Sequence[str]
) -> AsyncIterator[Finding]:
    servers = config.interface.dns_servers
    if not servers:
        level, advice = (BAD, "add DNS = ADDRESS to [Interface]") if names else (NOTE, "names inside cannot be used")
        yield Finding("DNS", level, "no name server is configured", advice)
        return
    for server in servers:
        if not any(routed(peer, server) for peer in config.peers):
            advice = f"add {server}/{server.max_prefixlen} to the AllowedIPs of the peer it is behind"
            yield Finding("DNS", BAD, f"{server} is in no peer's AllowedIPs, so it cannot be asked inside", advice)
        elif any(routed(peer, server) for peer in peers):
            for name in names or (".",):
                yield await _name_server(probe, server, name)


async def _name_server(probe: Contact, server: IpAddress, name: str) -> Finding:
    try:
        import dns.message
        import dns.rcode
    except ModuleNotFoundError:
        return Finding("DNS", NOTE, f"{server} was not asked", how_to_install("dns"))
    question = dns.message.make_query(name, "NS" if name == "." else "A")
    try:
        reply = dns.message.from_wire(await probe.ask(server, 53, question.to_wire(), DNS_SECONDS))
    except Refused as error:
        advice = "no name server runs there: correct DNS =, or start it"
        if not error.is_port_unreachable:
            advice = "the peer has no way to it"
        return Finding("DNS", BAD, f"{server} port 53: {error}", advice)
    except TimeoutError:
        advice = "no name server runs there, it does not serve our address, or a firewall drops UDP port 53"
        return Finding("DNS", BAD, f"{server} does not answer questions", advice)
    except Exception as error:
        return Finding("DNS", BAD, f"{server} answers with something that is not DNS: {error}", "correct DNS =")
    return _dns_reply(server, name, reply)


def _dns_reply(server: IpAddress, name: str, reply: object) -> Finding:
    import dns.message
    import dns.rcode

    assert isinstance(reply, dns.message.Message)
    code = dns.rcode.to_text(reply.rcode())
    if code == "NXDOMAIN" and name != ".":
        return Finding("DNS", BAD, f"{server}: {name} does not exist", "correct the name, or ask another server")
    if code in ("REFUSED", "SERVFAIL"):
        advice = "the server does not resolve for our address" if code == "REFUSED" else "its own upstream fails"
        return Finding("DNS", POOR if name == "." else BAD, f"{server} answers {code}", advice)
    if name != "." and not reply.answer:
        return Finding("DNS", POOR, f"{server}: {name} has no IPv4 address", "it may have an IPv6 one")
    return Finding("DNS", GOOD, f"{server} answers" + ("" if name == "." else f" for {name}"))

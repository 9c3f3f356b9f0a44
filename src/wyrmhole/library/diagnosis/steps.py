"""Why does this tunnel not work? One step after the other, from the configuration to the path inside.

    configuration - clock - for each peer: endpoint, route, handshake, ping, path MTU - name servers

Each step yields a Finding: what was looked at, what was found, and what to do if it is not good. A step whose
foundation failed is left out rather than failed too, so the first failure is the one to read. Nothing needs rights:
the packets come from `library/diagnosis/probe.py`, or from a running tunnel.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from wyrmhole.control.config.file import Config, ConfigPeer
from wyrmhole.control.config.lint import contains, lint
from wyrmhole.control.config.load import load_config
from wyrmhole.control.config.values import ConfigEndpoint
from wyrmhole.device.clock import SystemClock, is_plausible, is_synchronised
from wyrmhole.errors import ConfigError, DeviceError, how_to_install
from wyrmhole.library.common import arguments
from wyrmhole.library.diagnosis.daemon_contact import find_daemon
from wyrmhole.library.diagnosis.finding import BAD, GOOD, NOTE, POOR
from wyrmhole.library.diagnosis.finding import Finding as Finding
from wyrmhole.library.diagnosis.outside import icmp_error, look_outside, refused
from wyrmhole.library.diagnosis.probe import HandshakeResult, Probe, ProbeRefused
from wyrmhole.protocol.drops import DropReason
from wyrmhole.protocol.keys import PublicKey
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.prefix import Prefix
from wyrmhole.wire.probes import IpAddress

LATE_ICMP_SECONDS = 3.5
"""A host that is off is reported after three questions for its link address, a second each."""
HANDSHAKE_SECONDS = 7.0
"""Two initiations: the second one carries the cookie of a peer under load (5.4 s after the first at most)."""
PING_SECONDS = 2.0
LEAST_PING_SECONDS = 0.5
"""For the sizes of a path MTU, once it is known how soon a host answers."""
MAX_PEERS = 16
"""Asked in one run: a gateway's file may list thousands."""
MAX_TARGETS = 4
"""Pinged for each peer."""
MAX_NAMES = 16
"""Looked up in one run."""
LEAST_MTU = 576


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
        """What a UDP service answers. Raises TimeoutError, ProbeRefused, OSError."""
        ...


async def diagnose(config: Config | str | os.PathLike[str], *, names: Sequence[str] = ()) -> AsyncIterator[Finding]:
    """Try everything that a tunnel of this configuration needs. `names`: hosts inside to look up, addresses to ping.

    Takes under two seconds for a tunnel that works, and at most 45 s otherwise. Where a daemon of this host serves the
    same key, its sessions are used. Otherwise the peer sees a handshake from a port of this host that is not the
    tunnel's: a program or another host with the same key loses its session until it speaks again.
    """
    arguments.check_config(config)
    config = load_config(config)
    findings = list(_configuration(config))
    for finding in [*findings, _clock()]:
        yield finding
    if any(finding.level == BAD for finding in findings):
        return
    daemon = await find_daemon(config)
    if isinstance(daemon, Finding):
        yield daemon
        return
    if daemon is not None:
        yield Finding("daemon", GOOD, f"{daemon.name} is served with this key: its sessions are used")
        try:
            async for finding in _steps(config, daemon, names):
                yield finding
        except OSError as error:
            yield Finding("daemon", BAD, f"{daemon.name} does not answer any more: {error}")
        return
    if (taken := _listen_port(config.interface.listen_port or 0)) is not None:
        yield taken
    async for finding in _steps(config, None, names):
        yield finding


async def diagnose_running(config: Config, contact: Contact, *, names: Sequence[str] = ()) -> AsyncIterator[Finding]:
    """The same for a tunnel that is open, over its own sessions; its endpoints are asked from this host."""
    for finding in [*_configuration(config), _clock()]:
        yield finding
    async for finding in _steps(config, contact, names):
        yield finding


async def _steps(config: Config, contact: Contact | None, names: Sequence[str]) -> AsyncIterator[Finding]:
    """From the endpoints to the name servers. Without a `contact`: by a probe."""
    reachable: dict[ConfigEndpoint, Endpoint] = {}
    peers = config.peers[:MAX_PEERS]
    for finding in await _side_by_side(look_outside(config, peer, label(config, peer), reachable) for peer in peers):
        yield finding
    if len(config.peers) > MAX_PEERS:
        yield Finding("peers", NOTE, f"only the first {MAX_PEERS} of {len(config.peers)} peers are tried")
    asked = [peer for peer in peers if peer.endpoint in reachable]
    if contact is not None:
        # A peer without an endpoint may have connected from its side.
        asked += [peer for peer in peers if peer.endpoint is None]
        async for finding in _inside(config, asked, reachable, contact, names):
            yield finding
        return
    if not asked:
        return
    try:
        async with Probe(config, reachable) as probe:
            async for finding in _inside(config, asked, reachable, probe, names):
                yield finding
    except (ConfigError, DeviceError, OSError) as error:
        yield Finding("handshake", BAD, f"the probe could not be started: {error}")


async def _side_by_side(parts: Iterable[AsyncIterator[Finding]]) -> list[Finding]:
    """The findings of all peers, in their order: the time is that of the slowest one."""

    async def collect(part: AsyncIterator[Finding]) -> list[Finding]:
        return [finding async for finding in part]

    return [finding for each in await asyncio.gather(*map(collect, parts)) for finding in each]


# Before anything is sent


def _listen_port(port: int) -> Finding | None:
    """The probe takes a port of its own, so a taken one has to be looked for."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("", port))
    except OSError as error:
        advice = f"choose another ListenPort, leave it out, or end the program that has it: `ss -ulnp sport = :{port}`"
        return Finding("listen port", BAD, f"UDP port {port}: {error.strerror}", advice)
    return None


def _configuration(config: Config) -> Iterator[Finding]:
    interface = config.interface
    missing = []
    if interface.private_key is None or interface.private_key.is_zero:
        missing.append(("there is no PrivateKey", "make one with `wyrmhole genkey`"))
    if not config.peers:
        missing.append(("there is no [Peer]", "add the other side: its PublicKey and AllowedIPs"))
    if not interface.addresses:
        advice = "add Address = with the address that the other side has in its AllowedIPs for this key"
        missing.append(("there is no Address, so nothing can be sent inside", advice))
    if missing:
        if len(missing) == 3:
            missing = [
                (f"{config.source} holds no tunnel: neither a key, nor an address, nor a peer", "is it that file?")
            ]
        for found, advice in missing:
            yield Finding("configuration", BAD, found, advice)
        return
    # Name servers have a step of their own, which knows that the library asks nobody outside.
    problems = [each for each in lint(config) if each.level in ("error", "warning") and "DNS" not in each.message]
    for finding in problems[:MAX_TARGETS]:
        where = f"line {finding.line}: " if finding.line else ""
        yield Finding("configuration", POOR, f"{where}{finding.message}")
    if not problems:
        yield Finding("configuration", GOOD, f"{config.source}: nothing to object to")


def _clock() -> Finding:
    if not is_plausible(SystemClock().wall()):
        advice = "set the clock: a peer refuses handshakes with an older timestamp than the last one it accepted"
        return Finding("clock", BAD, "the wall clock is years behind", advice)
    if not is_synchronised():
        advice = "run an NTP client: a clock that goes back makes peers refuse handshakes until it has caught up"
        return Finding("clock", NOTE, "plausible, but the kernel does not know it to be synchronised", advice)
    return Finding("clock", GOOD, "synchronised")


# Inside


def label(config: Config, peer: ConfigPeer) -> str:
    return peer.name or f"{peer.public_key.base64()[:8]}…"


async def _inside(
    config: Config,
    peers: Sequence[ConfigPeer],
    endpoints: Mapping[ConfigEndpoint, Endpoint],
    probe: Contact,
    names: Sequence[str],
) -> AsyncIterator[Finding]:
    results = await probe.handshakes([peer.public_key for peer in peers], HANDSHAKE_SECONDS)
    for finding in await asyncio.gather(*(_judge(config, peer, results[peer.public_key], endpoints) for peer in peers)):
        yield finding
    up = [peer for peer in peers if results[peer.public_key].completed]
    for finding in await _side_by_side(_reach(config, peer, probe) for peer in up):
        yield finding
    if not up:
        return
    targets = {name: address for name in names if (address := read_address(name)) is not None}
    for finding in await asyncio.gather(*(_host(config, up, probe, target) for target in targets.values())):
        yield finding
    async for finding in _name_servers(config, up, probe, [name for name in names if name not in targets]):
        yield finding


async def _judge(
    config: Config, peer: ConfigPeer, result: HandshakeResult, endpoints: Mapping[ConfigEndpoint, Endpoint]
) -> Finding:
    name = label(config, peer)
    if peer.endpoint is None:
        if result.completed:
            return Finding("handshake", GOOD, "it has connected, there is a session", peer=name)
        return Finding("handshake", NOTE, "it has no session now", "only the peer can begin: look there", name)
    endpoint = endpoints[peer.endpoint]
    late = None if result.is_answered else await icmp_error(endpoint, LATE_ICMP_SECONDS)
    return _handshake(result, endpoint, name) if late is None else refused(endpoint, late, name)


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
    count = "1 initiation" if result.initiations == 1 else f"{result.initiations} initiations"
    found = f"no answer from {endpoint.emit()} to {count}, and no ICMP error either"
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
    answers = await asyncio.gather(*(_ping(probe, target, 84, PING_SECONDS) for target in targets))
    reached = {target: answer for target, answer in zip(targets, answers, strict=True) if isinstance(answer, float)}
    if not reached:
        dropped = probe.drops().get(DropReason.BAD_SOURCE, 0) - before
        yield _silence_inside(config, targets, answers, dropped, name)
        return
    target, seconds = next(iter(reached.items()))
    yield Finding("ping", GOOD, f"{target} answers after {seconds * 1000:.1f} ms", peer=name)
    yield await _path_mtu(probe, target, min(PING_SECONDS, max(LEAST_PING_SECONDS, 4 * seconds)), name)


async def _ping(probe: Contact, target: IpAddress, length: int, seconds: float) -> float | OSError:
    try:
        return await probe.echo(target, length, seconds)
    except OSError as error:
        return error


async def _passes(probe: Contact, target: IpAddress, length: int, seconds: float) -> bool:
    """Whether a packet of this length comes back. Asked twice at once: a lost packet is not a limit."""
    answers = await asyncio.gather(*(_ping(probe, target, length, seconds) for _ in range(2)))
    return any(isinstance(answer, float) for answer in answers)


async def _host(config: Config, up: Sequence[ConfigPeer], probe: Contact, target: IpAddress) -> Finding:
    """An address that the caller wants to reach."""
    owners = [peer for peer in config.peers if routed(peer, target)]
    if not owners:
        advice = f"add {target}/{target.max_prefixlen} to the AllowedIPs of the peer it is behind"
        return Finding("host", BAD, f"{target} is in no peer's AllowedIPs", advice)
    if not any(address.version == target.version for address in config.interface.addresses):
        found = f"the tunnel has no IPv{target.version} Address, so {target} cannot be asked"
        return Finding("host", BAD, found, "add one to [Interface], and to the AllowedIPs of the other side")
    if not any(peer in up for peer in owners):
        return Finding("host", NOTE, f"{target} was not asked: its peer has no session")
    answer = await _ping(probe, target, 84, PING_SECONDS)
    if isinstance(answer, float):
        return Finding("host", GOOD, f"{target} answers after {answer * 1000:.1f} ms")
    if isinstance(answer, ProbeRefused):
        return Finding("host", POOR, str(answer), "the host is off, or the peer has no way to it")
    advice = "the host is off, does not answer pings, or has no way back through the peer"
    return Finding("host", POOR, f"no answer from {target}", advice)


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


def read_address(text: str) -> IpAddress | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def address_of(prefix: Prefix) -> IpAddress:
    kind = ipaddress.IPv4Address if prefix.version == 4 else ipaddress.IPv6Address
    return kind(prefix.network)


def routed(peer: ConfigPeer, address: IpAddress) -> bool:
    host = Prefix(address.version, int(address), address.max_prefixlen)
    return any(contains(prefix, host) for prefix in peer.allowed_ips)


def _silence_inside(
    config: Config, targets: Sequence[IpAddress], answers: Sequence[float | OSError], dropped: int, name: str
) -> Finding:
    asked = ", ".join(map(str, targets))
    if dropped:
        advice = "add the addresses that the peer sends from to its AllowedIPs here"
        count = "1 answer" if dropped == 1 else f"{dropped} answers"
        found = f"{count} from addresses outside the peer's AllowedIPs, dropped"
        return Finding("ping", BAD, found, advice, name)
    errors = [str(answer) for answer in answers if isinstance(answer, ProbeRefused)]
    if errors:
        advice = "the peer works and has no way to that host: it is off, or the peer does not forward to it"
        return Finding("ping", POOR, f"nobody answers; {errors[0]}", advice, name)
    own = ", ".join(str(address.ip) for address in config.interface.addresses)
    advice = (
        f"either these hosts do not answer pings, or the peer drops our packets because its AllowedIPs for this key do "
        f"not contain {own}, or the way back from those hosts does not lead through the peer, or another host uses our "
        "private key and has just taken the session"
    )
    return Finding("ping", POOR, f"there is a session, but no answer from {asked}", advice, name)


async def _path_mtu(probe: Contact, target: IpAddress, seconds: float, name: str) -> Finding:
    """By echoes of rising size: both ways at once, as the answer is as long as the question."""
    if await _passes(probe, target, probe.mtu, seconds):
        return Finding("path MTU", GOOD, f"packets of {probe.mtu} bytes pass both ways", peer=name)
    low, high = LEAST_MTU, probe.mtu
    if not await _passes(probe, target, low, seconds):
        found = f"a ping of 84 bytes is answered, one of {low} is not"
        return Finding("path MTU", POOR, found, "the host may refuse large pings, or packets are lost", name)
    while high - low > 8:
        middle = (low + high) // 2
        if await _passes(probe, target, middle, seconds):
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
            asked = [_name_server(probe, server, name) for name in (names or (".",))[:MAX_NAMES]]
            for finding in await asyncio.gather(*asked):
                yield finding


async def _name_server(probe: Contact, server: IpAddress, name: str) -> Finding:
    try:
        from wyrmhole.library.diagnosis.name_server import ask_name_server
    except ModuleNotFoundError:
        return Finding("DNS", NOTE, f"{server} was not asked", how_to_install("dns"))
    return await ask_name_server(probe, server, name)

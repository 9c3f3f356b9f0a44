"""Diagnose a tunnel step by step, from the configuration to the path inside.

    configuration - clock - for each peer: endpoint, route, handshake, ping, path MTU - name servers

Each step yields a Finding: the step, what was found, and what to do if it is not good. A step is omitted if a step that
it depends on has failed, so the first failure names the cause. No step needs privileges: the packets are sent by
`library/diagnosis/probe.py`, or by a running tunnel.
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
"""Linux reports a host that is off after three requests for its link address, one second apart."""
HANDSHAKE_SECONDS = 7.0
"""Time for two initiations. The second is sent at most 5.4 s after the first, with the cookie of a peer under load."""
PING_SECONDS = 2.0
LEAST_PING_SECONDS = 0.5
"""Lower limit for the pings of the path MTU, whose limit depends on the host's first answer."""
MAX_PEERS = 16
"""Limit of peers that one run tests. A gateway's file may list thousands."""
MAX_TARGETS = 4
"""Limit of hosts to ping for each peer."""
MAX_NAMES = 16
"""Limit of names to look up in one run."""
LEAST_MTU = 576


class Contact(Protocol):
    """What the steps inside the tunnel use: a probe without an interface, a running tunnel, or a daemon."""

    @property
    def mtu(self) -> int: ...

    def drops(self) -> Mapping[DropReason, int]: ...

    async def handshakes(self, keys: Iterable[PublicKey], seconds: float) -> dict[PublicKey, HandshakeResult]:
        """Start a handshake with every peer without a session, and return the outcomes within `seconds`."""
        ...

    async def echo(self, target: IpAddress, length: int, seconds: float) -> float:
        """Send a ping in a packet of `length` bytes and return the seconds until the answer. Raises OSError."""
        ...

    async def ask(self, target: IpAddress, port: int, payload: bytes, seconds: float) -> bytes:
        """Return the answer of a UDP service. Raises TimeoutError, ProbeRefused, OSError."""
        ...


async def diagnose(config: Config | str | os.PathLike[str], *, names: Sequence[str] = ()) -> AsyncIterator[Finding]:
    """Test everything that a tunnel of this configuration needs. `names` are hosts to look up, or addresses to ping.

    This takes under two seconds if the tunnel works, and at most 45 s otherwise. If a daemon of this host serves the
    same key, its sessions are used. Otherwise the peer receives a handshake from another port of this host, and a
    program or another host with the same key loses its session until it sends again.
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
        yield Finding("daemon", GOOD, f"a daemon serves {daemon.name} with this key: using its sessions")
        try:
            async for finding in _steps(config, daemon, names):
                yield finding
        except OSError as error:
            yield Finding("daemon", BAD, f"the daemon of {daemon.name} stopped answering: {error}")
        return
    if (taken := _listen_port(config.interface.listen_port or 0)) is not None:
        yield taken
    async for finding in _steps(config, None, names):
        yield finding


async def diagnose_running(config: Config, contact: Contact, *, names: Sequence[str] = ()) -> AsyncIterator[Finding]:
    """Diagnose an open tunnel with its own sessions. Its endpoints are tested from this host."""
    for finding in [*_configuration(config), _clock()]:
        yield finding
    async for finding in _steps(config, contact, names):
        yield finding


async def _steps(config: Config, contact: Contact | None, names: Sequence[str]) -> AsyncIterator[Finding]:
    """Run the steps from the endpoints to the name servers. Without a `contact`, use a probe."""
    reachable: dict[ConfigEndpoint, Endpoint] = {}
    peers = config.peers[:MAX_PEERS]
    for finding in await _concurrently(look_outside(config, peer, label(config, peer), reachable) for peer in peers):
        yield finding
    if len(config.peers) > MAX_PEERS:
        yield Finding("peers", NOTE, f"only the first {MAX_PEERS} of {len(config.peers)} peers are tested")
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
        yield Finding("handshake", BAD, f"cannot start the probe: {error}")


async def _concurrently(parts: Iterable[AsyncIterator[Finding]]) -> list[Finding]:
    """Run the parts concurrently, and return their findings in order."""

    async def collect(part: AsyncIterator[Finding]) -> list[Finding]:
        return [finding async for finding in part]

    return [finding for each in await asyncio.gather(*map(collect, parts)) for finding in each]


# Before anything is sent


def _listen_port(port: int) -> Finding | None:
    """Test whether the configured port is free. The probe would not notice, because it uses another port."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("", port))
    except OSError as error:
        advice = f"choose another ListenPort, omit it, or stop the program that has it: `ss -ulnp sport = :{port}`"
        return Finding("listen port", BAD, f"UDP port {port}: {error.strerror}", advice)
    return None


def _configuration(config: Config) -> Iterator[Finding]:
    interface = config.interface
    missing = []
    if interface.private_key is None or interface.private_key.is_zero:
        missing.append(("no PrivateKey is configured", "generate one with `wyrmhole genkey`"))
    if not config.peers:
        missing.append(("no [Peer] is configured", "add a [Peer] with its PublicKey and AllowedIPs"))
    if not interface.addresses:
        advice = "add Address = with the address that the peer has in its AllowedIPs for this key"
        missing.append(("no Address is configured, so nothing can be sent inside the tunnel", advice))
    if missing:
        if len(missing) == 3:
            found = f"{config.source} does not configure a tunnel: it has no key, no address and no peer"
            missing = [(found, "check that this is the right file")]
        for found, advice in missing:
            yield Finding("configuration", BAD, found, advice)
        return
    # Name servers have a separate step, which knows that the library never queries servers outside the tunnel.
    problems = [each for each in lint(config) if each.level in ("error", "warning") and "DNS" not in each.message]
    for finding in problems[:MAX_TARGETS]:
        where = f"line {finding.line}: " if finding.line else ""
        yield Finding("configuration", POOR, f"{where}{finding.message}")
    if not problems:
        yield Finding("configuration", GOOD, f"{config.source}: no problems found")


def _clock() -> Finding:
    if not is_plausible(SystemClock().wall()):
        advice = "set the clock: a peer refuses handshakes with an older timestamp than the last one it accepted"
        return Finding("clock", BAD, "the wall clock is years behind", advice)
    if not is_synchronised():
        advice = "run an NTP client: if the clock steps back, peers refuse handshakes until it has caught up"
        return Finding("clock", NOTE, "plausible, but the kernel does not report it as synchronised", advice)
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
    for finding in await _concurrently(_reach(config, peer, probe) for peer in up):
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
            return Finding("handshake", GOOD, "the peer has connected, there is a session", peer=name)
        advice = "only the peer can start a handshake: run the doctor there"
        return Finding("handshake", NOTE, "the peer has no session", advice, name)
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
        advice = "the peer is running and has the right key, but is under load: try again, or raise its limits"
        return Finding("handshake", BAD, "the peer sent a cookie reply and then nothing", advice, name)
    return _unanswered(result, endpoint, name)


def _unanswered(result: HandshakeResult, endpoint: Endpoint, name: str) -> Finding:
    """Report several possible causes. A peer does not answer unknown senders, so only its log distinguishes them."""
    count = "1 initiation" if result.initiations == 1 else f"{result.initiations} initiations"
    found = f"no answer from {endpoint.emit()} to {count}, and no ICMP error either"
    advice = (
        "one of: (1) the peer's PublicKey here is not its key, or our public key is not a peer there (its log names "
        "the cause: LOG_LEVEL=debug); (2) UDP to that port is filtered on the path, or the host is off; (3) our clock "
        "is behind an earlier handshake, so that the peer refuses this one as a replay"
    )
    return Finding("handshake", BAD, found, advice, name)


async def _reach(config: Config, peer: ConfigPeer, probe: Contact) -> AsyncIterator[Finding]:
    name = label(config, peer)
    targets = ping_targets(config, peer)
    if not targets:
        yield Finding("ping", NOTE, "no host to ping: the AllowedIPs of the peer are networks only", peer=name)
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
    """Whether a packet of this length is answered. Two are sent, because the loss of one does not prove a limit."""
    answers = await asyncio.gather(*(_ping(probe, target, length, seconds) for _ in range(2)))
    return any(isinstance(answer, float) for answer in answers)


async def _host(config: Config, up: Sequence[ConfigPeer], probe: Contact, target: IpAddress) -> Finding:
    """Test an address that the caller wants to reach."""
    owners = [peer for peer in config.peers if routed(peer, target)]
    if not owners:
        advice = f"add {target}/{target.max_prefixlen} to the AllowedIPs of the peer that leads to it"
        return Finding("host", BAD, f"{target} is in no peer's AllowedIPs", advice)
    if not any(address.version == target.version for address in config.interface.addresses):
        found = f"the tunnel has no IPv{target.version} Address, so {target} cannot be pinged"
        return Finding("host", BAD, found, "add one to [Interface], and to the peer's AllowedIPs for this key")
    if not any(peer in up for peer in owners):
        return Finding("host", NOTE, f"{target} was not pinged: its peer has no session")
    answer = await _ping(probe, target, 84, PING_SECONDS)
    if isinstance(answer, float):
        return Finding("host", GOOD, f"{target} answers after {answer * 1000:.1f} ms")
    if isinstance(answer, ProbeRefused):
        return Finding("host", POOR, str(answer), "the host is off, or the peer has no path to it")
    advice = "the host is off, does not answer pings, or has no path back through the peer"
    return Finding("host", POOR, f"no answer from {target}", advice)


def ping_targets(config: Config, peer: ConfigPeer) -> list[IpAddress]:
    """Return single hosts of the peer's AllowedIPs, name servers, and the first hosts of our network (gateways)."""
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
        found = f"dropped {count} from addresses outside the peer's AllowedIPs"
        return Finding("ping", BAD, found, advice, name)
    errors = [str(answer) for answer in answers if isinstance(answer, ProbeRefused)]
    if errors:
        advice = "the peer works but cannot reach that host: it is off, or the peer does not forward packets to it"
        return Finding("ping", POOR, f"no host answers; {errors[0]}", advice, name)
    own = ", ".join(str(address.ip) for address in config.interface.addresses)
    advice = (
        f"either these hosts do not answer pings, or the peer drops our packets because its AllowedIPs for this key do "
        f"not contain {own}, or the path back from those hosts does not lead through the peer, or another host uses "
        "our private key and has just taken the session"
    )
    return Finding("ping", POOR, f"there is a session, but no answer from {asked}", advice, name)


async def _path_mtu(probe: Contact, target: IpAddress, seconds: float, name: str) -> Finding:
    """Find the path MTU by a binary search with pings. They test both directions: an answer is as long as a request."""
    if await _passes(probe, target, probe.mtu, seconds):
        return Finding("path MTU", GOOD, f"packets of {probe.mtu} bytes pass in both directions", peer=name)
    low, high = LEAST_MTU, probe.mtu
    if not await _passes(probe, target, low, seconds):
        found = f"a ping of 84 bytes is answered, a ping of {low} bytes is not"
        return Finding("path MTU", POOR, found, "the host may refuse large pings, or packets are lost", name)
    while high - low > 8:
        middle = (low + high) // 2
        if await _passes(probe, target, middle, seconds):
            low = middle
        else:
            high = middle
    advice = f"set MTU = {low // 8 * 8} in [Interface], on both sides if the peer sends large packets too"
    found = f"packets of more than about {low} bytes are lost (tested up to {probe.mtu}): large transfers will hang"
    return Finding("path MTU", BAD, found, advice, name)


# Names inside


async def _name_servers(
    config: Config, peers: Sequence[ConfigPeer], probe: Contact, names: Sequence[str]
) -> AsyncIterator[Finding]:
    servers = config.interface.dns_servers
    if not servers:
        level, advice = (
            (BAD, "add DNS = ADDRESS to [Interface]") if names else (NOTE, "names inside the tunnel cannot be used")
        )
        yield Finding("DNS", level, "no name server is configured", advice)
        return
    for server in servers:
        if not any(routed(peer, server) for peer in config.peers):
            advice = f"add {server}/{server.max_prefixlen} to the AllowedIPs of the peer that leads to it"
            yield Finding("DNS", BAD, f"{server} is in no peer's AllowedIPs, so it cannot be queried", advice)
        elif any(routed(peer, server) for peer in peers):
            asked = [_name_server(probe, server, name) for name in (names or (".",))[:MAX_NAMES]]
            for finding in await asyncio.gather(*asked):
                yield finding


async def _name_server(probe: Contact, server: IpAddress, name: str) -> Finding:
    try:
        from wyrmhole.library.diagnosis.name_server import ask_name_server
    except ModuleNotFoundError:
        return Finding("DNS", NOTE, f"{server} was not queried", how_to_install("dns"))
    return await ask_name_server(probe, server, name)

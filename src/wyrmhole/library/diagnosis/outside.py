"""The first half of a diagnosis: what this host and the network know about a peer's endpoint, without any key."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from collections.abc import AsyncIterator, Iterator, Mapping

from wyrmhole.control.config.file import Config, ConfigPeer
from wyrmhole.control.config.values import ConfigEndpoint
from wyrmhole.library.diagnosis.finding import BAD, GOOD, NOTE, POOR, Finding
from wyrmhole.library.endpoints import look_up_host
from wyrmhole.net.udp_route import Route, family_of, find_route, why_unreachable
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.messages import DEFAULT_MTU, OVERHEAD_V4, OVERHEAD_V6

RESOLVE_SECONDS = 10.0
ICMP_SECONDS = 1.0
"""A closed port is reported within a round trip; longer than most paths take."""
MAX_ADDRESSES = 8
"""Of one name."""
TRANSLATED = tuple(map(ipaddress.IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")))
"""Addresses that a NAT translates on the way to any other (RFC 1918, RFC 6598)."""
_IP_RECVERR = {socket.AF_INET: (socket.IPPROTO_IP, 11), socket.AF_INET6: (socket.IPPROTO_IPV6, 25)}


async def look_outside(
    config: Config, peer: ConfigPeer, name: str, reachable: dict[ConfigEndpoint, Endpoint]
) -> AsyncIterator[Finding]:
    """Name, route and ICMP errors of one peer's endpoint; what can be tried goes into `reachable`."""
    if peer.endpoint is None:
        advice = "only the peer can begin; if this side should, add Endpoint = HOST:PORT"
        yield Finding("endpoint", NOTE, "no Endpoint is configured", advice, name)
        return
    found = await _addresses(peer.endpoint, name)
    if isinstance(found, Finding):
        yield found
        return
    text = peer.endpoint.emit()
    routes = {endpoint: _route(endpoint) for endpoint in found[:MAX_ADDRESSES]}
    usable = {endpoint: route for endpoint, route in routes.items() if isinstance(route, Route)}
    if not usable:
        yield _no_route(text, routes, name)
        return
    errors = await asyncio.gather(*(icmp_error(endpoint, ICMP_SECONDS) for endpoint in usable))
    silent = [endpoint for endpoint, error in zip(usable, errors, strict=True) if error is None]
    endpoint = silent[0] if silent else next(iter(usable))
    route = usable[endpoint]
    resolved = "" if peer.endpoint.literal else f"{text} is {endpoint.emit()}, "
    yield Finding("endpoint", GOOD, f"{resolved}sent from {route.source}, path MTU {route.mtu}", peer=name)
    for other, error in zip(usable, errors, strict=True):
        if error is not None:
            yield _other_address(other, error, name) if silent else refused(other, error, name)
    if silent:
        for finding in _path(config, peer, endpoint, route, name):
            yield finding
        reachable[peer.endpoint] = endpoint


def _path(config: Config, peer: ConfigPeer, endpoint: Endpoint, route: Route, name: str) -> Iterator[Finding]:
    overhead = OVERHEAD_V6 if endpoint.is_v6 else OVERHEAD_V4
    wanted = (config.interface.mtu or DEFAULT_MTU) + overhead
    if route.mtu < wanted:
        advice = f"set MTU = {route.mtu - overhead} in [Interface]"
        found = f"the way to {endpoint.host} takes {route.mtu} bytes, the tunnel's packets have up to {wanted}"
        yield Finding("MTU", POOR, f"{found}: they are cut up outside", advice, name)
    if not peer.persistent_keepalive and is_translated(route.source) and not is_translated(endpoint.host):
        found = f"{route.source} is a private address: a NAT forgets this side after some minutes of silence"
        advice = "set PersistentKeepalive = 25 if the peer should reach this side at any time"
        yield Finding("keepalive", NOTE, found, advice, name)


def is_translated(address: str) -> bool:
    try:
        parsed = ipaddress.IPv4Address(address)
    except ValueError:
        return False
    return any(parsed in network for network in TRANSLATED)


async def _addresses(endpoint: ConfigEndpoint, name: str) -> list[Endpoint] | Finding:
    """All addresses of an endpoint, or why there are none."""
    if (literal := endpoint.literal) is not None:
        return [literal]
    text = endpoint.emit()
    try:
        async with asyncio.timeout(RESOLVE_SECONDS):
            return await look_up_host(endpoint.host, endpoint.port)
    except TimeoutError:
        advice = "the host's name servers do not answer: see /etc/resolv.conf, or write the address"
        return Finding("endpoint", BAD, f"{text} could not be resolved within {RESOLVE_SECONDS:g} s", advice, name)
    except (OSError, UnicodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "this is not a host name"
        advice = "correct the name, or write the address; the host's own name servers are asked"
        return Finding("endpoint", BAD, f"{text} cannot be resolved: {reason}", advice, name)


def _route(endpoint: Endpoint) -> Route | OSError:
    try:
        return find_route(endpoint)
    except OSError as error:
        return error


def _no_route(text: str, routes: Mapping[Endpoint, Route | OSError], name: str) -> Finding:
    reasons = "; ".join(dict.fromkeys(reason for endpoint in routes if (reason := why_unreachable(endpoint))))
    advice = "see `ip route` and `ip address`; an endpoint of the other address family may work"
    return Finding("route", BAD, f"no way to {text}: {reasons or 'the route is gone'}", advice, name)


def _other_address(endpoint: Endpoint, error: OSError, name: str) -> Finding:
    """One of several addresses fails; another one is used."""
    advice = "a program that takes the first address only may fail: correct the name, or write the address that works"
    return Finding("endpoint", POOR, f"{endpoint.emit()}, of the same name: {error.strerror}", advice, name)


async def icmp_error(endpoint: Endpoint, seconds: float) -> OSError | None:
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


def refused(endpoint: Endpoint, error: OSError, name: str) -> Finding:
    where = endpoint.emit()
    if error.errno == errno.ECONNREFUSED:
        advice = "start the tunnel there, or correct the port: `wg show` on the other side has its listening port"
        return Finding("route", BAD, f"{where} answers that nothing listens on this UDP port", advice, name)
    if error.errno in (errno.EPERM, errno.EACCES):
        advice = "a firewall on this host forbids it: see `nft list ruleset`"
        return Finding("route", BAD, f"this host refuses to send to {where}: {error.strerror}", advice, name)
    advice = "the host is down, the address is wrong, or a firewall on the way rejects UDP to it"
    return Finding("route", BAD, f"{where} cannot be reached: {error.strerror}", advice, name)

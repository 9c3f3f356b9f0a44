"""The first half of a diagnosis, which needs no keys: name, route and ICMP errors of a peer's endpoint."""

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
"""Seconds to wait for the ICMP error of a closed port. This exceeds the round trip of most paths."""
MAX_ADDRESSES = 8
"""Limit of addresses that are tested for one name."""
TRANSLATED = tuple(map(ipaddress.IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")))
"""Private addresses, which a NAT translates on the path to public ones (RFC 1918, RFC 6598)."""
_IP_RECVERR = {socket.AF_INET: (socket.IPPROTO_IP, 11), socket.AF_INET6: (socket.IPPROTO_IPV6, 25)}


async def look_outside(
    config: Config, peer: ConfigPeer, name: str, reachable: dict[ConfigEndpoint, Endpoint]
) -> AsyncIterator[Finding]:
    """Examine one peer's endpoint. Add it to `reachable` if a handshake can be tried."""
    if peer.endpoint is None:
        advice = "only the peer can start a handshake; to start one from here, add Endpoint = HOST:PORT"
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
    resolved = "" if peer.endpoint.literal else f"{text} resolves to {endpoint.emit()}, "
    yield Finding("endpoint", GOOD, f"{resolved}source address {route.source}, path MTU {route.mtu}", peer=name)
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
        found = f"the path to {endpoint.host} has MTU {route.mtu}, the tunnel's packets have up to {wanted} bytes"
        yield Finding("MTU", POOR, f"{found}: they are fragmented outside", advice, name)
    if not peer.persistent_keepalive and is_translated(route.source) and not is_translated(endpoint.host):
        found = f"{route.source} is a private address: a NAT forgets this side after a few minutes of silence"
        advice = "set PersistentKeepalive = 25 if the peer must be able to reach this side at any time"
        yield Finding("keepalive", NOTE, found, advice, name)


def is_translated(address: str) -> bool:
    try:
        parsed = ipaddress.IPv4Address(address)
    except ValueError:
        return False
    return any(parsed in network for network in TRANSLATED)


async def _addresses(endpoint: ConfigEndpoint, name: str) -> list[Endpoint] | Finding:
    """Return all addresses of an endpoint, or a finding if there are none."""
    if (literal := endpoint.literal) is not None:
        return [literal]
    text = endpoint.emit()
    try:
        async with asyncio.timeout(RESOLVE_SECONDS):
            return await look_up_host(endpoint.host, endpoint.port)
    except TimeoutError:
        advice = "the host's name servers do not answer: check /etc/resolv.conf, or use the address"
        return Finding("endpoint", BAD, f"{text} could not be resolved within {RESOLVE_SECONDS:g} s", advice, name)
    except (OSError, UnicodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "not a valid host name"
        advice = "correct the name, or use the address (the host's own name servers resolve it)"
        return Finding("endpoint", BAD, f"{text} cannot be resolved: {reason}", advice, name)


def _route(endpoint: Endpoint) -> Route | OSError:
    try:
        return find_route(endpoint)
    except OSError as error:
        return error


def _no_route(text: str, routes: Mapping[Endpoint, Route | OSError], name: str) -> Finding:
    reasons = "; ".join(dict.fromkeys(reason for endpoint in routes if (reason := why_unreachable(endpoint))))
    advice = "check `ip route` and `ip address`; an endpoint of the other address family may work"
    return Finding("route", BAD, f"no route to {text}: {reasons or 'the route has been removed'}", advice, name)


def _other_address(endpoint: Endpoint, error: OSError, name: str) -> Finding:
    """Report one of several addresses that fails while another one is used."""
    advice = "a program that tries only the first address may fail: correct the name, or use the address that works"
    found = f"{endpoint.emit()}, another address of the name, fails: {error.strerror}"
    return Finding("endpoint", POOR, found, advice, name)


async def icmp_error(endpoint: Endpoint, seconds: float) -> OSError | None:
    """Send a datagram that no peer answers, and return the network's ICMP error. None if there is none in time."""
    family = family_of(endpoint)
    loop = asyncio.get_running_loop()
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        # Without this option, "host unreachable" and "network unreachable" are not reported to a UDP socket.
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
        advice = "start the tunnel there, or correct the port: `wg show` on the peer prints its listening port"
        return Finding("route", BAD, f"{where} reports that nothing listens on this UDP port", advice, name)
    if error.errno in (errno.EPERM, errno.EACCES):
        advice = "a firewall on this host forbids it: check `nft list ruleset`"
        return Finding("route", BAD, f"this host refuses to send to {where}: {error.strerror}", advice, name)
    advice = "the host is down, the address is wrong, or a firewall on the path rejects UDP to it"
    return Finding("route", BAD, f"{where} cannot be reached: {error.strerror}", advice, name)

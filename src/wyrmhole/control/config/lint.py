"""What is wrong, doubtful or worth knowing about a configuration file that can be read.

A finding is an `error` when something will not work or a secret is not secret, a `warning` when it most likely is not
what was meant, and a `note` when it surprises people. The absence of an optional key is none of these. A value whose
form is doubtful is shown as it should be written.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from wyrmhole.control.config.file import BOM_SENTENCE, Config, ConfigPeer
from wyrmhole.control.config.lines import KEYS
from wyrmhole.control.config.values import MIN_MTU_V6, ConfigEndpoint, read_prefix, remove_blanks
from wyrmhole.protocol.keys import PrivateKey
from wyrmhole.wire.prefix import Prefix

WIDEST_MTU = 1440
"""1500 less IPv4 20, UDP 8, header 16, tag 16: more than this is cut up on nearly every path."""

LONG_KEEPALIVE = 120
"""Seconds: RFC 4787 asks translators to remember UDP for two minutes, many do for 30 s."""

PUBLISHED_KEYS = frozenset(
    {
        "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=",
        "oK56DE9Ue9zK76rAc8pBl6opph+1v36lm7cXXsQKrQM=",
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    }
)
"""Private keys of the manual pages of wg(8) and wg-quick(8), and the all-zero key."""

MAX_FINDINGS = 1000


@dataclass(frozen=True, slots=True)
class Finding:
    line: int
    """0: the file as a whole."""
    level: str
    """error, warning or note."""
    message: str


Check = Callable[[Config], Iterator[Finding]]


def lint(config: Config) -> list[Finding]:
    """Sorted by line, at most MAX_FINDINGS."""
    found = (finding for check in CHECKS for finding in check(config))
    return sorted(found, key=lambda finding: (finding.line, finding.level))[:MAX_FINDINGS]


# Keys


def _check_own_key(config: Config) -> Iterator[Finding]:
    interface = config.interface
    line = config.line_of(interface, "PrivateKey")
    if interface.private_key is None:
        sets_later = any("private-key" in hook for hook in (*interface.pre_up, *interface.post_up))
        if not sets_later:
            yield Finding(line, "error", "no PrivateKey: make one with `wyrmhole genkey`")
    elif interface.private_key.base64() in {PrivateKey.from_base64(key).base64() for key in PUBLISHED_KEYS}:
        yield Finding(line, "error", "the PrivateKey is printed in manuals: make another with `wyrmhole genkey`")


def _check_peer_keys(config: Config) -> Iterator[Finding]:
    key = config.interface.private_key
    own = None if key is None or key.is_zero else key.public_key()
    seen: dict[object, int] = {}
    for peer in config.peers:
        line = config.line_of(peer, "PublicKey")
        if peer.public_key == own:
            yield Finding(line, "error", "this peer has our own key: it will be left out")
        if peer.public_key.is_zero:
            yield Finding(line, "error", "an all-zero PublicKey is invalid: nobody holds its private key")
        if (first := seen.setdefault(peer.public_key, line)) != line:
            yield Finding(line, "error", f"the same PublicKey as in line {first}: the later section wins")


def _check_preshared_keys(config: Config) -> Iterator[Finding]:
    seen: dict[object, int] = {}
    for peer in config.peers:
        if peer.preshared_key is None:
            continue
        line = config.line_of(peer, "PresharedKey")
        if peer.preshared_key.is_zero:
            yield Finding(line, "warning", "an all-zero PresharedKey means no key: leave the line out")
        elif (first := seen.setdefault(peer.preshared_key, line)) != line:
            yield Finding(line, "warning", f"the same PresharedKey as in line {first}: give each pair its own")


def _check_repeated(config: Config) -> Iterator[Finding]:
    for line, key in config.repeated_keys():
        yield Finding(line, "warning", f"{key} is repeated below, and only the last line counts")


def _check_sections(config: Config) -> Iterator[Finding]:
    first = config.line_of(config.interface)
    for line in config.repeated_interfaces():
        yield Finding(line, "warning", f"a second [Interface] adds to that of line {first}: put its keys there")


# Forms: what wg(8) or wg-quick(8) accepts, but few people mean


def _check_form(config: Config) -> Iterator[Finding]:
    if config.has_byte_order_mark:
        yield Finding(1, "warning", f"the file {BOM_SENTENCE}")


def _check_numbers(config: Config) -> Iterator[Finding]:
    for key in ("ListenPort", "FwMark", "PersistentKeepalive"):
        read = KEYS["peer" if key == "PersistentKeepalive" else "interface"][key.lower()].read
        for line, value in config.values_of(key):
            text = remove_blanks(value)
            is_plain = text.isdigit() and (text == "0" or not text.startswith("0"))
            if not is_plain and text.lower() != "off" and not text.startswith("0x"):
                yield Finding(line, "warning", f"{key} = {text} is read as {read(text)}: write {key} = {read(text)}")


def _check_endpoint_forms(config: Config) -> Iterator[Finding]:
    for line, value in config.values_of("Endpoint"):
        text = remove_blanks(value)
        host, _, port = text.rpartition(":")
        endpoint = ConfigEndpoint.parse(text)
        wanted = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
        if host != wanted or port != str(endpoint.port):
            usual = endpoint.emit()
            yield Finding(line, "warning", f"Endpoint = {text} is read as {usual}: write Endpoint = {usual}")


def _check_table(config: Config) -> Iterator[Finding]:
    table, line = config.interface.table, config.line_of(config.interface, "Table")
    if isinstance(table, str) and table not in ("auto", "off") and table.lower() in ("auto", "off"):
        message = f"Table = {table} is a table of that name for wg-quick: write Table = {table.lower()}"
        yield Finding(line, "error", message)


def _check_empty(config: Config) -> Iterator[Finding]:
    for key in ("PreUp", "PostUp", "PreDown", "PostDown", "Address", "DNS", "MTU", "Table"):
        for line, value in config.values_of(key):
            if not value:
                yield Finding(line, "note", f"{key} is empty, as if the line were not there")
    for line, value in config.values_of("AllowedIPs"):
        if not value:
            yield Finding(line, "warning", "AllowedIPs is empty, which wg refuses: leave the line out")


# Allowed ips


def _label(config: Config, peer: ConfigPeer) -> str:
    return peer.name or f"the peer of line {config.line_of(peer)}"


def _check_overlaps(config: Config) -> Iterator[Finding]:
    """Sorted so that what contains a prefix comes before it, one stack of containers is enough: O(n log n)."""
    entries = sorted(
        ((prefix, index) for index, peer in enumerate(config.peers) for prefix in peer.allowed_ips),
        key=lambda entry: (entry[0], entry[1]),
    )
    containers: list[tuple[Prefix, int]] = []
    for prefix, index in entries:
        while containers and not contains(containers[-1][0], prefix):
            containers.pop()
        if containers:
            yield from _overlap(config, containers[-1], (prefix, index))
        containers.append((prefix, index))


def contains(outer: Prefix, inner: Prefix) -> bool:
    if outer.version != inner.version or outer.length > inner.length:
        return False
    shift = outer.bits - outer.length
    return outer.network >> shift == inner.network >> shift


def _overlap(config: Config, outer: tuple[Prefix, int], inner: tuple[Prefix, int]) -> Iterator[Finding]:
    peer = config.peers[inner[1]]
    line = config.line_of(peer, "AllowedIPs")
    text, other = inner[0].emit(), _label(config, config.peers[outer[1]])
    if outer[1] == inner[1]:
        if outer[0] == inner[0]:
            yield Finding(line, "note", f"{text} is repeated for the same peer")
    elif outer[0] == inner[0]:
        yield Finding(line, "error", f"{text} belongs to {other} too: only the later peer gets it")
    elif outer[0].length:
        yield Finding(line, "note", f"{text} lies within {outer[0].emit()} of {other}: the narrower one goes first")


def _check_host_bits(config: Config) -> Iterator[Finding]:
    for line, value in config.values_of("AllowedIPs"):
        for item in remove_blanks(value).split(","):
            address, slash, length = item.partition("/")
            if not slash:
                continue
            prefix = read_prefix(item)
            if int(ipaddress.ip_address(address)) != prefix.network:
                yield Finding(line, "warning", f"{item} means {prefix.emit()}: bits behind the length are ignored")
            elif length != str(prefix.length):
                yield Finding(line, "warning", f"{item} is read as {prefix.emit()}: write {prefix.emit()}")


def _check_reach(config: Config) -> Iterator[Finding]:
    for peer in config.peers:
        if not peer.allowed_ips:
            line = config.line_of(peer)
            yield Finding(line, "warning", "no AllowedIPs: this peer can neither send nor receive packets")
        if peer.endpoint is None and config.interface.listen_port in (None, 0):
            line = config.line_of(peer)
            yield Finding(line, "warning", "no Endpoint here and no ListenPort above: neither side can find the other")


# Routes


def _defaults(config: Config) -> set[int]:
    return {prefix.version for peer in config.peers for prefix in peer.allowed_ips if prefix.length == 0}


def _check_loops(config: Config) -> Iterator[Finding]:
    """A default route is safe, by the mark; a route that merely contains the endpoint swallows its own packets."""
    if config.interface.table not in (None, "auto") or _defaults(config):
        return
    routes = {prefix for peer in config.peers for prefix in peer.allowed_ips}
    lengths = sorted({(prefix.version, prefix.length) for prefix in routes})
    for peer in config.peers:
        literal = peer.endpoint.literal if peer.endpoint is not None else None
        if literal is None:
            continue
        version, bits, number = 6 if literal.is_v6 else 4, 128 if literal.is_v6 else 32, int(ip_address(literal.host))
        # By length, so that the cost does not grow with the number of routes for each peer.
        containers = (
            Prefix(version, number >> bits - length << bits - length, length) for of, length in lengths if of == version
        )
        if prefix := next((prefix for prefix in containers if prefix in routes), None):
            line = config.line_of(peer, "Endpoint")
            message = f"the endpoint lies within the allowed {prefix.emit()}: its packets would go into the tunnel"
            yield Finding(line, "error", message)


def _check_families(config: Config) -> Iterator[Finding]:
    defaults, own = _defaults(config), {address.version for address in config.interface.addresses}
    line = config.line_of(config.interface, "Address")
    for version in sorted(defaults - own if own else ()):
        zero = "0.0.0.0/0" if version == 4 else "::/0"
        yield Finding(
            line, "warning", f"{zero} goes into the tunnel, but there is no IPv{version} Address to send from"
        )
    if defaults == {4}:
        peer = next(peer for peer in config.peers if any(prefix.length == 0 for prefix in peer.allowed_ips))
        line = config.line_of(peer, "AllowedIPs")
        yield Finding(line, "note", "0.0.0.0/0 without ::/0: IPv6 goes on outside the tunnel")


def _check_addresses(config: Config) -> Iterator[Finding]:
    interface = config.interface
    line = config.line_of(interface, "Address")
    if not interface.addresses:
        yield Finding(line, "note", "no Address: fine for setconf, but `up` and the library need one")
    single = {(p.version, p.network): peer for peer in config.peers for p in peer.allowed_ips if p.length == p.bits}
    for address in interface.addresses:
        network = address.network
        if (address.version, int(address.ip)) in single:
            peer = single[address.version, int(address.ip)]
            yield Finding(line, "error", f"{address.ip} is our own address and an allowed ip of {_label(config, peer)}")
        if network.prefixlen < network.max_prefixlen - 1 and address.ip == network.network_address:
            yield Finding(line, "warning", f"{address} is the address of the network, not of a host in it")
    if len(set(interface.addresses)) < len(interface.addresses):
        yield Finding(line, "error", "an Address is repeated, which the kernel refuses")


def _check_mtu(config: Config) -> Iterator[Finding]:
    mtu, line = config.interface.mtu, config.line_of(config.interface, "MTU")
    if mtu is None:
        return
    uses_v6 = any(address.version == 6 for address in config.interface.addresses)
    if mtu < MIN_MTU_V6 and uses_v6:
        yield Finding(line, "error", f"MTU {mtu}: IPv6 needs at least {MIN_MTU_V6} and there is an IPv6 Address")
    elif mtu > WIDEST_MTU:
        yield Finding(line, "warning", f"MTU {mtu}: a path of 1500 fragments or loses packets above {WIDEST_MTU}")
    elif mtu < 576:
        yield Finding(line, "warning", f"MTU {mtu}: many programs need at least 576")


# Names


def _check_dns(config: Config) -> Iterator[Finding]:
    interface, line = config.interface, config.line_of(config.interface, "DNS")
    if interface.dns_domains and not interface.dns_servers:
        yield Finding(line, "warning", "wg-quick ignores search domains without a server")
    prefixes = [prefix for peer in config.peers for prefix in peer.allowed_ips]
    for server in interface.dns_servers:
        host = Prefix(server.version, int(server), server.max_prefixlen)
        if not any(contains(prefix, host) for prefix in prefixes):
            yield Finding(line, "warning", f"DNS {server} is in no AllowedIPs: it is asked outside the tunnel")
    if interface.dns_servers and prefixes and not _defaults(config):
        message = (
            "DNS without a default route: every name this host looks up goes to these servers, not only the tunnel's"
        )
        yield Finding(line, "note", message)


def _check_endpoints(config: Config) -> Iterator[Finding]:
    seen: dict[object, int] = {}
    for peer in config.peers:
        if peer.endpoint is None:
            continue
        line = config.line_of(peer, "Endpoint")
        if (first := seen.setdefault(peer.endpoint, line)) != line:
            yield Finding(line, "warning", f"the same Endpoint as in line {first}: one address and port is one peer")
        if re.match(r"fe[89ab].:", peer.endpoint.host.lower()) and "%" not in peer.endpoint.host:
            yield Finding(line, "error", "a link-local address needs its interface: [fe80::1%eth0]:51820")
        literal = peer.endpoint.literal
        if literal is not None and ipaddress.ip_address(literal.host).is_unspecified:
            yield Finding(line, "error", f"{literal.host} is not the address of a host")
        if peer.endpoint.port == 0:
            yield Finding(line, "error", "port 0 reaches nobody: write the port that the peer listens on")


def _check_keepalive(config: Config) -> Iterator[Finding]:
    for peer in config.peers:
        line = config.line_of(peer, "PersistentKeepalive")
        if peer.persistent_keepalive and peer.persistent_keepalive > LONG_KEEPALIVE:
            seconds = peer.persistent_keepalive
            yield Finding(line, "note", f"{seconds} s is longer than firewalls remember a flow: 25 is usual")


# wg-quick


def _check_hooks(config: Config) -> Iterator[Finding]:
    for line, key in config.commented_hooks():
        message = f"{key} holds a #: the shell gets it, but wg-quick before 1.0.20260223 ends the command there"
        yield Finding(line, "note", message)


def _check_save(config: Config) -> Iterator[Finding]:
    if config.interface.save_config:
        line = config.line_of(config.interface, "SaveConfig")
        message = "SaveConfig: `down` writes the running state over this file, edits made meanwhile included"
        yield Finding(line, "note", message)


CHECKS: tuple[Check, ...] = (
    _check_own_key,
    _check_peer_keys,
    _check_preshared_keys,
    _check_repeated,
    _check_sections,
    _check_form,
    _check_numbers,
    _check_endpoint_forms,
    _check_table,
    _check_empty,
    _check_overlaps,
    _check_host_bits,
    _check_reach,
    _check_loops,
    _check_families,
    _check_addresses,
    _check_mtu,
    _check_dns,
    _check_endpoints,
    _check_keepalive,
    _check_hooks,
    _check_save,
)

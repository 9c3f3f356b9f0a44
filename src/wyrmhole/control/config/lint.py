"""Check a readable configuration file for mistakes.

A finding is an `error` if something will not work or a secret is exposed, a `warning` if a setting is probably not
intended, and a `note` if its effect often surprises people. A missing optional key is not a finding. For a value in a
doubtful form, the message shows how to write it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from wyrmhole.control.config.file import BOM_SENTENCE, Config, ConfigPeer
from wyrmhole.control.config.lines import KEYS
from wyrmhole.control.config.values import ConfigEndpoint, read_prefix, remove_blanks
from wyrmhole.protocol.keys import PrivateKey
from wyrmhole.wire.ip import IPV6_MINIMUM_MTU
from wyrmhole.wire.prefix import Prefix

WIDEST_MTU = 1440
"""1500 less IPv4 20, UDP 8, header 16, tag 16. Larger packets are fragmented on nearly every path."""

LONG_KEEPALIVE = 120
"""Seconds. RFC 4787 requires NATs to keep UDP mappings for two minutes; many keep them for 30 s."""

PUBLISHED_KEYS = frozenset(
    {
        "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=",
        "oK56DE9Ue9zK76rAc8pBl6opph+1v36lm7cXXsQKrQM=",
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    }
)
"""The private keys in the manual pages of wg(8) and wg-quick(8), and the all-zero key."""

MAX_FINDINGS = 1000


@dataclass(frozen=True, slots=True)
class Remark:
    line: int
    """0 stands for the file as a whole."""
    level: str
    """error, warning or note."""
    message: str


Check = Callable[[Config], Iterator[Remark]]


def lint(config: Config) -> list[Remark]:
    """Return at most MAX_FINDINGS findings, sorted by line."""
    found = (finding for check in CHECKS for finding in check(config))
    return sorted(found, key=lambda finding: (finding.line, finding.level))[:MAX_FINDINGS]


# Keys


def _check_own_key(config: Config) -> Iterator[Remark]:
    interface = config.interface
    line = config.line_of(interface, "PrivateKey")
    if interface.private_key is None:
        sets_later = any("private-key" in hook for hook in (*interface.pre_up, *interface.post_up))
        if not sets_later:
            yield Remark(line, "error", "no PrivateKey: create one with `wyrmhole genkey`")
    elif interface.private_key.base64() in {PrivateKey.from_base64(key).base64() for key in PUBLISHED_KEYS}:
        yield Remark(line, "error", "this PrivateKey is published in a manual: create another with `wyrmhole genkey`")


def _check_peer_keys(config: Config) -> Iterator[Remark]:
    key = config.interface.private_key
    own = None if key is None or key.is_zero else key.public_key()
    seen: dict[object, int] = {}
    for peer in config.peers:
        line = config.line_of(peer, "PublicKey")
        if peer.public_key == own:
            yield Remark(line, "error", "this peer has our own public key, so it will be ignored")
        if peer.public_key.is_zero:
            yield Remark(line, "error", "an all-zero PublicKey is invalid: nobody holds its private key")
        if (first := seen.setdefault(peer.public_key, line)) != line:
            yield Remark(line, "error", f"the same PublicKey as in line {first}: the later section wins")


def _check_preshared_keys(config: Config) -> Iterator[Remark]:
    seen: dict[object, int] = {}
    for peer in config.peers:
        if peer.preshared_key is None:
            continue
        line = config.line_of(peer, "PresharedKey")
        if peer.preshared_key.is_zero:
            yield Remark(line, "warning", "an all-zero PresharedKey means no key: remove the line")
        elif (first := seen.setdefault(peer.preshared_key, line)) != line:
            yield Remark(line, "warning", f"the same PresharedKey as in line {first}: give each pair its own")


def _check_repeated(config: Config) -> Iterator[Remark]:
    for line, key in config.repeated_keys():
        yield Remark(line, "warning", f"{key} is repeated below, and only the last line counts")


def _check_sections(config: Config) -> Iterator[Remark]:
    first = config.line_of(config.interface)
    for line in config.repeated_interfaces():
        yield Remark(line, "warning", f"a second [Interface] section extends the one in line {first}: merge them")


# Forms that wg(8) or wg-quick(8) accepts, but that are rarely intended


def _check_form(config: Config) -> Iterator[Remark]:
    if config.has_byte_order_mark:
        yield Remark(1, "warning", f"the file {BOM_SENTENCE}")


def _check_numbers(config: Config) -> Iterator[Remark]:
    for key in ("ListenPort", "FwMark", "PersistentKeepalive"):
        read = KEYS["peer" if key == "PersistentKeepalive" else "interface"][key.lower()].read
        for line, value in config.values_of(key):
            text = remove_blanks(value)
            is_plain = text.isdigit() and (text == "0" or not text.startswith("0"))
            if not is_plain and text.lower() != "off" and not text.startswith("0x"):
                yield Remark(line, "warning", f"{key} = {text} is read as {read(text)}: write {key} = {read(text)}")


def _check_endpoint_forms(config: Config) -> Iterator[Remark]:
    for line, value in config.values_of("Endpoint"):
        text = remove_blanks(value)
        host, _, port = text.rpartition(":")
        endpoint = ConfigEndpoint.parse(text)
        wanted = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
        if host != wanted or port != str(endpoint.port):
            usual = endpoint.emit()
            yield Remark(line, "warning", f"Endpoint = {text} is read as {usual}: write Endpoint = {usual}")


def _check_table(config: Config) -> Iterator[Remark]:
    table, line = config.interface.table, config.line_of(config.interface, "Table")
    if isinstance(table, str) and table not in ("auto", "off") and table.lower() in ("auto", "off"):
        message = f"wg-quick reads Table = {table} as the name of a table: write Table = {table.lower()}"
        yield Remark(line, "error", message)


def _check_empty(config: Config) -> Iterator[Remark]:
    for key in ("PreUp", "PostUp", "PreDown", "PostDown", "Address", "DNS", "MTU", "Table"):
        for line, value in config.values_of(key):
            if not value:
                yield Remark(line, "note", f"{key} is empty and has no effect")
    for line, value in config.values_of("AllowedIPs"):
        if not value:
            yield Remark(line, "warning", "AllowedIPs is empty, which wg refuses: remove the line")


# Allowed ips


def _label(config: Config, peer: ConfigPeer) -> str:
    return peer.name or f"the peer in line {config.line_of(peer)}"


def _check_overlaps(config: Config) -> Iterator[Remark]:
    """Find overlapping prefixes in O(n log n): sorted, each prefix follows its containers, so one stack is enough."""
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


def _overlap(config: Config, outer: tuple[Prefix, int], inner: tuple[Prefix, int]) -> Iterator[Remark]:
    peer = config.peers[inner[1]]
    line = config.line_of(peer, "AllowedIPs")
    text, other = inner[0].emit(), _label(config, config.peers[outer[1]])
    if outer[1] == inner[1]:
        if outer[0] == inner[0]:
            yield Remark(line, "note", f"{text} is repeated for the same peer")
    elif outer[0] == inner[0]:
        yield Remark(line, "error", f"{text} is also an allowed ip of {other}: only the later peer gets it")
    elif outer[0].length:
        yield Remark(line, "note", f"{text} lies within {outer[0].emit()} of {other}: the longer prefix wins")


def _check_host_bits(config: Config) -> Iterator[Remark]:
    for line, value in config.values_of("AllowedIPs"):
        for item in remove_blanks(value).split(","):
            address, slash, length = item.partition("/")
            if not slash:
                continue
            prefix = read_prefix(item)
            if int(ipaddress.ip_address(address)) != prefix.network:
                yield Remark(
                    line, "warning", f"{item} means {prefix.emit()}: bits beyond the prefix length are ignored"
                )
            elif length != str(prefix.length):
                yield Remark(line, "warning", f"{item} is read as {prefix.emit()}: write {prefix.emit()}")


def _check_reach(config: Config) -> Iterator[Remark]:
    for peer in config.peers:
        if not peer.allowed_ips:
            line = config.line_of(peer)
            yield Remark(line, "warning", "no AllowedIPs: this peer can neither send nor receive packets")
        if peer.endpoint is None and config.interface.listen_port in (None, 0):
            line = config.line_of(peer)
            yield Remark(
                line, "warning", "no Endpoint here and no ListenPort in [Interface]: neither side can find the other"
            )


# Routes


def _defaults(config: Config) -> set[int]:
    return {prefix.version for peer in config.peers for prefix in peer.allowed_ips if prefix.length == 0}


def _check_loops(config: Config) -> Iterator[Remark]:
    """Find routes that contain an endpoint, so that its packets loop. A default route is safe because of the mark."""
    if config.interface.table not in (None, "auto") or _defaults(config):
        return
    routes = {prefix for peer in config.peers for prefix in peer.allowed_ips}
    lengths = sorted({(prefix.version, prefix.length) for prefix in routes})
    for peer in config.peers:
        literal = peer.endpoint.literal if peer.endpoint is not None else None
        if literal is None:
            continue
        version, bits, number = 6 if literal.is_v6 else 4, 128 if literal.is_v6 else 32, int(ip_address(literal.host))
        # One look-up per prefix length, so that the cost per peer does not grow with the number of routes.
        containers = (
            Prefix(version, number >> bits - length << bits - length, length) for of, length in lengths if of == version
        )
        if prefix := next((prefix for prefix in containers if prefix in routes), None):
            line = config.line_of(peer, "Endpoint")
            message = f"the endpoint lies within AllowedIPs {prefix.emit()}: its packets would go into the tunnel"
            yield Remark(line, "error", message)


def _check_families(config: Config) -> Iterator[Remark]:
    defaults, own = _defaults(config), {address.version for address in config.interface.addresses}
    line = config.line_of(config.interface, "Address")
    for version in sorted(defaults - own if own else ()):
        zero = "0.0.0.0/0" if version == 4 else "::/0"
        yield Remark(line, "warning", f"{zero} goes into the tunnel, but there is no IPv{version} Address to send from")
    if defaults == {4}:
        peer = next(peer for peer in config.peers if any(prefix.length == 0 for prefix in peer.allowed_ips))
        line = config.line_of(peer, "AllowedIPs")
        yield Remark(line, "note", "0.0.0.0/0 without ::/0: IPv6 stays outside the tunnel")


def _check_addresses(config: Config) -> Iterator[Remark]:
    interface = config.interface
    line = config.line_of(interface, "Address")
    if not interface.addresses:
        yield Remark(line, "note", "no Address: fine for setconf, but `up` and the library need one")
    single = {(p.version, p.network): peer for peer in config.peers for p in peer.allowed_ips if p.length == p.bits}
    for address in interface.addresses:
        network = address.network
        if (address.version, int(address.ip)) in single:
            peer = single[address.version, int(address.ip)]
            yield Remark(
                line, "error", f"{address.ip} is both our own Address and an allowed ip of {_label(config, peer)}"
            )
        if network.prefixlen < network.max_prefixlen - 1 and address.ip == network.network_address:
            yield Remark(line, "warning", f"{address} is the address of a network, not of a host")
    if len(set(interface.addresses)) < len(interface.addresses):
        yield Remark(line, "error", "an Address is repeated, which the kernel refuses")


def _check_mtu(config: Config) -> Iterator[Remark]:
    mtu, line = config.interface.mtu, config.line_of(config.interface, "MTU")
    if mtu is None:
        return
    uses_v6 = any(address.version == 6 for address in config.interface.addresses)
    if mtu < IPV6_MINIMUM_MTU and uses_v6:
        yield Remark(line, "error", f"MTU {mtu}: IPv6 needs at least {IPV6_MINIMUM_MTU} and there is an IPv6 Address")
    elif mtu > WIDEST_MTU:
        yield Remark(
            line, "warning", f"MTU {mtu}: a path with MTU 1500 fragments or drops packets above {WIDEST_MTU} bytes"
        )
    elif mtu < 576:
        yield Remark(line, "warning", f"MTU {mtu}: many programs need at least 576")


# Names


def _check_dns(config: Config) -> Iterator[Remark]:
    interface, line = config.interface, config.line_of(config.interface, "DNS")
    if interface.dns_domains and not interface.dns_servers:
        yield Remark(line, "warning", "wg-quick ignores search domains without a server")
    prefixes = [prefix for peer in config.peers for prefix in peer.allowed_ips]
    for server in interface.dns_servers:
        host = Prefix(server.version, int(server), server.max_prefixlen)
        if not any(contains(prefix, host) for prefix in prefixes):
            yield Remark(line, "warning", f"DNS {server} is in no AllowedIPs: it is asked outside the tunnel")
    if interface.dns_servers and prefixes and not _defaults(config):
        message = (
            "DNS without a default route: this host asks these servers for all names, not only for those in the tunnel"
        )
        yield Remark(line, "note", message)


def _check_endpoints(config: Config) -> Iterator[Remark]:
    seen: dict[object, int] = {}
    for peer in config.peers:
        if peer.endpoint is None:
            continue
        line = config.line_of(peer, "Endpoint")
        if (first := seen.setdefault(peer.endpoint, line)) != line:
            yield Remark(
                line, "warning", f"the same Endpoint as in line {first}: an address and port can reach only one peer"
            )
        if re.match(r"fe[89ab].:", peer.endpoint.host.lower()) and "%" not in peer.endpoint.host:
            yield Remark(line, "error", "a link-local address needs its interface: [fe80::1%eth0]:51820")
        literal = peer.endpoint.literal
        if literal is not None and ipaddress.ip_address(literal.host).is_unspecified:
            yield Remark(line, "error", f"{literal.host} is not the address of a host")
        if peer.endpoint.port == 0:
            yield Remark(line, "error", "port 0 is not usable: write the port that the peer listens on")


def _check_keepalive(config: Config) -> Iterator[Remark]:
    for peer in config.peers:
        line = config.line_of(peer, "PersistentKeepalive")
        if peer.persistent_keepalive and peer.persistent_keepalive > LONG_KEEPALIVE:
            seconds = peer.persistent_keepalive
            yield Remark(line, "note", f"{seconds} s is longer than many firewalls remember a UDP flow: 25 is usual")


# wg-quick


def _check_hooks(config: Config) -> Iterator[Remark]:
    for line, key in config.commented_hooks():
        message = f"{key} contains a #: the shell gets it, but wg-quick before 1.0.20260223 ends the command there"
        yield Remark(line, "note", message)


def _check_save(config: Config) -> Iterator[Remark]:
    if config.interface.save_config:
        line = config.line_of(config.interface, "SaveConfig")
        message = "SaveConfig: `down` overwrites this file with the running state and discards edits made since `up`"
        yield Remark(line, "note", message)


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

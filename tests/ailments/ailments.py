"""Ways in which a tunnel fails to work: what breaks it, and the words of which the text for people must have one.

`cause` are regular expressions, any of which names the cause; `never` are those of other causes that the text must not
name as certain. `doctor`, `library` and `up` may each know less than another: `blind` names those that cannot know.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.ailments.ward import OUTER_PORT, Ward
from tests.netns.node import Key, generate_psk

DROP = "table inet ailment {{\n chain c {{\n type filter hook {hook} priority 0; {rule}\n }}\n}}"
KEYS = r"PublicKey here is not its key|keys match on both sides|public key is not a peer there"
FILTERED = r"UDP to that port is filtered|UDP is not filtered"


@dataclass(frozen=True)
class Ailment:
    name: str
    apply: Callable[[Ward], object]
    cause: tuple[str, ...]
    never: tuple[str, ...] = ()
    blind: frozenset[str] = frozenset()


def set_attribute(**values: object) -> Callable[[Ward], None]:
    def apply(ward: Ward) -> None:
        for name, value in values.items():
            setattr(ward, name, value)

    return apply


def wrong_peer_key(ward: Ward) -> None:
    ward.public = Key.generate().public


def wrong_own_key(ward: Ward) -> None:
    ward.private = Key.generate().private


def psk_here(ward: Ward) -> None:
    ward.peer_lines.append(f"PresharedKey = {generate_psk()}")


def psk_there(ward: Ward) -> None:
    ward.psk_there = generate_psk()


def two_psks(ward: Ward) -> None:
    psk_here(ward)
    psk_there(ward)


def filtered(ward: Ward) -> None:
    ward.peer.nft(DROP.format(hook="input", rule=f"udp dport {OUTER_PORT} drop;"))


def rejected(ward: Ward) -> None:
    ward.peer.nft(DROP.format(hook="input", rule=f"udp dport {OUTER_PORT} reject with icmp type admin-prohibited;"))


def forbidden_here(ward: Ward) -> None:
    ward.client.nft(DROP.format(hook="output", rule=f"udp dport {OUTER_PORT} reject;"))


def ipv6_off(ward: Ward) -> None:
    ward.endpoint = f"[2001:db8::2]:{OUTER_PORT}"
    ward.client.sysctl("net.ipv6.conf.all.disable_ipv6", "1")


def black_hole(ward: Ward) -> None:
    """Outer datagrams above 1300 bytes vanish in both directions, without a word."""
    ward.peer.nft(
        "table inet ailment {\n chain i {\n type filter hook input priority 0; udp length > 1272 drop;\n }\n"
        "chain o {\n type filter hook output priority 0; udp length > 1272 drop;\n }\n}"
    )


def newer_timestamp(ward: Ward) -> None:
    """The peer has seen a handshake of this key from a clock that is an hour ahead."""
    ward.clock_was_ahead = True


def dns_line(server: str) -> Callable[[Ward], None]:
    def apply(ward: Ward) -> None:
        ward.interface_lines.append(f"DNS = {server}")
        ward.target = "web.internal"

    return apply


def dns(*manners: str, target: str = "web.internal") -> Callable[[Ward], None]:
    def apply(ward: Ward) -> None:
        ward.interface_lines.append("DNS = 10.77.0.2")
        ward.target = target
        ward.serve_otherwise(*manners)

    return apply


def taken_port(ward: Ward) -> None:
    ward.interface_lines.append("ListenPort = 40123")
    program = ward.client.spawn(
        "python3", "-c", "import socket,time; s=socket.socket(2,2); s.bind(('',40123)); time.sleep(300)", output=-3
    )
    ward.lab.programs.append(program)


def silent_port(ward: Ward) -> None:
    ward.port = 81
    ward.peer.nft(DROP.format(hook="input", rule="tcp dport 81 drop;"))


NOT_DOCTOR = frozenset({"doctor"})
NOT_UP = frozenset({"up"})

AILMENTS = (
    Ailment("the peer's public key is wrong here", wrong_peer_key, (KEYS,), (r"preshared keys? (differ|must)",)),
    Ailment("our public key is unknown there", wrong_own_key, (KEYS,)),
    Ailment("a preshared key here only", psk_here, (r"[Pp]reshared ?[Kk]ey",), (FILTERED,)),
    Ailment("a preshared key there only", psk_there, (r"[Pp]reshared ?[Kk]ey",), (FILTERED,)),
    Ailment("two different preshared keys", two_psks, (r"[Pp]reshared ?[Kk]ey",), (FILTERED,)),
    Ailment(
        "the endpoint's port is wrong",
        set_attribute(endpoint="192.0.2.2:1"),
        (r"nothing listens", r"endpoint is right", r"the endpoint answers"),
    ),
    Ailment("UDP is dropped on the way", filtered, (FILTERED,)),
    Ailment("UDP is rejected by the peer's firewall", rejected, (r"rejects UDP", FILTERED)),
    Ailment("a firewall here forbids it", forbidden_here, (r"firewall on this host", r"not permitted", FILTERED)),
    Ailment(
        "the peer's host is off",
        set_attribute(endpoint=f"192.0.2.77:{OUTER_PORT}"),
        (r"host is (down|off)", r"endpoint is right and running", r"the endpoint answers"),
    ),
    Ailment(
        "there is no route to the endpoint",
        set_attribute(endpoint=f"203.0.113.9:{OUTER_PORT}"),
        (r"no (IPv4 )?route to (it|203)", r"Network is unreachable"),
    ),
    Ailment(
        "the endpoint's name does not exist",
        set_attribute(endpoint=f"nowhere.invalid:{OUTER_PORT}"),
        (r"nowhere\.invalid.*(resol|known|name)",),
    ),
    Ailment("IPv6 is switched off here", ipv6_off, (r"IPv6.*(switched off|route)", r"no IPv6", r"unreachable")),
    Ailment("the peer has no endpoint", set_attribute(endpoint=None), (r"no [Ee]ndpoint",)),
    Ailment("there is no peer", set_attribute(has_peer=False), (r"no \[Peer\]", r"no peer")),
    Ailment("there is no address", set_attribute(address=None), (r"[Nn]o Address|needs Address",)),
    Ailment(
        "the target is outside every AllowedIPs",
        set_attribute(target="10.99.0.1"),
        (r"10\.99\.0\.1 is in no peer's AllowedIPs",),
        blind=frozenset({"doctor", "up"}),
    ),
    Ailment(
        "the peer's AllowedIPs lack our address",
        set_attribute(known_as="10.77.0.50/32"),
        (r"AllowedIPs for this key do not contain", r"disallowed source", r"its AllowedIPs"),
        blind=NOT_UP,
    ),
    Ailment(
        "our AllowedIPs lack the address that answers",
        set_attribute(allowed_ips=["10.77.0.9/32"], target="10.77.0.9"),
        (r"outside (the peer's|its) [Aa]llowed ?IPs", r"did not answer|no answer"),
        blind=NOT_UP,
    ),
    Ailment("the clock is behind", newer_timestamp, (r"clock",)),
    Ailment("large packets vanish", black_hole, (r"set MTU|MTU",), blind=NOT_UP),
    Ailment("no name server", set_attribute(target="web.internal"), (r"no name server",), blind=NOT_UP),
    Ailment(
        "the name server is outside AllowedIPs",
        dns_line("10.99.0.53"),
        (r"10\.99\.0\.53 is in no (peer's )?AllowedIPs",),
    ),
    Ailment("the name server's port is closed", dns("closed"), (r"port is closed|refused",), blind=NOT_UP),
    Ailment("the name server is silent", dns("silent"), (r"does not answer|did not answer",), blind=NOT_UP),
    Ailment("the name server refuses", dns("refused"), (r"REFUSED|refused to answer",), blind=NOT_UP),
    Ailment(
        "the name does not exist",
        dns(target="nobody.internal"),
        (r"nobody\.internal.*(does not exist|no such name|not known)",),
        blind=NOT_UP | NOT_DOCTOR,
    ),
    Ailment(
        "the port inside is closed",
        set_attribute(port=81),
        (r"10\.77\.0\.2.*refused|refused.*10\.77\.0\.2",),
        blind=NOT_UP | NOT_DOCTOR,
    ),
    Ailment(
        "the port inside is filtered",
        silent_port,
        (r"has a session", r"the host inside"),
        (KEYS,),
        blind=NOT_UP | NOT_DOCTOR,
    ),
    Ailment(
        "the host inside does not exist",
        set_attribute(target="10.77.0.77"),
        (r"10\.77\.0\.77.*(did not answer|no answer|unreachable|No route)",),
        (KEYS,),
        blind=NOT_UP | NOT_DOCTOR,
    ),
    Ailment("the listen port is taken", taken_port, (r"40123",), blind=NOT_DOCTOR),
)

"""Ways in which a tunnel fails to work: how to break it, and the words that must name the cause.

`cause` holds regular expressions, any of which names the cause. `verdicts` holds the causes (verdicts.py) to which a
text may commit itself; every other one would be wrong. `blind` holds the treatments that cannot know the cause, with
the reason; they may be left out of `treatments`.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tests.ailments.verdicts import VERDICTS
from tests.ailments.ward import OUTER_PORT, Ward
from tests.netns.node import Key, generate_psk, peer_section

DROP = "table inet ailment {{\n chain c {{\n type filter hook {hook} priority 0; {rule}\n }}\n}}"
KEYS = r"PublicKey here is not its key|keys match on both sides|public key is not a peer there"
FILTERED = r"UDP to that port is filtered|UDP is not filtered"
PSK = r"[Pp]reshared ?[Kk]ey"

USUAL = ("doctor", "library", "up")


@dataclass(frozen=True)
class Ailment:
    name: str
    apply: Callable[[Ward], object]
    cause: tuple[str, ...]
    verdicts: tuple[str, ...] = ()
    blind: Mapping[str, str] = field(default_factory=dict)
    treatments: tuple[str, ...] = USUAL
    go: tuple[str, ...] = ()
    """Words of wireguard-go or wg(8) that also name the cause."""

    def is_named(self, text: str) -> bool:
        return any(re.search(pattern, text) for pattern in self.cause)

    def is_named_by_go(self, text: str) -> bool:
        """Lines about the configuration are ignored, because they mention every key in any case."""
        lines = "\n".join(line for line in text.splitlines() if "UAPI" not in line)
        return self.is_named(lines) or any(re.search(pattern, lines) for pattern in self.go)

    def wrong(self, text: str) -> list[str]:
        """Return the other causes that the text names."""
        return [name for name, pattern in VERDICTS.items() if name not in self.verdicts and re.search(pattern, text)]


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
    """Outer datagrams above 1300 bytes are dropped silently in both directions."""
    ward.peer.nft(
        "table inet ailment {\n chain i {\n type filter hook input priority 0; udp length > 1272 drop;\n }\n"
        "chain o {\n type filter hook output priority 0; udp length > 1272 drop;\n }\n}"
    )


def newer_timestamp(ward: Ward) -> None:
    """The peer has accepted a handshake of this key with a timestamp one hour ahead."""
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


def translated(ward: Ward) -> None:
    """The peer redirects packets for 10.77.0.9 to another address, and the answers keep that address as source."""
    ward.peer.nft(
        "table ip ailment {\n chain c {\n type filter hook prerouting priority raw; "
        "ip daddr 10.77.0.9 ip daddr set 10.77.0.2 notrack;\n }\n}"
    )
    ward.allowed_ips, ward.target = ["10.77.0.9/32"], "10.77.0.9"


def two_hosts(ward: Ward) -> None:
    """Another host uses our key and configuration, and keeps sending."""
    thief = ward.lab.host()
    ward.lab.wire(thief, ward.peer, ("198.51.100.1/24",), ("198.51.100.2/24",))
    ward.replace_peer("wyrmhole")

    def begin() -> None:
        node = ward.lab.node(thief, "wireguard-go", port=0)
        node.key = ward.own
        node.configure(peer_section(ward.public, "10.77.0.0/24", endpoint=f"198.51.100.2:{OUTER_PORT}"))
        node.assign("10.77.0.1/24")
        node.host.ip("link", "set", node.name, "up")
        ping = thief.spawn("ping", "-q", "-n", "-i", "0.5", "10.77.0.2", output=subprocess.DEVNULL)
        ward.lab.programs.append(ping)

    ward.afterwards, ward.is_steady = begin, True


def behind_nat(ward: Ward) -> None:
    """Our address is private, and the router forgets the mapping as soon as there is a session."""
    router, client = ward.lab.host(), ward.lab.host()
    ward.lab.wire(client, router, ("192.168.9.2/24",), ("192.168.9.1/24",))
    ward.lab.wire(router, ward.peer, ("198.51.100.1/24",), ("198.51.100.2/24",))
    client.ip("route", "add", "default", "via", "192.168.9.1")
    router.forward()
    router.nft("table ip n {\n chain c {\n type nat hook postrouting priority 100; oifname eth1 masquerade;\n }\n}")
    ward.client, ward.endpoint = client, f"198.51.100.2:{OUTER_PORT}"
    ward.replace_peer("wyrmhole")
    ward.known_as = "10.77.0.1/32"

    def forget() -> None:
        # No packets pass: the mapping is gone, and our side appears silent to the peer.
        router.nft(
            f"table ip f {{\n chain c {{\n type filter hook prerouting priority -300; udp dport {OUTER_PORT} drop; "
            f"udp sport {OUTER_PORT} drop;\n }}\n}}"
        )

    def heal() -> None:
        router.try_run("nft", "delete", "table", "ip", "f")

    ward.meanwhile, ward.heal = forget, heal


def restarts(ward: Ward) -> None:
    silent_port(ward)
    ward.target, ward.seconds = "10.77.0.2", 26
    ward.meanwhile = ward.restart_peer


def cut_off(ward: Ward) -> None:
    """The path to the peer breaks silently within a session."""
    ward.port = 81
    ward.seconds = 26
    # A separate table, which stays.
    ward.peer.nft("table inet quiet {\n chain c {\n type filter hook input priority 0; tcp dport 81 drop;\n }\n}")
    both = (
        f"table inet ailment {{\n chain i {{\n type filter hook input priority 0; udp dport {OUTER_PORT} drop;\n }}\n"
        f"chain o {{\n type filter hook output priority 0; udp sport {OUTER_PORT} drop;\n }}\n}}"
    )
    ward.meanwhile = lambda: ward.peer.nft(both)
    ward.heal = lambda: ward.peer.run("nft", "delete", "table", "inet", "ailment")


def inner_ipv6(ward: Ward) -> None:
    ward.target = "fd77::2"
    ward.allowed_ips.append("fd77::/64")


UP_PINGS = "`up` only sets routes: only the asking program notices a missing answer"
NO_NAMES = "`up` only sets the name servers; programs on the host query them"
ONE_RUN = "each run starts a new session, which works"
NO_HOST = "it does not know the host and port of a program: it tests only the tunnel and the given name"

AILMENTS = (
    Ailment("the peer's public key is wrong here", wrong_peer_key, (KEYS,), ("unanswered",)),
    Ailment("our public key is unknown there", wrong_own_key, (KEYS,), ("unanswered",)),
    Ailment("a preshared key here only", psk_here, (PSK,), ("psk",)),
    Ailment("a preshared key there only", psk_there, (PSK,), ("psk",)),
    Ailment("two different preshared keys", two_psks, (PSK,), ("psk",)),
    Ailment(
        "the endpoint's port is wrong",
        set_attribute(endpoint="192.0.2.2:1"),
        (r"nothing listens", r"endpoint is right and running", r"the endpoint answers"),
        ("port closed", "unanswered"),
    ),
    Ailment("UDP is dropped on the way", filtered, (FILTERED,), ("unanswered",)),
    Ailment(
        "UDP is rejected by the peer's firewall",
        rejected,
        (r"rejects UDP", FILTERED),
        ("unreachable", "unanswered"),
    ),
    Ailment(
        "a firewall here forbids it",
        forbidden_here,
        (r"firewall on this host", r"not permitted"),
        ("firewall here", "unanswered"),
    ),
    Ailment(
        "the peer's host is off",
        set_attribute(endpoint=f"192.0.2.77:{OUTER_PORT}"),
        (r"host is (down|off)", r"endpoint is right and running", r"the endpoint answers"),
        ("unreachable", "unanswered"),
    ),
    Ailment(
        "there is no route to the endpoint",
        set_attribute(endpoint=f"203.0.113.9:{OUTER_PORT}"),
        (r"no (IPv4 )?route to (it|203)", r"Network is unreachable"),
        ("no route",),
        go=(r"network is unreachable",),
    ),
    Ailment(
        "the endpoint's name does not exist",
        set_attribute(endpoint=f"nowhere.invalid:{OUTER_PORT}"),
        (r"nowhere\.invalid.*(resol|known|name)",),
        ("unresolved",),
        go=(r"[Nn]ame.*nowhere\.invalid",),
    ),
    Ailment(
        "IPv6 is switched off here",
        ipv6_off,
        (r"IPv6.*(switched off|route)", r"no IPv6"),
        ("family off", "no route"),
        go=(r"cannot assign requested address",),
    ),
    Ailment(
        "the peer has no endpoint",
        set_attribute(endpoint=None),
        (r"no Endpoint",),
        ("no endpoint",),
        go=("no known endpoint",),
    ),
    Ailment("there is no peer", set_attribute(has_peer=False), (r"no \[Peer\]", r"no peer"), ("no peer",)),
    Ailment("there is no address", set_attribute(address=None), (r"[Nn]o Address|needs Address",), ("no address",)),
    Ailment(
        "the target is outside every AllowedIPs",
        set_attribute(target="10.99.0.1"),
        (r"10\.99\.0\.1 is in no peer's AllowedIPs",),
        ("outside AllowedIPs",),
        blind={"up": "the host has no route into the tunnel for the target, so the packets do not enter it"},
    ),
    Ailment(
        "the peer's AllowedIPs lack our address",
        set_attribute(known_as="10.77.0.50/32"),
        (r"AllowedIPs for this key (do not contain|lack our address)",),
        ("silent inside",),
        blind={"up": UP_PINGS},
    ),
    Ailment(
        "our AllowedIPs lack the address that answers",
        translated,
        (r"outside (the peer's|its) AllowedIPs",),
        ("bad source", "silent inside"),
        go=("disallowed source address",),
        blind={"up": UP_PINGS},
    ),
    Ailment("the clock is behind", newer_timestamp, (r"clock",), ("unanswered",)),
    Ailment(
        "large packets vanish",
        black_hole,
        (r"MTU",),
        ("mtu",),
        blind={"up": UP_PINGS, "library": "the connection is open, and only the program knows that an answer is due"},
    ),
    Ailment(
        "no name server",
        set_attribute(target="web.internal"),
        (r"no name server",),
        ("no server",),
        blind={"up": NO_NAMES},
    ),
    Ailment(
        "the name server is outside AllowedIPs",
        dns_line("10.99.0.53"),
        (r"10\.99\.0\.53 is in no (peer's )?AllowedIPs",),
        ("outside AllowedIPs",),
        blind={"up": NO_NAMES},
    ),
    Ailment(
        "the name server's port is closed",
        dns("closed"),
        (r"port is closed|refused",),
        ("server closed",),
        blind={"up": NO_NAMES},
    ),
    Ailment(
        "the name server is silent",
        dns("silent"),
        (r"10\.77\.0\.2 (does|did) not answer",),
        ("server silent",),
        blind={"up": NO_NAMES},
    ),
    Ailment(
        "the name server refuses",
        dns("refused"),
        (r"10\.77\.0\.2.*REFUSED",),
        ("server refuses",),
        blind={"up": NO_NAMES},
    ),
    Ailment(
        "the name does not exist",
        dns(target="nobody.internal"),
        (r"nobody\.internal.*does not exist", r"do not know 'nobody\.internal'"),
        ("no such name",),
        blind={"up": NO_NAMES},
    ),
    Ailment(
        "the port inside is closed",
        set_attribute(port=81),
        (r"10\.77\.0\.2.*refused|refused.*10\.77\.0\.2",),
        ("refused inside",),
        blind={"up": UP_PINGS, "doctor": NO_HOST},
    ),
    Ailment(
        "the port inside is filtered",
        silent_port,
        (r"has a session.*(the host inside|firewall drops)",),
        ("silent inside",),
        blind={"up": UP_PINGS, "doctor": NO_HOST},
    ),
    Ailment(
        "the host inside does not exist",
        set_attribute(target="10.77.0.77"),
        (r"10\.77\.0\.77.*(did not answer|no answer|unreachable|No route)", r"no answer from 10\.77\.0\.77"),
        ("silent inside",),
        blind={"up": UP_PINGS},
    ),
    Ailment(
        "the listen port is taken",
        taken_port,
        (r"40123.*(in use|has it)",),
        ("taken",),
        go=("Address already in use",),
    ),
    Ailment(
        "an IPv6 target, and no IPv6 address",
        inner_ipv6,
        (r"no IPv6 [Aa]ddress",),
        ("silent inside", "no address"),
        blind={"up": UP_PINGS},
    ),
    Ailment(
        "two hosts with one key",
        two_hosts,
        (
            r"two hosts or programs seem to use its private key",
            r"another (host|program)[^;]* uses? (this|its|our) (private )?key",
        ),
        ("flapping", "silent inside", "silent in session", "works"),
        blind={
            "library": "the host that sent last has the session, so a short connection may work",
            "up": UP_PINGS,
            "doctor": "each run takes the session over",
        },
        treatments=(*USUAL, "peer"),
    ),
    Ailment(
        "a NAT forgets us",
        behind_nat,
        (r"PersistentKeepalive",),
        ("silent in session", "silent inside"),
        blind={"library": "our side can always reach the peer", "up": "our side can always reach the peer"},
        treatments=("doctor", "peer"),
    ),
    Ailment(
        "the peer restarts within a session",
        restarts,
        (r"may have restarted",),
        ("silent in session", "silent inside"),
        go=("stopped hearing back after 15 seconds",),
        blind={"doctor": ONE_RUN},
        treatments=("library", "up"),
    ),
    Ailment(
        "the path breaks within a session",
        cut_off,
        (r"been cut off",),
        ("silent in session", "unanswered", "silent inside"),
        go=("stopped hearing back after 15 seconds",),
        blind={"doctor": ONE_RUN},
        treatments=("library", "up"),
    ),
)

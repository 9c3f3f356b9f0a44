"""Each finding of the linter, and no finding for a good file."""

from __future__ import annotations

import base64

import pytest

from wyrmhole.control.config import lint as linter
from wyrmhole.control.config.file import Config
from wyrmhole.control.config.lint import Remark, contains, lint
from wyrmhole.wire.prefix import Prefix

OWN = "sL4hQ0m2gqZ0pUe0cN5w6f1aDqv3uPp0l1Jq9d2m4Hc="
ONE = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
TWO = "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0="
PSK = "/UwcSPg38hW/D9Y3tcS1FOV0K1wuURMbS0sesJEP5ak="

GOOD = f"""[Interface]
PrivateKey = {OWN}
Address = 10.0.0.2/24, fd00::2/64
ListenPort = 51820

[Peer]
PublicKey = {ONE}
AllowedIPs = 10.0.0.1/32, 10.5.0.0/16
Endpoint = vpn.example:51820

[Peer]
PublicKey = {TWO}
AllowedIPs = 10.0.0.3/32
"""


def findings(text: str) -> list[Remark]:
    return lint(Config.parse(text))


def test_good_file_has_no_findings() -> None:
    assert findings(GOOD) == []


def peer(**keys: str) -> str:
    return GOOD + "".join(f"{key} = {value}\n" for key, value in keys.items())


@pytest.mark.parametrize(
    ("text", "line", "level", "part"),
    [
        (GOOD.replace(f"PrivateKey = {OWN}", ""), 1, "error", "no PrivateKey"),
        (GOOD.replace(OWN, "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk="), 2, "error", "published in a manual"),
        (GOOD.replace(TWO, ONE), 12, "error", "the same PublicKey as in line 7"),
        (GOOD.replace(TWO, "A" * 43 + "="), 12, "error", "all-zero PublicKey is invalid"),
        (peer(PresharedKey="A" * 43 + "="), 14, "warning", "all-zero PresharedKey means no key"),
        (
            peer(PresharedKey=PSK).replace("[Peer]", f"[Peer]\nPresharedKey = {PSK}", 1),
            15,
            "warning",
            "the same PresharedKey as in line 7",
        ),
        (
            GOOD.replace("ListenPort = 51820", "ListenPort = 1\nListenPort = 2"),
            4,
            "warning",
            "ListenPort is repeated below",
        ),
        (peer(AllowedIPs="10.5.0.0/16"), 14, "error", "also an allowed ip of the peer in line 6"),
        (peer(AllowedIPs="10.5.7.0/24"), 14, "note", "10.5.7.0/24 lies within 10.5.0.0/16"),
        (peer(AllowedIPs="10.0.0.3/32"), 14, "note", "is repeated for the same peer"),
        (peer(AllowedIPs="10.9.1.7/16"), 14, "warning", "10.9.1.7/16 means 10.9.0.0/16"),
        (GOOD.replace("AllowedIPs = 10.0.0.3/32\n", ""), 11, "warning", "no AllowedIPs"),
        (GOOD.replace("ListenPort = 51820\n", ""), 10, "warning", "neither side can find"),
        (peer(Endpoint="10.5.1.1:9"), 14, "error", "would go into the tunnel"),
        (peer(AllowedIPs="0.0.0.0/0"), 14, "note", "IPv6 stays outside"),
        (peer(AllowedIPs="::/0").replace(", fd00::2/64", ""), 3, "warning", "no IPv6 Address"),
        (GOOD.replace("Address = 10.0.0.2/24, fd00::2/64\n", ""), 1, "note", "no Address"),
        (peer(AllowedIPs="10.0.0.2/32"), 3, "error", "our own Address"),
        (GOOD.replace("10.0.0.2/24", "10.0.0.0/24"), 3, "warning", "the address of a network"),
        (GOOD.replace("fd00::2/64", "10.0.0.2/24"), 3, "error", "is repeated, which the kernel refuses"),
        (GOOD.replace("ListenPort = 51820", "MTU = 1200\nListenPort = 1"), 4, "error", "IPv6 needs at least 1280"),
        (
            GOOD.replace("ListenPort = 51820", "MTU = 9000\nListenPort = 1"),
            4,
            "warning",
            "drops packets above 1440 bytes",
        ),
        (GOOD.replace("ListenPort = 51820", "DNS = lan\nListenPort = 1"), 4, "warning", "ignores search domains"),
        (GOOD.replace("ListenPort = 51820", "DNS = 9.9.9.9\nListenPort = 1"), 4, "warning", "asked outside the tunnel"),
        (GOOD.replace("ListenPort = 51820", "DNS = 10.5.0.1\nListenPort = 1"), 4, "note", "without a default route"),
        (peer(Endpoint="vpn.example:51820"), 14, "warning", "the same Endpoint as in line 9"),
        (peer(Endpoint="[fe80::1]:5"), 14, "error", "needs its interface"),
        (peer(Endpoint="0.0.0.0:5"), 14, "error", "not the address of a host"),
        (peer(PersistentKeepalive="3600"), 14, "note", "25 is usual"),
        (GOOD.replace("ListenPort = 51820", "PostUp = a # b\nListenPort = 1"), 4, "note", "PostUp contains a #"),
        ("\ufeff" + GOOD, 1, "warning", "save it as UTF-8 without one"),
        (GOOD + "[Interface]\nMTU = 1400\n", 14, "warning", "extends the one in line 1"),
        (GOOD.replace("51820", "domain", 1), 4, "warning", "ListenPort = domain is read as 53: write ListenPort = 53"),
        (GOOD.replace("ListenPort = 51820", "ListenPort=05"), 4, "warning", "write ListenPort = 5"),
        (GOOD.replace("ListenPort = 51820", "ListenPort=5\nFwMark = 010"), 5, "warning", "write FwMark = 10"),
        (peer(PersistentKeepalive="025"), 14, "warning", "write PersistentKeepalive = 25"),
        (peer(Endpoint="2001:db8::1:5"), 14, "warning", "write Endpoint = [2001:db8::1]:5"),
        (peer(Endpoint="[a.example]:5"), 14, "warning", "write Endpoint = a.example:5"),
        (peer(Endpoint="010.1:5"), 14, "warning", "write Endpoint = 8.0.0.1:5"),
        (peer(Endpoint="a.example:domain"), 14, "warning", "write Endpoint = a.example:53"),
        (peer(Endpoint="192.0.2.1:0"), 14, "error", "port 0 is not usable"),
        (peer(AllowedIPs="10.8.0.0/016"), 14, "warning", "write 10.8.0.0/16"),
        (peer(AllowedIPs=""), 14, "warning", "AllowedIPs is empty, which wg refuses"),
        (GOOD.replace("ListenPort = 51820", "PreUp = \nListenPort = 1"), 4, "note", "PreUp is empty"),
        (GOOD.replace("ListenPort = 51820", "Table = Off\nListenPort = 1"), 4, "error", "write Table = off"),
        (
            GOOD.replace("ListenPort = 51820", "SaveConfig = true\nListenPort = 1"),
            4,
            "note",
            "overwrites this file",
        ),
    ],
)
def test_finding_has_line_level_and_reason(text: str, line: int, level: str, part: str) -> None:
    found = [(finding.line, finding.level) for finding in findings(text) if part in finding.message]
    assert found == [(line, level)], findings(text)


def test_own_public_key_of_a_peer_is_found() -> None:
    key = Config.parse(GOOD).interface.private_key
    assert key is not None
    assert any(
        "our own public key" in finding.message for finding in findings(GOOD.replace(TWO, key.public_key().base64()))
    )


def test_private_key_may_be_set_by_a_hook() -> None:
    text = GOOD.replace(f"PrivateKey = {OWN}", "PostUp = wg set %i private-key /etc/key")
    assert not findings(text)


@pytest.mark.parametrize("more", ["Table = off\n", "Table = 5\n"])
def test_endpoint_in_allowed_ips_is_fine_without_our_routes(more: str) -> None:
    text = peer(Endpoint="10.5.1.1:9").replace("ListenPort", f"{more}ListenPort")
    assert not any(finding.level == "error" for finding in findings(text))


def test_endpoint_is_exempt_from_a_default_route() -> None:
    text = peer(Endpoint="203.0.113.1:9", AllowedIPs="0.0.0.0/0, ::/0")
    assert not findings(text)


def test_findings_are_bounded_and_contain_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linter, "MAX_FINDINGS", 3)
    text = GOOD.replace(TWO, ONE) + f"PresharedKey = {PSK}\nPersistentKeepalive = 999\nEndpoint = vpn.example:51820\n"
    assert len(findings(text)) == 3
    assert PSK not in repr(findings(text)) and OWN not in repr(findings(text))


def test_many_allowed_ips_are_checked_in_reasonable_time() -> None:
    """Quadratic work on 50,000 prefixes would take hours."""
    prefixes = ", ".join(f"10.{x}.{y}.{z}/32" for x in range(2) for y in range(100) for z in range(250))
    text = f"[Interface]\nPrivateKey = {OWN}\nListenPort = 1\n[Peer]\nPublicKey = {ONE}\nAllowedIPs = {prefixes}\n"
    assert all(finding.level == "note" for finding in findings(text))


def test_search_for_loops_is_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def count(outer: Prefix, inner: Prefix) -> bool:
        nonlocal calls
        calls += 1
        return contains(outer, inner)

    monkeypatch.setattr(linter, "contains", count)
    peers = [
        f"[Peer]\nPublicKey = {base64.b64encode(bytes([1]) * 30 + n.to_bytes(2, 'big')).decode()}\n"
        f"AllowedIPs = 10.{n >> 8}.{n & 255}.0/24\nEndpoint = 192.0.2.1:{n + 1}\n"
        for n in range(500)
    ]
    assert not [finding for finding in findings("[Interface]\n" + "".join(peers)) if "lies within" in finding.message]
    assert calls <= 5 * len(peers)

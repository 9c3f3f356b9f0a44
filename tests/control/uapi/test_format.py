"""The text of the UAPI: valid and invalid values of every key, and the form of replies."""

from __future__ import annotations

import errno
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wyrmhole.control.uapi.format import (
    Operation,
    SetOperation,
    UapiParser,
    emit_errno,
    emit_get,
    emit_prefix,
    emit_set,
    parse_prefix,
    parse_set,
)
from wyrmhole.device.config import AllowedIPChange, DeviceChange, PeerChange
from wyrmhole.device.status import DeviceStatus, PeerStatus
from wyrmhole.errors import UapiError
from wyrmhole.protocol.keys import PresharedKey, PrivateKey, PublicKey
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.prefix import Prefix

KEY = "ab" * 32
OTHER_KEY = "cd" * 32
PEER = f"public_key={KEY}"


def errno_of(*lines: str) -> int:
    with pytest.raises(UapiError) as caught:
        parse_set(lines)
    return caught.value.errno_value


def peer_of(*lines: str) -> PeerChange:
    (peer,) = parse_set([PEER, *lines]).peers
    return peer


def feed(data: bytes, resolve: dict[str, int] | None = None) -> list[Operation]:
    return UapiParser((resolve or {}).__getitem__).feed(data)


# Device keys


def test_set_without_lines_changes_nothing() -> None:
    assert parse_set([]) == DeviceChange()


def test_device_keys_are_read() -> None:
    change = parse_set([f"private_key={KEY}", "listen_port=51820", "fwmark=4294967295", "replace_peers=true"])
    assert change.private_key == PrivateKey(bytes.fromhex(KEY))
    assert (change.listen_port, change.fwmark, change.replace_peers) == (51820, 4294967295, True)


def test_zero_means_unset_and_differs_from_absent() -> None:
    change = parse_set([f"private_key={'0' * 64}", "listen_port=0", "fwmark=0"])
    assert change.private_key is not None and change.private_key.is_zero
    assert (change.listen_port, change.fwmark) == (0, 0)


def test_last_value_of_a_repeated_key_wins() -> None:
    assert parse_set(["listen_port=1", "listen_port=2"]).listen_port == 2


BAD_KEYS = ["", "0" * 63, "0" * 65, "0" * 128, "g" * 64, "é" * 64, " " + "0" * 63, "0x" + "0" * 62, "-" + "0" * 63]
BAD_PORTS = ["", "-1", "65536", "0x10", "1_0", " 1", "1 ", "+1", "1.0", "٣", "9" * 50]
BAD_ENDPOINTS = [
    "",
    "1.2.3.4",
    "1.2.3.4:",
    ":1",
    "1.2.3.4:65536",
    "fe80::1:80",
    "[1.2.3.4]:80",
    "host.example:80",
    "01.2.3.4:80",
    "[fe80::1%]:80",
    "[fe80::1%99999999999]:80",
    "[fe80::1%eth0]:80",
    "1.2.3.4%1:80",
    "[::1]:8\x00",
    "[::1:80",
    "::1]:80",
    "1.2.3.4:٣",
]
BAD_PREFIXES = [
    "",
    "-",
    "--10.0.0.0/8",
    "10.0.0.0",
    "10.0.0.0/33",
    "10.0.0.0/-1",
    "::/129",
    "10.0.0/8",
    "01.0.0.0/8",
    "fe80::1%1/64",
    "10.0.0.0/8/8",
    "/8",
    "10.0.0.0/+8",
    "1.2.3.4\x00/8",
    "\ud800/8",
    "10.0.0.0/٣",
]
BAD_FLAGS = ["", "false", "True", "1", "true "]


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("private_key", BAD_KEYS),
        ("listen_port", BAD_PORTS),
        ("fwmark", ["", "-1", "4294967296", "0x1", "off"]),
        ("replace_peers", BAD_FLAGS),
        ("public_key", BAD_KEYS),
    ],
)
def test_bad_device_values_are_invalid(key: str, values: list[str]) -> None:
    for value in values:
        assert errno_of(f"{key}={value}") == errno.EINVAL, value


# Peer keys


def test_peer_section_is_read_completely() -> None:
    peer = peer_of(
        "update_only=true",
        f"preshared_key={OTHER_KEY}",
        "endpoint=192.0.2.1:51820",
        "persistent_keepalive_interval=25",
        "replace_allowed_ips=true",
        "allowed_ip=10.0.0.1/8",
        "allowed_ip=-fd00::/64",
        "protocol_version=1",
    )
    assert peer == PeerChange(
        public_key=PublicKey(bytes.fromhex(KEY)),
        update_only=True,
        preshared_key=PresharedKey(bytes.fromhex(OTHER_KEY)),
        endpoint=Endpoint("192.0.2.1", 51820),
        persistent_keepalive=25,
        replace_allowed_ips=True,
        allowed_ips=(
            AllowedIPChange(Prefix(4, 10 << 24, 8)),
            AllowedIPChange(Prefix(6, 0xFD00 << 112, 64), remove=True),
        ),
    )


def test_empty_section_changes_nothing() -> None:
    assert peer_of() == PeerChange(PublicKey(bytes.fromhex(KEY)))


def test_uppercase_hex_is_the_same_key() -> None:
    assert parse_set([PEER.upper().replace("PUBLIC_KEY", "public_key")]).peers == parse_set([PEER]).peers


def test_zero_preshared_key_requests_its_removal() -> None:
    peer = peer_of(f"preshared_key={'0' * 64}")
    assert peer.preshared_key is not None and peer.preshared_key.is_zero


def test_sections_of_one_peer_stay_separate_and_in_order() -> None:
    change = parse_set([PEER, "remove=true", f"public_key={OTHER_KEY}", PEER, "allowed_ip=10.0.0.0/8"])
    assert [peer.public_key.hex() for peer in change.peers] == [KEY, OTHER_KEY, KEY]
    assert [peer.remove for peer in change.peers] == [True, False, False]


def test_replace_allowed_ips_discards_earlier_lines() -> None:
    peer = peer_of("allowed_ip=10.0.0.0/8", "replace_allowed_ips=true", "allowed_ip=11.0.0.0/8")
    assert peer.allowed_ips == (AllowedIPChange(Prefix(4, 11 << 24, 8)),)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("update_only", BAD_FLAGS),
        ("remove", BAD_FLAGS),
        ("preshared_key", BAD_KEYS),
        ("persistent_keepalive_interval", [*BAD_PORTS, "off"]),
        ("replace_allowed_ips", BAD_FLAGS),
        ("protocol_version", ["", "0", "2", "1.0"]),
        (
            "endpoint",
            BAD_ENDPOINTS,
        ),
        (
            "allowed_ip",
            BAD_PREFIXES,
        ),
    ],
)
def test_bad_peer_values_are_invalid(key: str, values: list[str]) -> None:
    for value in values:
        assert errno_of(PEER, f"{key}={value}") == errno.EINVAL, value


@pytest.mark.parametrize("line", ["unknown=1", "=1", "PRIVATE_KEY=" + KEY, " listen_port=1", "errno=0", "get=1"])
def test_unknown_keys_are_invalid_everywhere(line: str) -> None:
    assert errno_of(line) == errno.EINVAL
    assert errno_of(PEER, line) == errno.EINVAL


@pytest.mark.parametrize("line", [f"private_key={KEY}", "listen_port=1", "fwmark=1", "replace_peers=true"])
def test_device_keys_are_invalid_in_a_peer_section(line: str) -> None:
    assert errno_of(PEER, line) == errno.EINVAL


@pytest.mark.parametrize("line", ["remove=true", "endpoint=1.2.3.4:5", "allowed_ip=::/0", "protocol_version=1"])
def test_peer_keys_are_invalid_before_any_peer(line: str) -> None:
    assert errno_of(line) == errno.EINVAL


@pytest.mark.parametrize("line", ["", "listen_port", "private_key " + KEY])
def test_line_without_equals_sign_is_a_protocol_error(line: str) -> None:
    assert errno_of(line) == errno.EPROTO


def test_errors_do_not_repeat_values() -> None:
    secret = "5ec2e7" * 11
    for lines in (
        [f"private_key={secret}"],
        [f"{secret}=1"],
        [PEER, f"{secret}=1"],
        [secret],
        [PEER, f"preshared_key={secret}"],
    ):
        with pytest.raises(UapiError) as caught:
            parse_set(lines)
        assert secret not in str(caught.value)
        assert caught.value.__cause__ is None


# Endpoints with a scope


def test_scope_may_be_the_name_of_an_interface() -> None:
    (operation,) = feed(f"set=1\n{PEER}\nendpoint=[fe80::1%eth0]:51820\n\n".encode(), {"eth0": 7})
    assert isinstance(operation, SetOperation)
    assert operation.change.peers[0].endpoint == Endpoint("fe80::1", 51820, 7)


def test_scope_of_an_unknown_interface_is_invalid() -> None:
    def resolve(name: str) -> int:
        raise OSError(errno.ENODEV, "no interface with this name")

    with pytest.raises(UapiError) as caught:
        parse_set([PEER, "endpoint=[fe80::1%eth0]:51820"], resolve)
    assert caught.value.errno_value == errno.EINVAL


# Prefixes

prefixes = st.one_of(
    st.builds(Prefix, st.just(4), st.integers(0, 2**32 - 1), st.integers(0, 32)),
    st.builds(Prefix, st.just(6), st.integers(0, 2**128 - 1), st.integers(0, 128)),
).map(lambda p: Prefix(p.version, p.network >> (p.bits - p.length) << (p.bits - p.length), p.length))


@given(prefixes)
def test_fast_prefix_parser_agrees_with_wire(prefix: Prefix) -> None:
    assert parse_prefix(emit_prefix(prefix)) == prefix == parse_prefix(prefix.emit())
    assert Prefix.parse(emit_prefix(prefix)) == prefix


@given(st.from_regex(r"[0-9a-f:.]{1,12}/[0-9]{1,3}", fullmatch=True))
@example("::/00")
@example("::/0")
def test_fast_prefix_parser_refuses_the_same_texts_as_wire(text: str) -> None:
    """It also refuses leading zeros of a length, which only files may have."""

    def outcome(parse: type[Prefix] | None) -> Prefix | None:
        try:
            return Prefix.parse(text) if parse is not None else parse_prefix(text)
        except (ValueError, OSError):
            return None

    length = text.partition("/")[2]
    is_plain = length == "0" or not length.startswith("0")
    assert outcome(None) == (outcome(Prefix) if is_plain else None)


# Emitting

raw_keys = st.binary(min_size=32, max_size=32)
endpoints = st.builds(
    Endpoint.from_address, st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)), st.integers(0, 65535)
)
peer_changes = st.builds(
    PeerChange,
    public_key=raw_keys.map(PublicKey),
    remove=st.booleans(),
    update_only=st.booleans(),
    preshared_key=st.none() | raw_keys.map(PresharedKey),
    endpoint=st.none() | endpoints,
    persistent_keepalive=st.none() | st.integers(0, 65535),
    replace_allowed_ips=st.booleans(),
    allowed_ips=st.lists(st.builds(AllowedIPChange, prefixes, st.booleans()), max_size=4).map(tuple),
)
device_changes = st.builds(
    DeviceChange,
    private_key=st.none() | raw_keys.map(PrivateKey),
    listen_port=st.none() | st.integers(0, 65535),
    fwmark=st.none() | st.integers(0, 2**32 - 1),
    replace_peers=st.booleans(),
    peers=st.lists(peer_changes, max_size=4).map(tuple),
)


@given(device_changes)
def test_set_survives_emit_and_parse(change: DeviceChange) -> None:
    assert feed(emit_set(change)) == [SetOperation(change)]


def full_status() -> DeviceStatus:
    peer = PeerStatus(
        public_key=PublicKey(bytes.fromhex(KEY)),
        preshared_key=PresharedKey(bytes(32)),
        endpoint=Endpoint("fe80::1", 51820, 3),
        last_handshake=(1700000000, 5),
        tx_bytes=10,
        rx_bytes=20,
        persistent_keepalive=25,
        allowed_ips=(Prefix(4, 10 << 24, 8), Prefix(6, 0, 0)),
    )
    quiet = PeerStatus(PublicKey(bytes.fromhex(OTHER_KEY)), PresharedKey(bytes(32)), None, (0, 0), 0, 0, 0, ())
    return DeviceStatus("wg0", PrivateKey(bytes.fromhex(KEY)), 51820, 7, 1420, (peer, quiet))


def test_get_has_the_keys_of_wireguard_go_in_its_order() -> None:
    clamped = PrivateKey(bytes.fromhex(KEY)).hex()
    assert emit_get(full_status()).decode() == (
        f"private_key={clamped}\nlisten_port=51820\nfwmark=7\n"
        f"public_key={KEY}\npreshared_key={'0' * 64}\nprotocol_version=1\nendpoint=[fe80::1%3]:51820\n"
        "last_handshake_time_sec=1700000000\nlast_handshake_time_nsec=5\ntx_bytes=10\nrx_bytes=20\n"
        "persistent_keepalive_interval=25\nallowed_ip=10.0.0.0/8\nallowed_ip=::/0\n"
        f"public_key={OTHER_KEY}\npreshared_key={'0' * 64}\nprotocol_version=1\n"
        "last_handshake_time_sec=0\nlast_handshake_time_nsec=0\ntx_bytes=0\nrx_bytes=0\n"
        "persistent_keepalive_interval=0\n"
    )


@pytest.mark.parametrize("private_key", [None, PrivateKey(bytes(32))])
def test_get_of_a_new_device_is_empty(private_key: PrivateKey | None) -> None:
    assert emit_get(DeviceStatus("wg0", private_key, 0, 0, 1420, ())) == b""


def test_get_can_be_set_again() -> None:
    """All configuration passes through a `set` unchanged; counters and times do not."""
    text = re.sub(rb"(last_handshake_time_n?sec|[tr]x_bytes)=\d+\n", b"", emit_get(full_status()))
    (operation,) = feed(b"set=1\n" + text + b"\n")
    assert isinstance(operation, SetOperation)
    status, change = full_status(), operation.change
    assert (change.private_key, change.listen_port, change.fwmark) == (status.private_key, 51820, 7)
    for peer, wanted in zip(change.peers, status.peers, strict=True):
        assert (peer.public_key, peer.preshared_key, peer.endpoint) == (
            wanted.public_key,
            wanted.preshared_key,
            wanted.endpoint,
        )
        assert tuple(allowed.prefix for allowed in peer.allowed_ips) == wanted.allowed_ips


def test_errno_lines_are_negative_and_end_the_reply() -> None:
    assert emit_errno(0) == b"errno=0\n\n"
    assert emit_errno(errno.EINVAL) == b"errno=-22\n\n"

"""The configuration file: valid and invalid keys, error messages, and edits that lose nothing."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import wyrmhole
from wyrmhole.control.config import file as wg_quick
from wyrmhole.control.config.file import (
    Config,
    ConfigInterface,
    ConfigPeer,
    ExposedFileWarning,
    interface_name,
)
from wyrmhole.control.config.values import ConfigEndpoint
from wyrmhole.errors import ConfigFileError
from wyrmhole.protocol.keys import PresharedKey, PrivateKey, PublicKey
from wyrmhole.wire.prefix import Prefix

PRIVATE = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk="
PUBLIC = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
OTHER = "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0="
PSK = "/UwcSPg38hW/D9Y3tcS1FOV0K1wuURMbS0sesJEP5ak="

WHOLE = f"""# the office
[Interface] # ours
PrivateKey = {PRIVATE}   # keep it so
listenport=51820
FwMark = 0xca6c
Address = 10.200.100.8/24, fd00::8/64
Address = 10.9.9.9
DNS = 10.200.100.1, corp.example, fd00::1 lab
MTU = 1380
Table = 1234
SaveConfig = false
PreUp = echo a; echo b
PostUp = ip rule add ipproto tcp dport 22 table 1234
PostUp = echo %i
PreDown = true
PostDown = true
ExcludedApplications = org.example

# Bob, who travels
[Peer]
# friendly_name = Bob's phone
PublicKey = {PUBLIC}
PresharedKey = {PSK}
AllowedIPs = 10.192.122.3/32, 10.192.124.1/24
AllowedIPs = fd00::/64,2001:db8::1
Endpoint = [2607:5300:60:6b0::c05f:543]:2468
PersistentKeepalive = 25

[peer]
#Name=office
PublicKey = {OTHER}
Endpoint = test.example.com:18981
PersistentKeepalive = off
# the end
"""


def test_every_key_is_read() -> None:
    config = Config.parse(WHOLE)
    interface = config.interface
    assert interface.private_key == PrivateKey.from_base64(PRIVATE)
    assert (interface.listen_port, interface.fwmark, interface.mtu, interface.table) == (51820, 0xCA6C, 1380, 1234)
    assert [str(address) for address in interface.addresses] == ["10.200.100.8/24", "fd00::8/64", "10.9.9.9/32"]
    assert interface.dns_servers == [ipaddress.ip_address("10.200.100.1"), ipaddress.ip_address("fd00::1")]
    assert interface.dns_search == ["corp.example", "lab"]
    assert interface.save_config is False
    assert interface.pre_up == ["echo a; echo b"]
    assert interface.post_up == ["ip rule add ipproto tcp dport 22 table 1234", "echo %i"]
    assert interface.pre_down == interface.post_down == ["true"]
    bob, office = config.peers
    assert (bob.name, bob.persistent_keepalive) == ("Bob's phone", 25)
    assert bob.preshared_key == PresharedKey.from_base64(PSK)
    assert [prefix.emit() for prefix in bob.allowed_ips] == [
        "10.192.122.3/32",
        "10.192.124.0/24",
        "fd00::/64",
        "2001:db8::1/128",
    ]
    assert bob.endpoint == ConfigEndpoint("2607:5300:60:6b0::c05f:543", 2468) and not bob.endpoint.is_name
    assert (office.name, office.persistent_keepalive, office.allowed_ips) == ("office", 0, [])
    assert office.endpoint == ConfigEndpoint("test.example.com", 18981) and office.endpoint.is_name


@pytest.mark.parametrize(
    "text",
    [WHOLE, WHOLE.rstrip("\n"), WHOLE.replace("\n", "\r\n"), "", "\n", "# only\n", "[Peer]\nPublicKey=" + PUBLIC],
)
def test_unedited_file_is_written_back_byte_for_byte(text: str) -> None:
    assert Config.parse(text).emit() == text


def test_edit_changes_only_its_own_lines() -> None:
    config = Config.parse(WHOLE)
    config.interface.listen_port = 51821
    config.interface.addresses.append(ipaddress.ip_interface("10.9.8.8"))
    config.peers[1].name = "head office"
    config.peers[1].allowed_ips.append(Prefix.parse("10.4.0.0/16"))
    before, after = WHOLE.splitlines(), config.emit().splitlines()
    assert [line for line in before if line not in after] == [
        "listenport=51820",
        "Address = 10.200.100.8/24, fd00::8/64",
        "Address = 10.9.9.9",
        "#Name=office",
    ]
    assert [line for line in after if line not in before] == [
        "ListenPort = 51821",
        "Address = 10.200.100.8/24, fd00::8/64, 10.9.9.9/32, 10.9.8.8/32",
        "# friendly_name = head office",
        "AllowedIPs = 10.4.0.0/16",
    ]
    assert after[-2:] == ["AllowedIPs = 10.4.0.0/16", "# the end"]


def test_peer_is_removed_with_the_comments_above_it() -> None:
    config = Config.parse(WHOLE)
    del config.peers[0]
    config.peers.append(ConfigPeer(PublicKey(bytes(32)), name="new"))
    text = config.emit()
    assert "Bob" not in text and PSK not in text
    assert text.endswith(f"\n# friendly_name = new\nPublicKey = {'A' * 43}=\n")
    assert [peer.name for peer in Config.parse(text).peers] == ["office", "new"]


@pytest.mark.parametrize("text", ["one\rtwo", "one\0two"])
def test_comment_with_cr_or_nul_is_not_taken_as_a_name(text: str) -> None:
    """Found by fuzzing: such a comment was read as a name, which could not be written back."""
    config = Config.parse(f"[Interface]\n\n# friendly_name = {text}\n[Peer]\nPublicKey = {'A' * 43}=\n")
    assert config.peers[0].name is None
    assert Config.parse(Config(peers=[replace(config.peers[0])]).emit()).peers == config.peers


def test_file_is_built_from_values() -> None:
    interface = ConfigInterface(
        PrivateKey.from_base64(PRIVATE), dns=[ipaddress.ip_address("10.0.0.1"), "lan"], fwmark=0
    )
    peer = ConfigPeer(PublicKey.from_base64(PUBLIC), endpoint=ConfigEndpoint("fe80::1%eth0", 5))
    assert Config(interface, [peer]).emit() == (
        f"[Interface]\nPrivateKey = {PRIVATE}\nFwMark = off\nDNS = 10.0.0.1, lan\n\n"
        f"[Peer]\nPublicKey = {PUBLIC}\nEndpoint = [fe80::1%eth0]:5\n"
    )
    assert Config(peers=[peer]).emit().startswith("[Peer]\n")


addresses = st.builds(
    lambda number, length: ipaddress.IPv4Interface((number, length)), st.integers(0, 2**32 - 1), st.integers(0, 32)
)
prefixes = st.builds(
    lambda number, length: Prefix(6, number >> (128 - length) << (128 - length), length),
    st.integers(0, 2**128 - 1),
    st.integers(0, 128),
)
interfaces = st.builds(
    ConfigInterface,
    private_key=st.none() | st.binary(min_size=32, max_size=32).map(PrivateKey),
    listen_port=st.none() | st.integers(0, 65535),
    fwmark=st.none() | st.integers(0, 2**32 - 1),
    addresses=st.lists(addresses, max_size=4),
    mtu=st.none() | st.integers(68, 65535),
    table=st.sampled_from([None, "auto", "off", 7, "vpn"]),
    save_config=st.booleans(),
    post_up=st.lists(st.sampled_from(["echo %i", "a=b; c", "true"]), max_size=3),
)
peers = st.builds(
    ConfigPeer,
    public_key=st.binary(min_size=32, max_size=32).map(PublicKey),
    preshared_key=st.none() | st.binary(min_size=32, max_size=32).map(PresharedKey),
    endpoint=st.none() | st.sampled_from([ConfigEndpoint("a.example", 1), ConfigEndpoint("::1", 2)]),
    allowed_ips=st.lists(prefixes, max_size=4),
    persistent_keepalive=st.none() | st.integers(0, 65535),
    name=st.sampled_from([None, "x", "a b = c # d"]),
)


@given(interfaces, st.lists(peers, max_size=3), interfaces, st.lists(peers, max_size=3))
def test_any_edit_survives_writing_and_reading(
    before: ConfigInterface, old: list[ConfigPeer], after: ConfigInterface, new: list[ConfigPeer]
) -> None:
    config = Config.parse(Config(before, old).emit())
    assert config == Config(before, old)
    for name in ConfigInterface.__slots__:
        setattr(config.interface, name, getattr(after, name))
    config.peers[:1] = new
    assert sorted(map(repr, Config.parse(config.emit()).peers)) == sorted(map(repr, config.peers))
    assert Config.parse(config.emit()).interface == after


@given(st.text(alphabet="[]Iinterface=\nPpr#, PublicKeyAllowedIPs0123456789.:/", max_size=200))
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    config, errors = Config.parse_all(text, source="f")
    assert all(str(error).startswith("f:") and "\n" not in str(error) for error in errors)
    if not errors:
        assert config.emit() == text


INTERFACE = f"[Interface]\nPrivateKey = {PRIVATE}\n"
PEER = f"[Peer]\nPublicKey = {PUBLIC}\n"


@pytest.mark.parametrize(
    ("text", "line", "part"),
    [
        ("PrivateKey = x\n", 1, "expected [Interface] or [Peer] before the first key"),
        ("[Interfaces]\n", 1, "expected the section header [Interface] or [Peer]"),
        (INTERFACE + "[Peer]\nAllowedIPs = 10.0.0.0/8\n", 3, "needs a PublicKey"),
        (INTERFACE + "ListenPort = 65536\n", 3, "ListenPort: expected a number from 0 to 65535, not '65536'"),
        (INTERFACE + "ListenPort = \n", 3, "ListenPort: expected"),
        (INTERFACE + "ListenPort\n", 3, "expected `Key = value`"),
        (INTERFACE + "Adress = 10.0.0.1\n", 3, "did you mean Address?"),
        (INTERFACE + "Fnord = 10.0.0.1\n", 3, "not a key of [Interface]; expected one of PrivateKey, ListenPort"),
        (INTERFACE + "Endpoint = a:1\n", 3, "Endpoint belongs in [Peer], not in [Interface]"),
        (INTERFACE + "Jc = 4\n", 3, "AmneziaWG"),
        (INTERFACE + "Address = 10.0.0.1/33\n", 3, "Address: expected addresses"),
        (INTERFACE + "DNS = 10.0.0.1.2\n", 3, "DNS: expected"),
        (INTERFACE + "MTU = 0\n", 3, "MTU: expected a number from 68"),
        (INTERFACE + "Table = 010\n", 3, "Table: expected"),
        (INTERFACE + "MTU = 01420\n", 3, "MTU: expected a number without leading zeros"),
        (INTERFACE + "MTU = 0x10000\n", 3, "MTU: expected a number from 68"),
        (INTERFACE + "Address = 10.0.0.1/024\n", 3, "Address: expected addresses"),
        (INTERFACE + "Address = 10.0.0.1/0.0.0.255\n", 3, "Address: expected addresses"),
        (INTERFACE + "ListenPort =\u00a05\n", 3, "U+00A0 does not count as a blank"),
        (INTERFACE + "ListenPort\u200b= 5\n", 3, "U+200B does not count as a blank"),
        (INTERFACE + "ListenPort = no-such-service\n", 3, "or the name of a UDP service"),
        (INTERFACE + "FwMark = 0X10\n", 3, "FwMark: expected"),
        (INTERFACE + "DNS = ~\n", 3, "DNS: expected"),
        (INTERFACE + "Add ress = 10.0.0.1\n", 3, "did you mean Address?"),
        (INTERFACE + "SaveConfig = yes\n", 3, "SaveConfig: expected true or false"),
        (INTERFACE + "FwMark = 0x123456789\n", 3, "FwMark: expected"),
        (PEER + "AllowedIPs = 10.0.0.0/8,\n", 3, "AllowedIPs: expected"),
        (PEER + "AllowedIPs = 10.0.0.0/255.0.0.0\n", 3, "AllowedIPs: expected"),
        (PEER + "Endpoint = 2001:db8::g:51820\n", 3, "Endpoint: expected host:port"),
        (PEER + "Endpoint = 1.2.256:51820:\n", 3, "Endpoint: expected host:port"),
        (PEER + "Endpoint = 1.2.3.256:51820\n", 3, "Endpoint: expected host:port"),
        (PEER + "Endpoint = a.example:65536\n", 3, "Endpoint: expected a number from 0"),
        (PEER + "PersistentKeepalive = 65536\n", 3, "PersistentKeepalive: expected seconds"),
        (PEER + "\ufeff\n", 3, "expected `Key = value`"),
    ],
)
def test_error_names_file_line_and_expectation(text: str, line: int, part: str) -> None:
    with pytest.raises(ConfigFileError) as caught:
        Config.parse(text, source="wg0.conf")
    assert caught.value.line == line and str(caught.value).startswith(f"wg0.conf:{line}: ")
    assert part in str(caught.value)


def test_all_errors_are_reported_at_once() -> None:
    config, errors = Config.parse_all(INTERFACE + "MTU = x\nTable = -\n[Peer]\n" + PEER)
    assert [error.line for error in errors] == [3, 4, 5]
    assert len(config.peers) == 1
    assert len(Config.parse_all("x\n" * 1000)[1]) == wg_quick.MAX_ERRORS


@pytest.mark.parametrize(
    "text",
    [
        f"[Interface]\nPrivateKey = {PRIVATE[:-1]}\n",
        f"[Interface]\nListenPort = {PRIVATE}\n",
        f"[Interface]\n{PRIVATE}\n",
        f"{PRIVATE}\n",
        f"[Peer]\nPresharedKey = {PRIVATE[1:]}\n",
    ],
)
def test_error_never_repeats_a_key(text: str) -> None:
    with pytest.raises(ConfigFileError) as caught:
        Config.parse(text)
    assert PRIVATE[1:20].lower() not in str(caught.value).lower()


def test_repr_shows_no_secret() -> None:
    config = Config.parse(WHOLE)
    shown = repr((config, config.interface, config.peers, config._sections))
    assert PRIVATE not in shown and PSK not in shown
    assert PrivateKey.from_base64(PRIVATE).hex() not in shown and "ip rule" not in shown


def test_line_numbers_of_sections_and_keys() -> None:
    config = Config.parse(WHOLE)
    lines = WHOLE.splitlines()
    assert lines[config.line_of(config.peers[1], "endpoint") - 1].startswith("Endpoint = test")
    assert lines[config.line_of(config.peers[1]) - 1] == "[peer]"
    assert config.line_of(ConfigPeer(PublicKey(bytes(32)))) == 0


def test_last_of_repeated_keys_wins_and_the_others_are_listed() -> None:
    config = Config.parse(INTERFACE + "MTU = 1300\nMTU = 1400\n")
    assert config.interface.mtu == 1400
    assert list(config.repeated_keys()) == [(3, "MTU")]


@pytest.mark.parametrize("value", ["echo 'a\nb'", "a\rb", "a\0b"])
def test_value_with_cr_lf_or_nul_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="PostUp cannot be written"):
        Config(ConfigInterface(post_up=[value])).emit()


def test_file_readable_by_others_causes_a_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = tmp_path / "wg0.conf"
    path.write_text(WHOLE)
    tmp_path.chmod(0o755)
    path.chmod(0o600)
    assert wyrmhole.Config.load(path).source == str(path)
    tmp_path.chmod(0o700)
    path.chmod(0o644)
    Config.load(path)
    assert not recwarn.list, "others cannot enter the folder"
    tmp_path.chmod(0o755)
    with pytest.warns(ExposedFileWarning, match="chmod 600"):
        Config.load(path)


def test_missing_utf16_and_oversized_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "wg0.conf"
    with pytest.raises(FileNotFoundError):
        Config.load(path)
    path.write_bytes("[Interface]\n".encode("utf-16"))
    path.chmod(0o600)
    with pytest.raises(ConfigFileError, match=r"wg0.conf:1: the file is in UTF-16"):
        Config.load(path)
    monkeypatch.setattr(wg_quick, "MAX_SIZE", 10)
    with pytest.raises(ConfigFileError, match="larger than"):
        Config.load(path)


def test_invalid_utf8_is_an_error_only_in_values(tmp_path: Path) -> None:
    path = tmp_path / "wg0.conf"
    data = (
        b"# B\xfcro\n[Interface]\nPrivateKey = " + PRIVATE.encode() + b" # M\xfcnchen\n"
        b"PostUp = echo \xe9\r\n[Peer]\n# name = Caf\xe9\nPublicKey = " + PUBLIC.encode() + b"\n"
    )
    path.write_bytes(data)
    path.chmod(0o600)
    config = Config.load(path)
    assert config.emit().encode("utf-8", "surrogateescape") == data
    assert config.interface.post_up == ["echo \udce9"]
    assert config.peers[0].name == "Caf\ufffd"
    config.interface.listen_port = 5
    assert b"# B\xfcro\n" in config.emit().encode("utf-8", "surrogateescape")
    path.write_bytes(data + b"Endpoint = b\xfccher.example:5\n")
    with pytest.raises(ConfigFileError, match=r":8: Endpoint: expected host:port"):
        Config.load(path)


def test_byte_order_mark_is_skipped_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "wg0.conf"
    path.write_bytes(b"\xef\xbb\xbf" + PEER.encode())
    path.chmod(0o600)
    with pytest.warns(wg_quick.ConfigFileWarning, match="begins with a byte order mark"):
        config = Config.load(path)
    assert config == Config.parse(PEER)
    assert config.emit().encode() == path.read_bytes()


def test_several_interface_sections_are_merged_and_written_back() -> None:
    text = f"{INTERFACE}Address = 10.0.0.1/8\n{PEER}\n[Interface]\nAddress = fd00::1/64\nMTU = 1400\nPostUp = a\n"
    config = Config.parse(text)
    assert [str(address) for address in config.interface.addresses] == ["10.0.0.1/8", "fd00::1/64"]
    assert config.emit() == text
    config.interface.mtu, config.interface.table = 1300, "off"
    assert config.emit() == text.replace("1400", "1300").replace("10.0.0.1/8\n", "10.0.0.1/8\nTable = off\n")
    config.interface.addresses.pop()
    edited = Config.parse(config.emit())
    assert edited == config and edited.line_of(edited.interface, "MTU") == 9
    assert config.repeated_interfaces() == [7]


@pytest.mark.parametrize("key", ["PreUp", "PostUp", "PreDown", "PostDown", "Address", "DNS", "MTU", "Table"])
def test_empty_value_of_a_wg_quick_key_counts_as_missing(key: str) -> None:
    text = f"{INTERFACE}{key} = \n{PEER}"
    config = Config.parse(text)
    assert config == Config.parse(INTERFACE + PEER)
    assert config.emit() == text


def test_hash_in_a_command_is_left_to_the_shell() -> None:
    text = f"{INTERFACE}PostUp = echo 'a#b' # c \nPreUp = # nothing\n"
    config = Config.parse(text)
    assert config.interface.post_up == ["echo 'a#b' # c"]
    assert config.interface.pre_up == ["# nothing"]
    assert Config.parse(Config(config.interface).emit()) == config


def test_routing_only_domain_is_not_a_search_domain() -> None:
    interface = Config.parse(f"{INTERFACE}DNS = 10.0.0.53, ~corp.example lan,~.\n").interface
    assert [str(server) for server in interface.dns_servers] == ["10.0.0.53"]
    assert interface.dns_domains == ["~corp.example", "lan", "~."]
    assert interface.dns_search == ["lan"]


def test_config_is_loaded_from_a_pipe() -> None:
    reading, writing = os.pipe()
    os.write(writing, PEER.encode())
    os.close(writing)
    try:
        assert len(Config.load(f"/dev/fd/{reading}").peers) == 1
    finally:
        os.close(reading)


def test_number_of_peers_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wg_quick, "MAX_PEERS", 1)
    with pytest.raises(ConfigFileError, match=r":3: too many peers: the limit is 1"):
        Config.parse(PEER + PEER)


@pytest.mark.parametrize(("path", "name"), [("/etc/wireguard/wg0.conf", "wg0"), ("a_=+.-.conf", "a_=+.-")])
def test_file_name_gives_the_interface_name(path: str, name: str) -> None:
    assert interface_name(path) == name


@pytest.mark.parametrize("path", ["wg0", "/etc/sixteen-letters0.conf", "/etc/wireguard/.conf", "a b.conf"])
def test_file_name_without_a_valid_interface_name_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="expected a file name of up to 15 letters"):
        interface_name(path)

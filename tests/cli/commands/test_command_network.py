"""The command compared with wg(8) and wg-quick(8): the same interfaces, output and changes on the host."""

from __future__ import annotations

import itertools
import json
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.quick.lab import FAKE_RESOLVCONF, Quick, laboratory, traces, wyrmhole
from tests.cli.wyrmhole_command import WYRMHOLE
from tests.netns.host import Host, end, until
from tests.netns.implementations import SUBJECT
from tests.netns.lab import Lab, inner
from tests.netns.node import Key, Node, generate_psk, peer_section
from tests.netns.traffic import Capture
from wyrmhole.cli import show_text

pytestmark = pytest.mark.network

ENDPOINT = "192.0.2.2:51821"


@pytest.fixture
def lab(tmp_path: Path):  # type: ignore[no-untyped-def]
    with laboratory(tmp_path) as lab:
        yield lab


def busy(lab: Lab, implementation: str = SUBJECT) -> tuple[Host, Node, Host, Node]:
    """Return a node with a session and three more peers, which together cover every field that can be shown."""
    a, b = lab.neighbours()
    one, two = lab.tunnel(a, implementation, b, SUBJECT, endpoint=ENDPOINT)
    a.ping(two.addresses[0])
    peers = [Key.generate().public for _ in range(3)]
    one.set("fwmark", "0x4d2", "peer", peers[0], "persistent-keepalive", "3725", "endpoint", "[2001:db8::2]:7")
    one.set(
        "peer", peers[1], "preshared-key", "/dev/stdin", "allowed-ips", "10.9.0.0/16,fd09::/48", text=generate_psk()
    )
    one.set("peer", peers[2], "endpoint", "[fe80::5%eth0]:9", "persistent-keepalive", "1")
    return a, one, b, two


# show


def paragraphs(text: str) -> str:
    return "\n\n".join(sorted(text.removesuffix("\n").split("\n\n")))


def both(host: Host, *words: str, arrange: Callable[[str], str] = str, **environ: str) -> tuple[str, str]:
    """Return the outputs of wg and of our command. wg prints the same before and after ours, so nothing changed."""
    for _ in range(50):
        before, ours, after = (
            arrange(host.run(program, *words, environ=environ)) for program in ("wg", WYRMHOLE, "wg")
        )
        if before == after:
            return before, ours
    raise AssertionError("the output of wg changes every time")


@pytest.mark.parametrize("implementation", [SUBJECT, "wireguard-go"])
def test_show_equals_wg_show(lab: Lab, implementation: str) -> None:
    """wireguard-go lists its peers in a different order each time."""
    a, one, _, _ = busy(lab, implementation)
    arrange = str if implementation == SUBJECT else paragraphs
    for environ in ({}, {"WG_COLOR_MODE": "always"}, {"WG_HIDE_KEYS": "never"}):
        theirs, ours = both(a, "show", one.name, arrange=arrange, **environ)
        assert ours == theirs
    assert "latest handshake" in theirs and "\x1b" not in theirs


FIELDS = (*show_text.INTERFACE_FIELDS, *show_text.PEER_FIELDS, "dump")


def test_show_of_a_field_equals_wg(lab: Lab) -> None:
    a, one, _, _ = busy(lab)
    for field in FIELDS:
        theirs, ours = both(a, "show", one.name, field)
        assert ours == theirs, field
    theirs, ours = both(a, "showconf", one.name)
    assert ours == theirs
    assert one.name in wyrmhole(a, "show", "interfaces").split()


def test_unconfigured_interface_is_shown_like_wg(lab: Lab) -> None:
    a, _ = lab.neighbours()
    node = lab.node(a, SUBJECT)
    for words in (["show"], ["showconf"]):
        assert wyrmhole(a, *words, node.name) == a.run("wg", *words, node.name)
    assert wyrmhole(a, "show", node.name, "dump") == a.run("wg", "show", node.name, "dump")


def test_show_prints_json(lab: Lab) -> None:
    a, one, _, two = busy(lab)
    text = wyrmhole(a, "show", one.name, "--json")
    shown = json.loads(text)
    assert shown["public_key"] == one.key.public and one.key.private not in text
    peer = next(peer for peer in shown["peers"] if peer["public_key"] == two.key.public)
    assert peer["endpoint"] == ENDPOINT and peer["latest_handshake"] and peer["rx_bytes"]


# set, setconf, addconf, syncconf


def state(host: Host, name: str) -> str:
    """Return the configuration of an interface."""
    return host.run("wg", "showconf", name)


def test_set_changes_the_same_as_wg_set(lab: Lab, tmp_path: Path) -> None:
    a, _ = lab.neighbours()
    twins = [lab.node(a, SUBJECT, port=51820 + number) for number in range(2)]
    key, psk = tmp_path / "key", tmp_path / "psk"
    key.write_text(Key.generate().private)
    psk.write_text(generate_psk())
    one, two = Key.generate().public, Key.generate().public
    for words in (
        ["private-key", str(key), "fwmark", "0x20"],
        ["peer", one, "preshared-key", str(psk), "endpoint", "192.0.2.2:1", "persistent-keepalive", "9"],
        ["peer", one, "allowed-ips", "10.0.0.0/8, fd00::/8", "peer", two, "allowed-ips", "10.1.2.3"],
        ["fwmark", "off", "peer", one, "allowed-ips", "10.1.2.3/32", "persistent-keepalive", "off"],
        ["peer", one, "allowed-ips", "", "preshared-key", "/dev/null", "peer", two, "remove"],
        ["private-key", "/dev/null"],
    ):
        for node, program in zip(twins, ("wg", WYRMHOLE), strict=True):
            a.run(program, "set", node.name, *words)
        assert state(a, twins[0].name) == state(a, twins[1].name), words
    wyrmhole(a, "set", twins[1].name, "peer", one, "allowed-ips", "+10.2.0.0/16,+10.3.0.0/16")
    wyrmhole(a, "set", twins[1].name, "peer", one, "allowed-ips", "-10.2.0.0/16")
    assert "AllowedIPs = 10.3.0.0/16\n" in state(a, twins[1].name)


def test_files_have_the_same_effect_as_with_wg(lab: Lab, tmp_path: Path) -> None:
    a, _ = lab.neighbours()
    twins = [lab.node(a, SUBJECT, port=51820 + number) for number in range(2)]
    keys = [Key.generate().public for _ in range(4)]
    first = tmp_path / "first.conf"
    first.write_text(
        f"[Interface]\nPrivateKey = {Key.generate().private}\nFwMark = 7\n"
        + peer_section(keys[0], "10.0.0.0/8", endpoint="192.0.2.2:5", psk=generate_psk())
        + peer_section(keys[1], "10.1.0.0/16", keepalive=5)
    )
    second = tmp_path / "second.conf"
    second.write_text(
        "[Interface]\nFwMark = off\n"
        + peer_section(keys[1], "10.2.0.0/16", keepalive=9)
        + peer_section(keys[2], "10.0.0.0/8")
    )
    for action, file in (
        ("setconf", first),
        ("addconf", second),
        ("syncconf", second),
        ("setconf", first),
        ("syncconf", first),
        ("syncconf", second),
        ("setconf", second),
    ):
        for node, program in zip(twins, ("wg", WYRMHOLE), strict=True):
            a.run(program, action, node.name, str(file))
        left, right = (re.sub("ListenPort.*", "", state(a, node.name)) for node in twins)
        assert left == right, (action, file)


def test_syncconf_keeps_sessions(lab: Lab, tmp_path: Path) -> None:
    a, one, b, two = busy(lab)
    saved = tmp_path / "saved.conf"
    with Capture(b, "eth0") as wire, a.pinging(two.addresses[0]):
        for number in range(3):
            extra = peer_section(Key.generate().public, f"10.78.{number}.0/24")
            saved.write_text(wyrmhole(a, "showconf", one.name) + extra)
            wyrmhole(a, "syncconf", one.name, str(saved))
        a.ping(two.addresses[0])
        b.ping(one.addresses[0])
        # `busy` has a peer that never answers, which is tried every 5 s of real time.
        assert not [datagram for datagram in wire.of(1) if datagram.destination_port == two.port]
    assert len(one.show("peers").split()) == 7


def test_syncconf_resets_keys_that_the_file_omits(lab: Lab, tmp_path: Path) -> None:
    """wg(8), in contrast, keeps the preshared key and the keepalive of a peer."""
    a, _ = lab.neighbours()
    node = lab.node(a, SUBJECT)
    peer, file = Key.generate().public, tmp_path / "a.conf"
    file.write_text(peer_section(peer, "10.0.0.0/8", psk=generate_psk(), keepalive=5))
    wyrmhole(a, "setconf", node.name, str(file))
    file.write_text(peer_section(peer, "10.0.0.0/8"))
    wyrmhole(a, "syncconf", node.name, str(file))
    assert node.show_of(peer, "preshared-keys") == ["(none)"]
    assert node.show_of(peer, "persistent-keepalive") == ["off"]


def test_missing_daemon_is_reported(lab: Lab) -> None:
    a, _ = lab.neighbours()
    result = a.try_run(WYRMHOLE, "show", "nobody0")
    assert result.returncode == 1 and "no daemon listens" in result.stderr
    result = a.try_run(WYRMHOLE, "show", "eth0")
    assert "interface exists but no user-space daemon serves it" in result.stderr


# up and down


CASES = {
    "a network and a host": "10.77.0.2/32, fd77::2/128, 10.99.0.0/16, fd99::/48",
    "everything of IPv4": "0.0.0.0/0",
    "everything": "0.0.0.0/0, ::/0, 10.77.0.2/32",
}


@pytest.mark.parametrize("allowed_ips", CASES.values(), ids=CASES)
@pytest.mark.parametrize("more", ["", "MTU = 1399\n", "Table = 1234\n", "Table = off\n", "FwMark = 0x99\n"])
def test_up_changes_the_same_as_wg_quick_and_down_reverts_it(
    lab: Lab, tmp_path: Path, allowed_ips: str, more: str
) -> None:
    client, _, _ = lab.routed()
    interface = f"[Interface]\nPrivateKey = {Key.generate().private}\nAddress = 10.77.0.1/24, fd77::1/64\n{more}"
    peer = peer_section(Key.generate().public, allowed_ips, endpoint="198.51.100.2:51821")
    quick = Quick(client, tmp_path, interface + peer)
    before = traces(client)
    quick("wg-quick", "up")
    expected = traces(client)
    quick("wg-quick", "down")
    until(quick.is_gone, "wg-quick's daemon ended")
    assert traces(client) == before
    quick(WYRMHOLE, "up")
    assert traces(client) == expected
    quick(WYRMHOLE, "down")
    assert quick.is_gone()
    assert traces(client) == before
    quick("wg-quick", "up")
    quick(WYRMHOLE, "down")
    assert traces(client) == before, "down also works after up by wg-quick"


def test_all_traffic_uses_the_tunnel(lab: Lab, tmp_path: Path) -> None:
    client, _, server = lab.routed()
    key = Key.generate()
    node = lab.node(server, SUBJECT, port=51821)
    node.configure(peer_section(key.public, *inner(1)))
    node.assign(*inner(2, 24, 64))
    node.up()
    server.ip("address", "add", "203.0.113.7/32", "dev", "lo")
    interface = f"[Interface]\nPrivateKey = {key.private}\nAddress = 10.77.0.1/24, fd77::1/64\n"
    quick = Quick(
        client, tmp_path, interface + peer_section(node.key.public, "0.0.0.0/0", "::/0", endpoint="198.51.100.2:51821")
    )
    quick(WYRMHOLE, "up")
    for address in (*node.addresses, "203.0.113.7"):
        client.ping(address)
    quick(WYRMHOLE, "down")
    client.ping("198.51.100.2")


def test_hooks_and_name_servers_work_like_wg_quick(lab: Lab, tmp_path: Path) -> None:
    a, _ = lab.neighbours()
    programs, record = tmp_path / "bin", tmp_path / "record"
    programs.mkdir()
    fake = programs / "resolvconf"
    fake.write_text(FAKE_RESOLVCONF.format(record=record))
    fake.chmod(0o755)
    hooks = "".join(
        f"{when} = echo {when} {number} %i >> {record}; test ! -e /sys/class/net/%i || echo there >> {record}\n"
        for when, number in itertools.product(("PreUp", "PostUp", "PreDown", "PostDown"), (1, 2))
    )
    key = Key.generate().private
    text = f"[Interface]\nPrivateKey = {key}\nAddress = 10.77.0.1/24\nDNS = 10.77.0.2, lab.example, fd77::2\n{hooks}"
    quick = Quick(a, tmp_path, text, programs)
    records = []
    for program in ("wg-quick", WYRMHOLE):
        for action in ("up", "down"):
            quick(program, action)
            until(quick.is_gone if action == "down" else lambda: True, "gone")
        records.append(re.sub("^-d.*\n", "", record.read_text(), flags=re.MULTILINE))
        assert f"-d {quick.name} -f" in record.read_text() or f"-d tun.{quick.name} -f" in record.read_text()
        record.unlink()
    before_2025 = f"PreUp 1 {quick.name}\nPreUp 2 {quick.name}\n"
    theirs = records[0].replace(before_2025, before_2025.replace("\n", "\nthere\n"))
    assert theirs == records[1] and "search lab.example" in theirs


@pytest.mark.parametrize(
    ("more", "allowed_ips", "message"),
    [
        ("PostUp = false\n", "0.0.0.0/0, ::/0", "a hook ended with status 1: false"),
        ("Address = 10.77.0.1/24\n", "10.0.0.0/8", "cannot add the address 10.77.0.1/24: EEXIST"),
        ("Table = nosuch\n", "10.0.0.0/8", "no table has that name"),
        ("MTU = 100\n", "::/0", "MTU 100 is below 1280"),
    ],
)
def test_failed_up_leaves_nothing(lab: Lab, tmp_path: Path, more: str, allowed_ips: str, message: str) -> None:
    client, _, _ = lab.routed()
    interface = f"[Interface]\nPrivateKey = {Key.generate().private}\nAddress = 10.77.0.1/24, fd77::1/64\n{more}"
    quick = Quick(client, tmp_path, interface + peer_section(Key.generate().public, allowed_ips))
    before = traces(client)
    result = client.try_run(WYRMHOLE, "up", str(quick.file))
    assert result.returncode == 1 and message in result.stderr, result.stderr
    assert quick.is_gone() and traces(client) == before


def test_interrupted_up_leaves_nothing(lab: Lab, tmp_path: Path) -> None:
    client, _, _ = lab.routed()
    text = f"[Interface]\nPrivateKey = {Key.generate().private}\nAddress = 10.77.0.1/24\nPostUp = exec sleep 1000\n"
    quick = Quick(client, tmp_path, text + peer_section(Key.generate().public, "0.0.0.0/0"))
    before = traces(client)
    process = client.spawn(WYRMHOLE, "up", str(quick.file), output=subprocess.PIPE)
    try:
        assert process.stdout is not None
        until(lambda: "exec sleep" in process.stdout.readline(), "the hook runs")  # type: ignore[union-attr]
        process.terminate()
        assert process.wait(20) == 128 + signal.SIGTERM
    finally:
        end(process)
    assert quick.is_gone() and traces(client) == before


def test_interface_of_another_daemon_is_left_alone(lab: Lab, tmp_path: Path) -> None:
    """All network namespaces share one folder of socket files."""
    a, b = lab.neighbours()
    quick = Quick(a, tmp_path, f"[Interface]\nPrivateKey = {Key.generate().private}\nAddress = 10.77.0.1/24\n")
    quick(WYRMHOLE, "up")
    result = b.try_run(WYRMHOLE, "up", str(quick.file))
    assert result.returncode == 1 and "in use by another process" in result.stderr
    assert quick.name in a.run("wg", "show", quick.name)
    quick(WYRMHOLE, "down")


def test_second_up_is_refused_without_side_effects(lab: Lab, tmp_path: Path) -> None:
    a, _ = lab.neighbours()
    quick = Quick(a, tmp_path, f"[Interface]\nPrivateKey = {Key.generate().private}\nAddress = 10.77.0.1/24\n")
    quick(WYRMHOLE, "up")
    before = traces(a)
    assert "already exists" in a.try_run(WYRMHOLE, "up", str(quick.file)).stderr
    assert traces(a) == before
    quick(WYRMHOLE, "down")


def test_save_keeps_comments_and_names(lab: Lab, tmp_path: Path) -> None:
    a, _ = lab.neighbours()
    peer, extra = Key.generate().public, Key.generate().public
    text = (
        f"# the office\n[Interface]\nPrivateKey = {Key.generate().private} # ours\nAddress = 10.77.0.1/24\n"
        f"SaveConfig = true\nListenPort = 51820\n\n[Peer]\n# friendly_name = Bob\nPublicKey = {peer}\n"
        "AllowedIPs = 10.77.5.0/24\n"
    )
    quick = Quick(a, tmp_path, text)
    quick(WYRMHOLE, "up")
    quick(WYRMHOLE, "save")
    assert quick.file.read_text() == text, "without a change the file is written unchanged"
    a.run("wg", "set", quick.name, "listen-port", "51999", "peer", extra, "allowed-ips", "10.77.6.0/24")
    quick(WYRMHOLE, "down")
    expected = text.replace("51820", "51999") + f"\n[Peer]\nPublicKey = {extra}\nAllowedIPs = 10.77.6.0/24\n"
    assert quick.file.read_text() == expected
    assert quick.file.stat().st_mode & 0o777 == 0o600 and not list(tmp_path.glob("*.tmp"))


# strip

STRANGE = """
# a comment
  [interface]   # ours
PrivateKey = yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=
   address = 10.0.0.1/24   # here
ListenPort=5
PostUp = echo '[Peer]'
SaveConfig = true
dns = 1.1.1.1
\tMTU = 1400

[Peer]
# MTU = 3
PublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=
AllowedIPs = 10.0.0.0/8
"""


@pytest.mark.parametrize("change", [lambda text: text, lambda text: text.rstrip("\n"), lambda text: text + "\n\n"])
def test_strip_equals_wg_quick_strip(tmp_path: Path, change: Callable[[str], str]) -> None:
    file = tmp_path / "wg0.conf"
    file.touch(0o600)
    file.write_text(change(STRANGE))
    host = Host()
    try:
        assert wyrmhole(host, "strip", str(file)) == host.run("wg-quick", "strip", str(file))
    finally:
        host.delete()

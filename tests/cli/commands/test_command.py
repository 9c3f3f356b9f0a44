"""The command without a network: keys, files, QR codes, completion, and errors."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.cli.wyrmhole_command import WYRMHOLE, invoke, output, refusal
from wyrmhole.cli import app
from wyrmhole.cli.commands import check as command_check
from wyrmhole.cli.commands.change import parse_words
from wyrmhole.cli.doctor import checks
from wyrmhole.cli.quick import dns, firewall, quick, save
from wyrmhole.control.config.endpoint_names import NameResolver
from wyrmhole.control.config.file import Config
from wyrmhole.control.config.strip import for_apps
from wyrmhole.control.uapi import client
from wyrmhole.device.status import DeviceStatus
from wyrmhole.errors import DeviceError
from wyrmhole.protocol.keys import PrivateKey

PRIVATE = "sL4hQ0m2gqZ0pUe0cN5w6f1aDqv3uPp0l1Jq9d2m4Hc="
PUBLIC = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
GOOD = (
    f"[Interface]\nPrivateKey = {PRIVATE}\nAddress = 10.0.0.1/24\nListenPort = 1\n# why\n[Peer]\nPublicKey = {PUBLIC}\n"
)
GOOD += "AllowedIPs = 10.0.0.2/32\n"


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    path = tmp_path / "wg0.conf"
    path.touch(0o600)
    path.write_text(GOOD)
    return path


# Keys


def test_keys_have_the_form_of_wg() -> None:
    private = output("genkey").strip()
    assert PrivateKey.from_base64(private).base64() == private, "the key is clamped"
    assert len(output("genpsk").strip()) == 44
    assert output("pubkey", text=private + "\n").strip() == PrivateKey.from_base64(private).public_key().base64()
    assert output("genkey") != output("genkey")


@pytest.mark.parametrize("text", ["", "abc", PRIVATE[:-1], "A" * 43 + "=", PRIVATE * 2, "\0" * 5000])
def test_invalid_key_is_refused_and_not_repeated(text: str) -> None:
    message = refusal("pubkey", text=text)
    assert message.startswith("wyrmhole: stdin: ") and message.count("\n") == 1 and PRIVATE[:10] not in message


def test_world_readable_key_file_causes_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "key"
    for mode, warned in ((0o644, True), (0o600, False)):
        path.touch()
        path.chmod(mode)
        with path.open("w") as file:
            result = subprocess.run([WYRMHOLE, "genkey"], stdout=file, stderr=subprocess.PIPE, text=True, check=True)
        assert ("umask 077" in result.stderr) is warned


# set


def words(*words: str) -> object:
    return parse_words(words, NameResolver(0, lambda _: None, lambda _: None))


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["foo"], "unknown word `foo'; expected listen-port, fwmark, private-key or peer"),
        (["listen-port"], "needs a value after it"),
        (["listen-port", "70000"], "expected a number from 0 to 65535"),
        (["peer", "abc"], "peer: expected 44 characters of base64, like the output of `wyrmhole pubkey`"),
        (["peer", PUBLIC, "colour", "blue"], "expected remove"),
        (["peer", PUBLIC, "allowed-ips", "+-10.1.0.0/16"], "expected prefixes"),
        (["peer", PUBLIC, "allowed-ips", "10.0.0.0/8,"], "expected prefixes"),
        (["peer", PUBLIC, "allowed-ips", "10.0.0.0/33"], "expected prefixes"),
        (["peer", PUBLIC, "persistent-keepalive", "x"], "expected seconds"),
        (["peer", PUBLIC, "endpoint", "x"], "expected host:port"),
        (["remove"], "unknown word"),
    ],
)
def test_unknown_or_incomplete_words_are_a_usage_error(arguments: list[str], part: str) -> None:
    assert part in refusal("set", "wg0", *arguments, status=2)


def test_key_on_the_command_line_is_taken_as_a_file_name(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("not a key, but as long as one, perhaps")
    assert "not a key, but" not in refusal("set", "wg0", "private-key", str(path), status=2)
    assert "No such file" in refusal("set", "wg0", "private-key", str(tmp_path / "nowhere"))


# check


def test_check_reports_line_and_problem(conf: Path) -> None:
    assert output("check", str(conf)) == f"{conf}: no problems found\n"
    conf.write_text(GOOD.replace("10.0.0.2/32", "10.0.0.2/33").replace("ListenPort = 1", "ListenPort = 1\nMTU = 9000"))
    result = invoke("check", str(conf))
    assert result.exit_code == 1
    assert f"{conf}:5: warning: MTU 9000" in result.stdout and f"{conf}:9: error: AllowedIPs: expected" in result.stdout
    found = json.loads(invoke("check", "--json", str(conf)).stdout)
    assert [(finding["line"], finding["level"]) for finding in found][:1] == [(5, "warning")]
    assert all(set(finding) == {"line", "level", "message"} for finding in found)


def test_check_counts_warnings_only_if_strict(conf: Path) -> None:
    conf.write_text(GOOD.replace("ListenPort = 1", "ListenPort = 1\nMTU = 9000"))
    assert invoke("check", str(conf)).exit_code == 0
    assert invoke("check", "--strict", str(conf)).exit_code == 1


def test_check_warns_of_each_unresolvable_name(conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hang = threading.Event()

    def look_up(host: str, port: int) -> str:
        if host == "slow.example":
            hang.wait(60)
        if host != "good.example":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return f"192.0.2.1:{port}"

    monkeypatch.setattr(command_check, "look_up_host", look_up)
    monkeypatch.setattr(command_check, "NAME_SECONDS", 0.2)
    key = "[Peer]\nPublicKey = {}\nAllowedIPs = 10.0.{}.0/24\nEndpoint = {}:5\n"
    hosts = ("gone.example", "good.example", "slow.example", "192.0.2.9")
    conf.write_text(GOOD + "".join(key.format(f"{n}{PUBLIC[1:]}", n, host) for n, host in enumerate(hosts, 1)))
    try:
        message = output("check", str(conf))
        offline = output("check", "--offline", str(conf))
    finally:
        hang.set()
    assert f"{conf}:12: warning: gone.example cannot be resolved now (Name or service not known)" in message
    assert f"{conf}:20: warning: slow.example cannot be resolved now (no answer within 0.2 s)" in message
    assert message.count("cannot be resolved") == 2
    assert offline == f"{conf}: no problems found\n"


@pytest.mark.parametrize("text", ["# B\xfcro\n", "[Peer]\n# name = B\xfcro\n", "[Interface]\nPostUp = \xfc # \xfc\n"])
def test_check_and_strip_accept_any_encoding(conf: Path, text: str) -> None:
    data = text.encode("latin-1") + GOOD.encode()
    conf.write_bytes(data)
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    for command in ("check", "strip"):
        arguments = [WYRMHOLE, command, str(conf)]
        done = subprocess.run(arguments, capture_output=True, env=environment, timeout=60, check=False)
        assert b"Traceback" not in done.stderr
        if text.startswith("#"):
            assert done.returncode == 0, done.stderr
            assert command == "check" or done.stdout.startswith(b"# B\xfcro\n[Interface]\n")


def test_check_examines_name_and_mode_of_the_file(conf: Path) -> None:
    conf.chmod(0o644)
    conf.parent.chmod(0o755)
    assert "accessible to every user" in output("check", str(conf))
    other = conf.with_name("sixteen-letters0.conf")
    conf.rename(other)
    assert "`wyrmhole up` will refuse it" in output("check", str(other))
    assert "No such file" in refusal("check", str(conf))


def test_name_means_a_file_in_etc_wireguard(conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "CONFIG_FOLDER", conf.parent)
    assert output("strip", "wg0").startswith("[Interface]")


def test_unreadable_file_of_a_name_is_reported_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> tuple[str, str | None]:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(command_check, "read_file", refuse)
    message = refusal("check", "wg0")
    assert message.startswith("wyrmhole: /etc/wireguard/wg0.conf: Permission denied (run as root, or give a path ")
    assert refusal("check", "./wg0.conf") == "wyrmhole: wg0.conf: Permission denied\n"


def test_strip_refuses_a_file_that_wg_refuses(conf: Path) -> None:
    conf.write_text(GOOD.replace("AllowedIPs", "AllowedIP"))
    assert refusal("strip", str(conf)).startswith(f"wyrmhole: {conf}:8: ")


# show


def test_show_skips_a_daemon_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(name: str) -> DeviceStatus:
        if name == "hung0":
            raise DeviceError("the daemon of hung0 does not answer: timed out")
        return DeviceStatus(name, None, 5, 0, 0, ())

    served = ["hung0", "well0"]
    monkeypatch.setattr(client, "interfaces", lambda: served)
    monkeypatch.setattr(client, "get", get)
    for words in (("show",), ("show", "all", "listen-port"), ("show", "--json")):
        result = invoke(*words)
        assert result.exit_code == 0 and "well0" in result.stdout
        assert result.stderr == "Warning: the daemon of hung0 does not answer: timed out\n"
    assert "does not answer" in refusal("show", "hung0")
    served.remove("well0")
    assert refusal("show").endswith("no daemon answers\n")


# qr


def test_qr_of_a_key_needs_a_terminal_a_file_or_a_flag(conf: Path, tmp_path: Path) -> None:
    assert "--allow-secrets" in refusal("qr", str(conf))
    assert len(output("qr", "--allow-secrets", str(conf)).splitlines()) > 10
    for kind, magic in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        picture = tmp_path / f"wg0.{kind}"
        output("qr", str(conf), "-o", str(picture))
        assert picture.read_bytes().startswith(magic) and picture.stat().st_mode & 0o777 == 0o600
    assert ".png or .svg" in refusal("qr", str(conf), "-o", str(tmp_path / "wg0.gif"))


def test_qr_contains_only_keys_that_the_apps_accept(conf: Path) -> None:
    odd = "Table = off\nPostUp = true # x\nSaveConfig = false\nFwMark = 5\nPreDown = \nDNS = 10.0.0.9, lan, ~corp\n"
    conf.write_text(GOOD.replace("# why", f"{odd}MTU = 1400\nExcludedApplications = a.b\n# why"))
    text, left_out = for_apps(Config.load(conf))
    assert text == (
        f"[Interface]\nExcludedApplications = a.b\nPrivateKey = {PRIVATE}\nListenPort = 1\nAddress = 10.0.0.1/24\n"
        f"DNS = 10.0.0.9, lan\nMTU = 1400\n\n[Peer]\nPublicKey = {PUBLIC}\nAllowedIPs = 10.0.0.2/32\n"
    )
    assert left_out == ["FwMark", "Table", "SaveConfig", "PostUp", "PreDown", "DNS ~corp"]
    message = invoke("qr", "--allow-secrets", str(conf)).stderr
    assert message.startswith("Warning: left out, because the mobile apps refuse it: FwMark, Table, SaveConfig")
    assert for_apps(Config.parse(f"[Peer]\nPublicKey = {PUBLIC}\n"))[0].startswith("[Interface]\n[Peer]\n")


def test_qr_refuses_a_file_that_is_too_large(conf: Path) -> None:
    conf.write_text(GOOD + "AllowedIPs = 10.0.0.0/8\n" * 1000)
    assert "2953 bytes" in refusal("qr", "--allow-secrets", str(conf))


# completion, help, failures


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_each_shell(shell: str) -> None:
    assert "_WYRMHOLE_COMPLETE" in output("completion", shell)


def test_bash_completes_commands_and_files(conf: Path) -> None:
    script = output("completion", "bash")
    line = f'{script}\nCOMP_WORDS=(wyrmhole che); COMP_CWORD=1; _wyrmhole_completion wyrmhole; echo "${{COMPREPLY[@]}}"'
    environ = os.environ | {"PATH": f"{Path(WYRMHOLE).parent}:{os.environ['PATH']}"}
    result = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=environ, check=False)
    assert result.stdout.strip() == "check"


def test_every_sub_command_has_help() -> None:
    listed = output("--help")
    for name in app.COMMAND_MODULES:
        assert name in listed and output(name, "--help").startswith("Usage: wyrmhole")


def test_missing_extra_is_reported_with_the_command_to_install_it() -> None:
    program = "import sys; sys.modules['click'] = None\nfrom wyrmhole.cli.main import main\nmain()"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 1 and "with its extra `cli`" in result.stderr
    assert "pip install '.[cli]' in a checkout" in result.stderr
    assert "Traceback" not in result.stderr


def test_start_imports_neither_netlink_nor_qr_code() -> None:
    program = "import sys, wyrmhole.cli.commands.quick, wyrmhole.cli.commands.qr; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"segno", "asyncio"} & set(loaded)


@pytest.mark.skipif(os.geteuid() == 0, reason="root is allowed to")
def test_up_needs_root(conf: Path) -> None:
    assert "sudo" in refusal("up", str(conf))


# doctor


def test_doctor_prints_its_findings() -> None:
    result = invoke("doctor", "--json")
    found = {finding["what"]: finding for finding in json.loads(result.stdout)}
    assert {"engine", "cipher", "rights", "TUN", "namespaces", "clock", "descriptors"} <= set(found)
    assert found["cipher"]["level"] == "good"
    assert all(finding["advice"] for finding in found.values() if finding["level"] == "bad")
    assert "cipher" in invoke("doctor").stdout


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "No such file or directory"),
        ("folder", "Is a directory"),
        (bytes(range(128, 256)), "expected `Key = value`"),
        (b"\xff\xfeh\0i\0", "in UTF-16"),
        (b"[Interface]\nPrivateKey = short\n", "PrivateKey: expected 44 characters"),
        (b"[Peer]\nEndpoint = nowhere\n", "Endpoint"),
    ],
    ids=["missing", "folder", "garbage", "UTF-16", "short key", "bad endpoint"],
)
@pytest.mark.parametrize("options", [(), ("--json",)], ids=["text", "json"])
def test_doctor_refuses_an_invalid_file_in_one_sentence(
    content: bytes | str | None, expected: str, options: tuple[str, ...], tmp_path: Path
) -> None:
    path = tmp_path / "wg0.conf"
    if content == "folder":
        path.mkdir()
    elif isinstance(content, bytes):
        path.touch(0o600)
        path.write_bytes(content)
    message = refusal("doctor", str(path), *options)
    assert expected in message and message.count("\n") == 1 and str(path) in message


def test_doctor_prints_findings_of_a_file_as_json(tmp_path: Path) -> None:
    path = tmp_path / "wg0.conf"
    path.touch(0o600)
    result = invoke("doctor", str(path), "--json")
    first, *_ = json.loads(result.stdout)
    assert result.exit_code == 1
    assert (
        set(first) == {"step", "level", "found", "advice", "peer"} and "does not configure a tunnel" in first["found"]
    )


def test_failed_examination_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> object:
        raise RuntimeError("a bug")

    monkeypatch.setattr(checks, "EXAMINATIONS", (broken, checks._descriptors))
    first, second = checks.examine()
    assert "examination failed: a bug" in first.found and second.what == "descriptors"


# Parts of up


def test_table_name_has_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = tmp_path / "rt_tables"
    names.write_text("# tables\n254\tmain\n  77 vpn # ours\n")
    monkeypatch.setattr(quick, "TABLE_NAMES", (tmp_path / "missing", names))
    assert quick.table_number("vpn") == 77
    with pytest.raises(DeviceError, match="no table has that name"):
        quick.table_number("lan")


def test_file_is_replaced_atomically(conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: object, target: object) -> None:
        raise OSError("no")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="no"):
            save.write_atomically(conf, "other")
    assert conf.read_text() == GOOD and list(conf.parent.iterdir()) == [conf]
    save.write_atomically(conf, "other")
    assert conf.read_text() == "other" and conf.stat().st_mode & 0o777 == 0o600


def test_dns_without_a_program_is_refused_before_any_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    dns.NameService("wg0", [], ["lan"]).require()
    with pytest.raises(DeviceError, match="resolvconf"):
        dns.NameService("wg0", ["10.0.0.1"], []).require()
    with pytest.raises(DeviceError, match="nftables"):
        firewall.require()


def test_resolvectl_is_used_if_resolvconf_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr("shutil.which", lambda name: name if name == "resolvectl" else None)
    monkeypatch.setattr(dns, "_run", lambda arguments, text="": ran.append(arguments))
    service = dns.NameService("wg0", ["10.0.0.1"], ["lan"])
    service.require()
    service.set()
    service.unset()
    assert ran == [
        ["resolvectl", "dns", "wg0", "10.0.0.1"],
        ["resolvectl", "domain", "wg0", "~.", "lan"],
        ["resolvectl", "revert", "wg0"],
    ]


def test_first_prefix_of_resolvconf_is_used(tmp_path: Path) -> None:
    order = tmp_path / "interface-order"
    order.write_text("# order\nlo.inet\ntun*\neth*\n")
    assert dns._record_prefix(order) == "tun."
    assert dns._record_prefix(tmp_path / "missing") == ""

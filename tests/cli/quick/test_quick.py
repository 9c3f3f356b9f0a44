"""The parts of `up` and `down` that need no interface."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from wyrmhole.cli.quick import daemon as quick_daemon
from wyrmhole.cli.quick import dns, firewall, save
from wyrmhole.cli.quick import host as quick_host
from wyrmhole.cli.quick import routing as quick_routing
from wyrmhole.cli.quick.daemon import Daemon
from wyrmhole.cli.quick.holders import DAEMON_MODULE, Process
from wyrmhole.cli.quick.host import Host, Taken
from wyrmhole.cli.quick.names import RETRIES_BESIDE_A_USABLE_PEER, EndpointLookup
from wyrmhole.cli.quick.quick import Undo
from wyrmhole.cli.quick.routing import Routing
from wyrmhole.cli.quick.signals import ENDING, Interrupts
from wyrmhole.control.config.endpoint_names import DEFAULT_RETRIES
from wyrmhole.control.config.file import Config, ConfigPeer
from wyrmhole.control.config.values import ConfigEndpoint
from wyrmhole.control.uapi.socket import LOCK_NAME
from wyrmhole.errors import DeviceError
from wyrmhole.net.link_setup import MAIN_TABLE, Route
from wyrmhole.protocol.keys import PublicKey
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.prefix import Prefix

# Names


class Names:
    """A resolver that knows the names `known`. Those in `passing` fail temporarily, all others permanently."""

    def __init__(self, known: tuple[str, ...] = (), passing: tuple[str, ...] = (), retries: str = "") -> None:
        self.known, self.passing = known, passing
        self.waits: list[float] = []
        self.warnings: list[str] = []
        self.names = EndpointLookup(retries, self.warnings.append, Interrupts(), self.look_up, self.waits.append)

    def look_up(self, host: str, port: int) -> str:
        if host in self.known:
            return f"192.0.2.7:{port}"
        number = socket.EAI_AGAIN if host in self.passing else socket.EAI_NONAME
        raise socket.gaierror(number, "it said")


def config(*hosts: str | None) -> Config:
    endpoints = [None if host is None else ConfigEndpoint(host, 5) for host in hosts]
    peers = [
        ConfigPeer(PublicKey(number.to_bytes(32, "big")), endpoint=endpoint)
        for number, endpoint in enumerate(endpoints, 1)
    ]
    return Config(peers=peers)


@pytest.mark.parametrize("usable", ["good.example", "192.0.2.7", None])
def test_one_usable_peer_is_enough(usable: str | None) -> None:
    names = Names(("good.example",), ("later.example",))
    resolve = names.names.resolve(config(usable, "gone.example", "later.example"), "wg0")
    if usable:
        assert resolve(ConfigEndpoint(usable, 5)) == Endpoint("192.0.2.7", 5)
    assert resolve(ConfigEndpoint("gone.example", 5)) is None
    assert len(names.waits) == RETRIES_BESIDE_A_USABLE_PEER
    reports = [line for line in names.warnings if "goes on without it" in line]
    assert [line.split()[1] for line in reports] == ["gone.example:5:", "later.example:5:"]
    assert "wyrmhole set wg0 peer AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAI= endpoint gone.example:5" in reports[0]


def test_names_are_retried_like_wg_if_no_peer_is_usable() -> None:
    names = Names((), ("later.example",))
    with pytest.raises(DeviceError, match=r"endpoint later\.example:5: it said"):
        names.names.resolve(config("later.example", "gone.example"), "wg0")
    assert len(names.waits) == DEFAULT_RETRIES and 60 < sum(names.waits) < 90
    assert "Ctrl-C stops" in names.warnings[0]


def test_unknown_name_is_tried_once() -> None:
    names = Names()
    with pytest.raises(DeviceError, match="no peer can be reached"):
        names.names.resolve(config("gone.example"), "wg0")
    assert names.waits == []


@pytest.mark.parametrize(("retries", "count"), [("0", 0), ("4", 4), ("nonsense", DEFAULT_RETRIES)])
def test_number_of_retries_is_configurable(retries: str, count: int) -> None:
    names = Names(("good.example",), ("later.example",), retries)
    names.names.resolve(config("good.example", "later.example"), "wg0")
    assert len(names.waits) == count


def test_name_that_resolves_later_is_used() -> None:
    names = Names((), ("later.example",))

    def wait(seconds: float) -> None:
        names.known = ("later.example",)

    object.__setattr__(names.names, "wait", wait)
    resolve = names.names.resolve(config("later.example"), "wg0")
    assert resolve(ConfigEndpoint("later.example", 5)) == Endpoint("192.0.2.7", 5)
    assert not any("goes on without" in line for line in names.warnings)


def test_hundreds_of_names_are_all_resolved() -> None:
    hosts = [f"h{number}.example" for number in range(300)]
    resolve = Names(tuple(hosts)).names.resolve(config(*hosts), "wg0")
    assert all(resolve(ConfigEndpoint(host, 5)) for host in hosts)


# Signals


def test_signal_takes_effect_after_the_current_step() -> None:
    interrupts = Interrupts()
    before = {number: signal.getsignal(number) for number in ENDING}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        interrupts.watch()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN, "nohup(1) relies on it"
        os.kill(os.getpid(), signal.SIGHUP)
        interrupts.check()
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.is_pending
        with interrupts.held():
            interrupts.check()
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(SystemExit) as ended:
            interrupts.check()
        assert ended.value.code == 128 + signal.SIGTERM
        os.kill(os.getpid(), signal.SIGINT)
        interrupts.check()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_signal_ends_a_wait_at_once() -> None:
    interrupts = Interrupts()
    before = {number: signal.getsignal(number) for number in ENDING}
    try:
        interrupts.watch()
        with pytest.raises(SystemExit), interrupts.waiting():
            os.kill(os.getpid(), signal.SIGALRM)
            signal.pause()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_undo_continues_after_a_failed_step() -> None:
    done: list[str] = []
    warnings: list[str] = []

    def fail() -> None:
        raise DeviceError("no")

    undo = Undo(warnings.append)
    for step in (lambda: done.append("first"), fail, lambda: done.append("last")):
        undo.add(step)
    undo.run()
    undo.run()
    assert done == ["last", "first"] and warnings == ["could not undo everything: no"]


# Daemons


def test_end_waits_for_a_daemon_with_a_hidden_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container without CAP_SYS_PTRACE, only its socket is visible."""
    monkeypatch.setattr(quick_daemon, "GONE_SECONDS", 0.1)
    monkeypatch.setattr(Daemon, "process", None)
    daemon = Daemon("wg0", str(tmp_path))
    daemon.log.touch()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(daemon.socket))
        listener.listen()
        assert "stop it by hand" in (daemon.end() or "")
        assert daemon.log.exists()
    assert daemon.end() is None
    assert [path.name for path in tmp_path.iterdir()] == [LOCK_NAME]


def test_failed_start_leaves_no_log(tmp_path: Path) -> None:
    daemon = Daemon("a name that no interface has", str(tmp_path))
    with pytest.raises(DeviceError, match="the daemon did not start: "):
        daemon.start(Interrupts())
    assert list(tmp_path.iterdir()) == [] and not daemon.may_run


def test_hanging_start_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick_daemon, "START_SECONDS", 0.3)
    hang = tmp_path / "python"
    hang.write_text("#!/bin/sh\nexec sleep 1000\n")
    hang.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(hang))
    daemon = Daemon("wg0", str(tmp_path))
    with pytest.raises(DeviceError, match="did not start in"):
        daemon.start(Interrupts())
    assert list(tmp_path.iterdir()) == [hang] and daemon.may_run


# Files


def test_concurrent_saves_do_not_corrupt_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "wg0.conf"
    file.write_text("old")
    sync = os.fsync

    def interrupted(fd: int) -> None:
        monkeypatch.setattr(os, "fsync", sync)
        save.write_atomically(file, "a longer text of the second")
        assert file.read_text() == "a longer text of the second"

    monkeypatch.setattr(os, "fsync", interrupted)
    save.write_atomically(file, "first")
    assert file.read_text() == "first" and list(tmp_path.iterdir()) == [file]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_saved_file_keeps_its_owner(tmp_path: Path) -> None:
    file, link = tmp_path / "real.conf", tmp_path / "wg0.conf"
    file.write_text("old")
    os.chown(file, 4711, 4712)
    link.symlink_to(file)
    save.write_atomically(link, "new")
    status = file.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (4711, 4712, 0o600)
    assert link.is_symlink() and file.read_text() == "new"


# Routes


class FakeHost(Host):
    """A kernel's routing tables, which other tunnels may change between a look-up and an addition."""

    def __init__(self, *routes: Route) -> None:
        self.interface = "wg0"
        self.__dict__["versions"] = (4, 6)
        self.table = list(routes)
        self.before_add: Callable[[], None] = lambda: None

    @property
    def index(self) -> int:
        return 7

    def name_of(self, device: int) -> str:
        return f"wg{device}"

    def routes(self, version: int) -> list[Route]:
        return [route for route in self.table if route.version == version]

    def add_route(self, prefix: Prefix, table: int = MAIN_TABLE) -> None:
        self.before_add()
        wanted = (prefix.version, table, prefix.length, prefix.network)
        if any((route.version, route.table, route.length, route.network) == wanted for route in self.table):
            raise Taken("EEXIST")
        self.table.append(Route(prefix.version, table, self.index, prefix.length, prefix.network))

    def delete_route(self, prefix: Prefix, table: int) -> None:
        self.table.remove(Route(prefix.version, table, self.index, prefix.length, prefix.network))


BOTH = [Prefix.parse("0.0.0.0/0"), Prefix.parse("::/0")]


@pytest.mark.parametrize("version", [4, 6])
def test_table_taken_in_between_is_left_for_the_next(version: int) -> None:
    """Whichever of the two routes another tunnel added, none of ours remains in its table."""
    host = FakeHost()

    def intrude() -> None:
        host.before_add = lambda: None
        host.table.append(Route(version, 51820, 9, 0, 0))

    host.before_add = intrude
    routing = Routing(host, lambda line: None, lambda line: None)
    assert routing._reserve(BOTH, 0, may_change=False) == 51821
    assert {route.table for route in host.table if route.device == 7} == {51821}


def test_table_with_any_route_is_not_free() -> None:
    host = FakeHost(Route(4, 51820, 3, 8, 10 << 24), Route(6, 51821, 3, 64, 0xFD << 120))
    assert Routing(host, lambda line: None, lambda line: None)._reserve(BOTH, 0, may_change=False) == 51822


def test_routes_are_requested_from_the_kernel_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    host = FakeHost(Route(4, 254, 7, 16, (10 << 24) + (77 << 16)), Route(4, 254, 8, 8, 10 << 24))
    host.__dict__["_index"] = 7
    host._covered = {}

    def routes(version: int) -> list[Route]:
        asked.append(version)
        return host.table

    monkeypatch.setattr(host, "routes", routes)
    assert host.has_route(Prefix.parse("10.77.3.0/24")) and host.has_route(Prefix.parse("10.77.0.0/16"))
    for number in range(1000):
        assert not host.has_route(Prefix.parse(f"20.{number >> 8}.{number & 255}.0/25"))
    assert not host.has_route(Prefix.parse("10.0.0.0/8")), "this route belongs to another interface"
    assert asked == [4]


@pytest.mark.parametrize(
    ("ways", "default", "expected"),
    [([1500, 0, 1400], 1492, 1320), ([0, 0], 1492, 1412), ([], 1492, 1412), ([], 0, 1420), ([9000], 1500, 8920)],
)
def test_mtu_is_that_of_the_narrowest_path(ways: list[int], default: int, expected: int) -> None:
    class Ways(FakeHost):
        def path_mtu(self, endpoint: Endpoint) -> int:
            return ways[endpoint.port]

        def default_mtu(self) -> int:
            return default

    endpoints = [Endpoint("192.0.2.1", number) for number in range(len(ways))]
    assert quick_host.best_mtu(Ways(), [None, *endpoints]) == expected


# Programs of the host


def test_no_prefix_if_resolvconf_is_a_link_to_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prefix list of Debian's resolvconf remains after a switch to systemd."""
    order, program = tmp_path / "interface-order", tmp_path / "resolvconf"
    order.write_text("tun*\n")
    program.symlink_to("/usr/bin/resolvectl")
    monkeypatch.setattr(dns, "INTERFACE_ORDER", order)
    monkeypatch.setattr("shutil.which", lambda name: str(program))
    service = dns.NameService("wg0", ["10.0.0.1"], [])
    assert service._record == "wg0"
    program.unlink()
    program.touch()
    assert service._record == "tun.wg0"


def test_marks_of_a_dead_daemon_are_read_from_the_firewall(monkeypatch: pytest.MonkeyPatch) -> None:
    nft = (
        "table ip wg-quick-wg0 {\n\tchain postmangle {\n"
        "\t\tmeta l4proto udp meta mark 0x0000ca6c ct mark set meta mark\n\t}\n}\n"
    )
    iptables = (
        '-A POSTROUTING -p udp -m mark --mark 0xca6d -m comment --comment "wg-quick(8) rule for wg0" -j CONNMARK\n'
        '-A POSTROUTING -p udp -m mark --mark 0xca6e -m comment --comment "wg-quick(8) rule for wg01" -j CONNMARK\n'
    )
    texts = {
        ("nft", "list", "tables"): "table ip wg-quick-wg0\ntable ip wg-quick-wg01\n",
        ("nft", "list", "table", "ip", "wg-quick-wg0"): nft,
        ("iptables-save",): iptables,
    }
    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setattr(
        firewall,
        "_call",
        lambda words, script: subprocess.CompletedProcess(words, 0, texts.get(tuple(words), ""), ""),
    )
    assert firewall.marks("wg0") == {51820, 51821}


def test_larger_value_decides_whether_rp_filter_is_strict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick_routing, "SYSCTLS", tmp_path)
    for name, value in {"all": 0, "default": 1, "lo": 1, "eth0": 1, "eth1": 2, "eth2": 0, "wg0": 1}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "rp_filter").write_text(f"{value}\n")
    assert quick_routing._strict_filters("wg0") == "eth0"
    (tmp_path / "all/rp_filter").write_text("1\n")
    assert quick_routing._strict_filters("wg0") == "eth0, eth2"
    (tmp_path / "all/rp_filter").write_text("2\n")
    assert quick_routing._strict_filters("wg0") == ""


@pytest.mark.parametrize(
    ("words", "interface"),
    [
        (["/usr/bin/python3", "-m", DAEMON_MODULE, "wg0"], "wg0"),
        (["/usr/bin/python3", "/usr/bin/wyrmholed", "-f", "wg0"], "wg0"),
        (["wyrmholed", "wg0"], "wg0"),
        (["/usr/bin/python3", "-m", "http.server", "wg0"], None),
        (["wyrmholed"], None),
    ],
)
def test_daemon_is_recognised_by_its_command_line(words: list[str], interface: str | None) -> None:
    assert Process(7, words).daemon_of == interface


def test_module_of_the_daemon_exists() -> None:
    assert importlib.util.find_spec(DAEMON_MODULE) is not None

"""The command line of wyrmholed: options, variables, error messages and exit statuses."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from wyrmhole.cli.daemon import settings, start
from wyrmhole.cli.daemon.main import main
from wyrmhole.cli.daemon.settings import USAGE, DaemonSettings, parse_settings
from wyrmhole.control.uapi.socket import SocketInUse, UapiListener
from wyrmhole.errors import DeviceError
from wyrmhole.net.linux_tun import LinuxTun, TunError


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "wyrmhole.cli.wyrmholed", *arguments],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def refusal(
    capsys: pytest.CaptureFixture[str],
    arguments: Sequence[str],
    environ: Mapping[str, str],
    *,
    status: int = 2,
    out: str = "",
) -> str:
    with pytest.raises(SystemExit) as caught:
        parse_settings(arguments, environ)
    assert caught.value.code == status
    captured = capsys.readouterr()
    assert captured.out == out
    assert captured.err.count("\n") == 1
    return captured.err


def test_command_line_of_wg_quick_is_accepted() -> None:
    assert parse_settings(["wg0"], {}) == DaemonSettings("wg0", False, "auto", "", None, None)


def test_each_engine_option_has_a_variable() -> None:
    options = ["--engine", "native", "--workers", "4", "--aead", "aws-lc", "--without", "tso,gro", "wg0"]
    environ = {
        "WYRMHOLE_ENGINE": "native",
        "WYRMHOLE_WORKERS": "4",
        "WYRMHOLE_AEAD": "aws-lc",
        "WYRMHOLE_WITHOUT": "gro,tso",
    }
    settings = parse_settings(options, {})
    assert settings == parse_settings(["wg0"], environ)
    assert (settings.workers, settings.aead, settings.without) == (4, "aws-lc", frozenset({"tso", "gro"}))


@pytest.mark.parametrize(
    ("environ", "word"),
    [
        ({"WYRMHOLE_ENGINE": "kernel"}, "WYRMHOLE_ENGINE"),
        ({"WYRMHOLE_AEAD": "aes"}, "WYRMHOLE_AEAD"),
        ({"WYRMHOLE_WORKERS": "0"}, "workers"),
        ({"WYRMHOLE_WORKERS": "65"}, "workers"),
        ({"WYRMHOLE_WITHOUT": "tso,lro"}, "lro"),
    ],
)
def test_invalid_variable_is_one_clear_error(
    environ: dict[str, str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_settings(["wg0"], environ)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert word in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("arguments", [["-f", "wg0"], ["--foreground", "wg0"], ["wg0", "-f"]])
def test_options_for_the_foreground(arguments: list[str]) -> None:
    assert parse_settings(arguments, {}).foreground


def test_environment_of_wireguard_go_is_accepted() -> None:
    environ = {"WG_PROCESS_FOREGROUND": "1", "LOG_LEVEL": "verbose", "WG_TUN_FD": "3", "WG_UAPI_FD": "4"}
    assert parse_settings(["--engine", "portable", "wg0"], environ) == DaemonSettings(
        "wg0", True, "portable", "verbose", 3, 4
    )
    assert not parse_settings(["wg0"], {"WG_PROCESS_FOREGROUND": "0"}).foreground


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "INTERFACE is missing"),
        (["-f"], "INTERFACE is missing"),
        (["wg0", "wg1"], "unexpected arguments: wg1"),
        (["-f", "wg0", "wg1", "wg2"], "unexpected arguments: wg1 wg2"),
        (["-x", "wg0"], "unexpected arguments: -x"),
        (["--fore", "wg0"], "unexpected arguments: --fore"),
    ],
)
def test_wrong_number_of_arguments_prints_usage_with_status_1(
    capsys: pytest.CaptureFixture[str], arguments: list[str], word: str
) -> None:
    assert word in refusal(capsys, arguments, {}, status=1, out=f"{USAGE}\n")


def test_invalid_option_is_one_clear_error_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert "invalid choice: 'fast'" in refusal(capsys, ["--engine", "fast", "wg0"], {})


def test_help_lists_every_variable_that_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_settings(["--help"], {})
    helped = capsys.readouterr().out
    read = set(re.findall(r'environ\.get\("(\w+)"', Path(settings.__file__).read_text()))
    assert read | {"WG_TUN_FD", "WG_UAPI_FD"} <= set(re.findall(r"\b[A-Z]+_[A-Z_]+", helped))


@pytest.mark.parametrize("text", ["x", "-1", "1.5", "1" * 20, "٣", " 3", "+3"])
@pytest.mark.parametrize("variable", ["WG_TUN_FD", "WG_UAPI_FD"])
def test_descriptor_must_be_a_number(capsys: pytest.CaptureFixture[str], variable: str, text: str) -> None:
    assert f"{variable} is not a descriptor number" in refusal(capsys, ["wg0"], {variable: text}, status=1)


def test_program_has_the_right_status_and_streams() -> None:
    version = run("--version")
    assert (version.returncode, version.stderr) == (0, "")
    assert version.stdout.startswith("wyrmholed ")
    usage = run()
    assert (usage.returncode, usage.stdout) == (1, f"{USAGE}\n")
    assert usage.stderr == "wyrmholed: INTERFACE is missing; see wyrmholed --help\n"
    helped = run("--help")
    assert helped.returncode == 0 and "--engine" in helped.stdout


def test_help_does_not_import_the_server() -> None:
    program = (
        "import sys; from wyrmhole.cli.daemon import main; main.parse_settings(['wg0'], {});"
        "print(sorted({'asyncio', 'cryptography', 'ctypes', 'logging', 'socket'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert result.stdout == "[]\n"


@pytest.mark.parametrize("name", ["", "a" * 16, "wg/0", "wg 0", ".."])
def test_invalid_name_is_one_clear_error(name: str) -> None:
    with pytest.raises(DeviceError, match="invalid interface name"):
        start.open_tun(parse_settings([name], {}))


def test_unavailable_tun_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def create(name: str, **options: object) -> LinuxTun:
        raise TunError(errno.EPERM, f"making {name} needs CAP_NET_ADMIN: run as root")

    monkeypatch.setattr(LinuxTun, "create", create)
    with pytest.raises(DeviceError) as caught:
        start.open_tun(parse_settings(["wg0"], {}))
    assert str(caught.value) == "making wg0 needs CAP_NET_ADMIN: run as root"


def test_failed_start_is_one_clear_error_with_status_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(settings: DaemonSettings) -> int:
        raise DeviceError("the moon is not full: wait")

    monkeypatch.setattr(start, "run", fail)
    assert main(["wg0"]) == 1
    assert capsys.readouterr().err == "wyrmholed: the moon is not full: wait\n"


def test_start_waits_for_a_daemon_that_is_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a restart right after the deletion of an interface would fail on the former daemon's socket."""
    outcomes: list[Exception | None] = [SocketInUse("in use"), SocketInUse("in use"), None]
    made = object()

    def create(name: str) -> object:
        outcome = outcomes.pop(0)
        if outcome is not None:
            raise outcome
        return made

    monkeypatch.setattr(UapiListener, "create", create)
    monkeypatch.setattr(start, "RETRY_SECONDS", 0.0)
    assert start.open_listener(parse_settings(["wg0"], {}), "wg0") is made


def test_start_gives_up_on_a_daemon_that_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def create(name: str) -> object:
        raise SocketInUse("in use")

    monkeypatch.setattr(UapiListener, "create", create)
    monkeypatch.setattr(start, "RETRY_SECONDS", 0.0)
    with pytest.raises(SocketInUse):
        start.open_listener(parse_settings(["wg0"], {}), "wg0")


def test_other_failures_are_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def create(name: str) -> object:
        calls.append(name)
        raise DeviceError("no place")

    monkeypatch.setattr(UapiListener, "create", create)
    with pytest.raises(DeviceError, match="no place"):
        start.open_listener(parse_settings(["wg0"], {}), "wg0")
    assert calls == ["wg0"]

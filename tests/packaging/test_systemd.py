"""The unit files: checked by systemd's own tools, and compared with what the daemon needs."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from wyrmhole.sandbox import policy

UNITS = Path(__file__).parents[2] / "packaging" / "systemd"
SERVICE = UNITS / "wyrmhole@.service"
PROJECT = tomllib.loads((UNITS.parents[1] / "pyproject.toml").read_text())

pytestmark = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="no systemd-analyze: apt-get install systemd"
)


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, timeout=60, check=False)


def test_exposure_level_is_at_most_two() -> None:
    result = analyze("security", "--offline=yes", "--threshold=20", "--no-pager", str(SERVICE))
    assert result.returncode == 0, result.stdout + result.stderr
    (level,) = re.findall(r"Overall exposure level for \S+: ([\d.]+)", result.stdout)
    assert float(level) <= 2.0


def test_systemd_accepts_the_service_unit(tmp_path: Path) -> None:
    for kind in ("service", "socket"):
        text = (UNITS / f"wyrmhole@.{kind}").read_text().replace("/opt/wyrmhole/bin/wyrmholed", "/bin/true")
        (tmp_path / f"wyrmhole@wg0.{kind}").write_text(text)
    for kind in ("service", "socket"):
        result = analyze("verify", "--man=no", str(tmp_path / f"wyrmhole@wg0.{kind}"))
        complaints = [line for line in result.stderr.splitlines() if "wyrmhole@" in line]
        assert not complaints


@pytest.mark.parametrize("unit", ["wyrmhole-quick@.service"])
def test_systemd_accepts_the_other_units(unit: str, tmp_path: Path) -> None:
    text = (UNITS / unit).read_text()
    for program in ("wyrmhole", "wyrmholed"):
        text = text.replace(f"/opt/wyrmhole/bin/{program} ", "/bin/true ")
    path = tmp_path / unit.replace("@", "@wg0")
    path.write_text(text)
    result = analyze("verify", "--man=no", str(path))
    assert not [line for line in result.stderr.splitlines() if "wyrmhole" in line]


def test_drop_in_makes_wg_quick_use_the_daemon() -> None:
    drop_in = configparser.RawConfigParser()
    drop_in.read(UNITS / "wg-quick-drop-in.conf")
    assert drop_in["Service"]["Environment"] == "WG_QUICK_USERSPACE_IMPLEMENTATION=/opt/wyrmhole/bin/wyrmholed"


def test_server_guide_mentions_each_file() -> None:
    text = (UNITS.parents[1] / "docs" / "server.md").read_text()
    assert all(f"`{path.name}`" in text for path in UNITS.iterdir())


def test_commands_of_the_server_guide_name_existing_files() -> None:
    text = (UNITS.parents[1] / "docs" / "server.md").read_text()
    for name in re.findall(r"packaging/systemd/([\w@.-]+\.\w+)", text):
        assert (UNITS / name).exists(), name
    units = {path.name.partition("@")[0] for path in UNITS.glob("*@.*")} | {"wg-quick"}
    assert set(re.findall(r"systemctl [^\n#]*?([\w-]+)@wg0", text)) <= units
    for unit in UNITS.glob("*.service"):
        for program in re.findall(r"/opt/wyrmhole/bin/([\w-]+)", unit.read_text()):
            assert program in PROJECT["project"]["scripts"]


def members(group: str, groups: dict[str, list[str]]) -> set[str]:
    calls: set[str] = set()
    for name in groups[group]:
        calls |= members(name, groups) if name.startswith("@") else {name}
    return calls


def system_call_groups() -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for line in analyze("syscall-filter").stdout.splitlines():
        word = line.strip()
        if word.startswith("@") and not line.startswith(" "):
            groups[word] = current = []
        elif word and not word.startswith("#") and groups:
            current.append(word)
    return groups


def test_system_calls_of_the_unit_cover_the_daemon_and_its_start() -> None:
    groups = system_call_groups()
    allowed: set[str] = set()
    for setting in re.findall(r"^SystemCallFilter=(.*)$", SERVICE.read_text(), re.M):
        for name in setting.lstrip("~").split():
            calls = members(name, groups) if name.startswith("@") else {name}
            allowed = allowed - calls if setting.startswith("~") else allowed | calls
    own = {*policy.ALLOWED, "clone3", "execve", "capset", "seccomp", "flock", "umask", "rt_sigprocmask"}
    assert own - allowed == set()


def test_unit_grants_exactly_the_capabilities_that_the_daemon_keeps() -> None:
    unit = configparser.RawConfigParser(strict=False)
    unit.read(SERVICE)
    kept = {"CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST"}
    assert set(unit["Service"]["AmbientCapabilities"].split()) == kept
    assert set(unit["Service"]["CapabilityBoundingSet"].split()) == kept

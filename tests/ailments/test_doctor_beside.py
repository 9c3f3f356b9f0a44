"""`wyrmhole doctor CONFIG` while a daemon serves that file uses the daemon's session and does not take it over."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click
import cryptography
import pytest

import wyrmhole
from tests.ailments.treatments import WYRMHOLE, upped
from tests.ailments.ward import Ward
from tests.support.nobody import NOBODY, interpreter

pytestmark = pytest.mark.network


@pytest.fixture
def ward(tmp_path: Path) -> Iterator[Ward]:
    with Ward(tmp_path) as made:
        made.interface_lines.append("ListenPort = 40777")
        made.start_peer()
        yield made


def doctor(ward: Ward, path: Path, *program: str) -> list[dict[str, str]]:
    result = ward.client.try_run(*program, "doctor", str(path), "--json")
    assert result.stdout, result.stderr
    findings: list[dict[str, str]] = json.loads(result.stdout)
    return findings


def test_session_of_a_running_daemon_is_not_taken_over(ward: Ward) -> None:
    with upped(ward) as (name, _):
        ward.client.ping("10.77.0.2")
        before = ward.node.show_of(ward.own.public, "endpoints"), ward.node.latest_handshake(ward.own.public)
        # The name of the file may differ from the interface, because the key identifies the daemon.
        findings = doctor(ward, ward.write_config("other"), str(WYRMHOLE))
        after = ward.node.show_of(ward.own.public, "endpoints"), ward.node.latest_handshake(ward.own.public)
        assert before == after and before[0] == ["192.0.2.1:40777"]
    found = {each["step"]: each for each in findings}
    assert found["daemon"]["found"].startswith(f"a daemon serves {name} ")
    assert found["handshake"]["level"] == found["ping"]["level"] == found["path MTU"]["level"] == "good", findings


def test_daemon_of_that_name_is_left_alone_without_rights(ward: Ward) -> None:
    with upped(ward) as (name, _):
        ward.client.ping("10.77.0.2")
        before = ward.node.show_of(ward.own.public, "endpoints")
        path = ward.folder / f"{name}.conf"
        path.chmod(0o644)
        for folder in path.parents[:4]:
            folder.chmod(0o755)
        modules = {str(Path(module.__file__ or "").parents[1]) for module in (wyrmhole, cryptography, click)}
        python = ("env", f"PYTHONPATH={':'.join(modules)}", interpreter(), "-m", "wyrmhole")
        findings = doctor(ward, path, *NOBODY, *python)
        assert ward.node.show_of(ward.own.public, "endpoints") == before
    (bad,) = [each for each in findings if each["level"] == "bad"]
    assert name in bad["found"] and "root" in bad["advice"]

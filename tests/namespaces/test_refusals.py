"""Each refused step is explained: why, and what to do, the same for the library, `run` and `doctor`."""

from __future__ import annotations

import errno
import os
import re
import subprocess
from pathlib import Path

import pytest

import wyrmhole
from wyrmhole.cli.confined import child
from wyrmhole.cli.doctor import checks
from wyrmhole.cli.doctor.finding import Verdict
from wyrmhole.errors import NamespaceError
from wyrmhole.namespaces import refusals
from wyrmhole.namespaces.steps import Stage, StepRefused
from wyrmhole.system import libc

CAUSES = [
    (Stage.UNSHARE, errno.ENOSPC, "max_user_namespaces"),
    (Stage.UNSHARE, errno.EINVAL, "no user or network namespaces"),
    (Stage.USER, errno.ENOSPC, "user.max_user_namespaces is 0 or used up"),
    (Stage.NETWORK, errno.ENOSPC, "user.max_net_namespaces is 0 or used up"),
    (Stage.MOUNT, errno.ENOSPC, "user.max_mnt_namespaces is 0 or used up"),
    (Stage.NETWORK, errno.EINVAL, "no network namespaces"),
    (Stage.OPEN, errno.ENOENT, "no /dev/net/tun"),
    (Stage.OPEN, errno.EACCES, "not readable and writable"),
    (Stage.OPEN, errno.EPERM, "device cgroup"),
    (Stage.OPEN, errno.ENODEV, "modprobe tun"),
    (Stage.SPAWN, errno.EAGAIN, "process limit"),
    (Stage.SPAWN, errno.ENOENT, "interpreter"),
    (Stage.PASS, errno.EMFILE, "ulimit -n"),
    (Stage.ATTACH, errno.EPERM, "security module"),
    (Stage.NAMES, errno.EACCES, "security module"),
    (Stage.PACKET, errno.ETIMEDOUT, "never reached the TUN"),
    (Stage.LINK, errno.EOPNOTSUPP, "not supported"),
]


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The system's settings, none of which forbids anything."""
    made: dict[str, str] = {}
    monkeypatch.setattr(refusals, "_setting", lambda path: made.get(path, ""))
    return made


@pytest.mark.parametrize(("step", "number", "says"), CAUSES)
def test_the_library_reports_step_cause_and_that_nothing_goes_around(step: Stage, number: int, says: str) -> None:
    error = refusals.refusal(step, number)
    assert isinstance(error, NamespaceError)
    assert isinstance(error, OSError)
    assert (error.errno, error.stage) == (number, step.value)
    assert says in str(error)
    assert errno.errorcode[number] in str(error)
    assert refusals.TITLES[step] in str(error)
    assert "no traffic bypasses it" in str(error)


def doctor(monkeypatch: pytest.MonkeyPatch, step: Stage, number: int) -> Verdict:
    done = subprocess.CompletedProcess([], 1, stdout=f"{step} {number}\n", stderr="")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    return next(iter(checks._namespaces()))


@pytest.mark.parametrize(("step", "number", "says"), CAUSES)
def test_run_and_doctor_give_the_same_cause_and_remedy(
    monkeypatch: pytest.MonkeyPatch, step: Stage, number: int, says: str
) -> None:
    cause, remedy = refusals.explain(step, number)
    ran, finding = child.explain(StepRefused(step, number)), doctor(monkeypatch, step, number)
    assert says in ran and says in f"{finding.found} {finding.advice}"
    assert ran.endswith(f"{cause}: {remedy}" if remedy else cause)
    assert finding.found.endswith(cause) and finding.advice == remedy
    assert "device='tun'" not in ran, "that is the library's"


def test_what_the_system_forbids_is_named_by_its_setting(
    settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "device='tun'" in str(refusals.refusal(Stage.UNSHARE, errno.EPERM))
    settings["/proc/sys/kernel/unprivileged_userns_clone"] = "0"
    assert "unprivileged_userns_clone" in str(refusals.refusal(Stage.UNSHARE, errno.EPERM))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "unprivileged_userns_clone" not in str(refusals.explain(Stage.NETWORK, errno.EPERM)), "it is in one already"
    settings.clear()
    settings["/proc/self/status"] = "Name:\tx\nSeccomp:\t2\n"
    assert "seccomp" in str(refusals.refusal(Stage.UNSHARE, errno.EPERM))
    settings["/proc/sys/kernel/apparmor_restrict_unprivileged_userns"] = "1"
    for step in (Stage.ATTACH, Stage.NETWORK, Stage.MOUNT):
        assert "AppArmor" in str(refusals.refusal(step, errno.EPERM))


def test_root_in_a_container_is_told_the_capability_that_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(libc, "permitted_capabilities", lambda: 0)
    for step in (Stage.NETWORK, Stage.MOUNT):
        reason = refusals.explain(step, errno.EPERM)
        assert "CAP_SYS_ADMIN" in reason.cause and "as root" not in reason.remedy


@pytest.mark.parametrize("step", [Stage.MOUNT, Stage.NAMES])
@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSPC, errno.EIO])
def test_run_refuses_without_names_of_its_own_and_doctor_says_so(
    monkeypatch: pytest.MonkeyPatch, step: Stage, number: int
) -> None:
    for said in (child.explain(StepRefused(step, number)), doctor(monkeypatch, step, number).advice):
        assert "only `wyrmhole run` needs it" in said
    assert doctor(monkeypatch, Stage.MOUNT, number).level == "poor", "the library works"
    assert doctor(monkeypatch, Stage.USER, number).level == "bad"


def test_a_probe_that_breaks_down_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.CompletedProcess([], 1, stdout="", stderr="ImportError: no wyrmhole\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    (finding,) = checks._namespaces()
    assert finding.level == "bad" and "ImportError" in finding.found


def test_every_step_has_a_title() -> None:
    assert set(refusals.TITLES) == set(Stage)


def test_no_other_file_knows_the_settings() -> None:
    """One table: advice about namespaces is written nowhere else."""
    setting = re.compile(r"unprivileged_userns|max_\w+_namespaces")
    package = Path(wyrmhole.__file__).parent
    users = {str(path.relative_to(package)) for path in package.rglob("*.py") if setting.search(path.read_text())}
    assert users == {"namespaces/refusals.py"}

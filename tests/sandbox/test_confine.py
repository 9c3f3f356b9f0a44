"""Error messages for a process that cannot be confined."""

from __future__ import annotations

import os
import platform

import pytest

from wyrmhole.errors import DeviceError
from wyrmhole.sandbox import confine


def test_user_is_found_by_name_and_by_number() -> None:
    assert confine.find_user("root") == confine.find_user("0") == confine.User("root", 0, 0)


@pytest.mark.parametrize("name", ["no-such-user", "4294967290", "9" * 30, ""])
def test_unknown_user_is_one_clear_error(name: str) -> None:
    with pytest.raises(DeviceError, match="unknown user"):
        confine.find_user(name)


def test_architecture_without_a_list_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(DeviceError, match="riscv64"):
        confine.restrict_calls()


def test_refused_step_names_the_option_to_skip_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(confine, "_drop_bounding_set", refuse)
    with pytest.raises(DeviceError, match="--no-sandbox"):
        confine.drop_privileges(confine.User("someone", os.getuid(), os.getgid()))

"""The error if the library of an extra is not installed."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from wyrmhole.errors import how_to_install

ROOT = Path(__file__).parents[2]
LIBRARIES = {
    "httpx": "httpcore",
    "httpx2": "httpcore2",
    "requests": "requests",
    "aiohttp": "aiohttp",
    "anyio": "anyio",
}


@pytest.mark.parametrize("extra", LIBRARIES)
def test_adapter_without_its_library_names_the_extra(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, f"wyrmhole.adapters.{extra}", raising=False)
    monkeypatch.setitem(sys.modules, LIBRARIES[extra], None)
    with pytest.raises(ModuleNotFoundError) as caught:
        importlib.import_module(f"wyrmhole.adapters.{extra}")
    assert str(caught.value) == f"wyrmhole.adapters.{extra} needs {LIBRARIES[extra]}: {how_to_install(extra)}"
    assert caught.value.name == LIBRARIES[extra]


def test_no_text_refers_to_a_package_index() -> None:
    """The name is not registered there, so the command would fail or install another package."""
    places = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    places += [path for room in ("src", "examples") for path in (ROOT / room).rglob("*.py")]
    assert len(places) > 100
    assert [path for path in places if "wyrmhole[" in path.read_text()] == []

"""A program patched by gevent or eventlet gets one clear error before anything is started."""

from __future__ import annotations

import asyncio
import sys
import threading
from types import SimpleNamespace

import pytest

import wyrmhole
import wyrmhole.sync

PATCHED = {
    "gevent": ("gevent.monkey", "is_module_patched"),
    "eventlet": ("eventlet.patcher", "is_monkey_patched"),
}


@pytest.mark.parametrize("module", ["select", "socket", "subprocess"])
@pytest.mark.parametrize("library", list(PATCHED))
def test_patched_program_is_refused(library: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, method = PATCHED[library]
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(**{method: lambda asked: asked == module}))
    before = threading.active_count()
    expected = f"{library} has patched .'{module}' is replaced.: run `wyrmhole"
    with pytest.raises(wyrmhole.TunnelError, match=expected):
        wyrmhole.sync.open("absent.conf")
    with pytest.raises(wyrmhole.TunnelError, match=expected):
        asyncio.run(wyrmhole.open("absent.conf").open())
    assert threading.active_count() == before


@pytest.mark.parametrize("library", list(PATCHED))
def test_program_that_only_imports_them_is_accepted(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, method = PATCHED[library]
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(**{method: lambda asked: False}))
    with pytest.raises(FileNotFoundError):
        wyrmhole.sync.open("absent.conf")

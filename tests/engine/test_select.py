"""Selection of the engine, and the errors for an engine that is not available."""

from __future__ import annotations

import sys

import pytest

from wyrmhole.engine.contract import EngineKind
from wyrmhole.engine.select import EngineUnavailable, NativeOptions, select_engine

pytestmark = pytest.mark.portable_only


@pytest.mark.parametrize("kind", ["auto", "portable"])
def test_the_portable_engine_is_always_available(kind: str) -> None:
    engine, reason = select_engine(kind, clock=lambda: 0)
    assert engine.kind in EngineKind
    assert kind == "auto" or engine.kind is EngineKind.PORTABLE
    assert "\n" not in reason
    engine.close()


@pytest.mark.parametrize("kind", ["", "Portable", "kernel"])
def test_an_unknown_engine_is_refused_with_advice(kind: str) -> None:
    with pytest.raises(EngineUnavailable, match="use auto, portable or native"):
        select_engine(kind, clock=lambda: 0)


def test_auto_selects_the_native_engine_if_it_was_built(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wyrmhole.engine._native")
    engine, reason = select_engine("auto", clock=lambda: 0)
    assert engine.kind is EngineKind.NATIVE
    assert reason.startswith("Native engine with ")
    engine.close()


def test_a_missing_native_engine_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("wyrmhole.engine.native", "wyrmhole.engine._native"):
        monkeypatch.setitem(sys.modules, name, None)
    engine, reason = select_engine("auto", clock=lambda: 0)
    assert engine.kind is EngineKind.PORTABLE
    assert "install Rust" in reason
    engine.close()
    with pytest.raises(EngineUnavailable, match="install Rust"):
        select_engine("native", clock=lambda: 0)


def test_the_cipher_backend_can_be_chosen() -> None:
    """libIPSec_MB is optional; asking for it where it is missing raises an error with the cause."""
    pytest.importorskip("wyrmhole.engine._native")
    engine, reason = select_engine("native", clock=lambda: 0, options=NativeOptions(aead="aws-lc"))
    assert reason.startswith("Native engine with aws-lc")
    engine.close()
    with pytest.raises(EngineUnavailable, match="use auto, aws-lc or vector"):
        select_engine("native", clock=lambda: 0, options=NativeOptions(aead="rot13"))
    try:
        engine, reason = select_engine("native", clock=lambda: 0, options=NativeOptions(aead="vector"))
    except EngineUnavailable as error:
        assert str(error).startswith("libIPSec_MB ")
        return
    assert reason.startswith("Native engine with libIPSec_MB")
    engine.close()

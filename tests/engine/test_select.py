"""Which engine one gets, and what is said when it is not there."""

from __future__ import annotations

import pytest

from wyrmhole.engine.contract import EngineKind
from wyrmhole.engine.select import EngineUnavailable, select_engine


@pytest.mark.parametrize("kind", ["auto", "portable"])
def test_the_portable_engine_is_always_there(kind: str) -> None:
    engine, reason = select_engine(kind, clock=lambda: 0)
    assert engine.kind in EngineKind
    assert kind == "auto" or engine.kind is EngineKind.PORTABLE
    assert "\n" not in reason
    engine.close()


@pytest.mark.parametrize("kind", ["", "Portable", "kernel"])
def test_an_engine_that_does_not_exist_is_refused_with_advice(kind: str) -> None:
    with pytest.raises(EngineUnavailable, match="use auto, portable or native"):
        select_engine(kind, clock=lambda: 0)

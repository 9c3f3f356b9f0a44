"""Choose the engine of a test. The suite runs on each installed engine, and makes it here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from wyrmhole.engine.contract import EngineKind
from wyrmhole.engine.portable import PortableEngine
from wyrmhole.engine.select import has_native

KINDS = ("portable", "native")

_chosen = ["portable"]


@contextmanager
def chosen(kind: str) -> Iterator[None]:
    """Let `make_engine` make engines of this kind. The native one may be missing only without a Rust toolchain."""
    if kind == "native" and not has_native():
        if os.environ.get("CI") == "true" and shutil.which("cargo"):
            pytest.fail("the native engine was not built, and there is a Rust toolchain")
        pytest.skip("the native engine is not built: install Rust 1.85 or newer, and the package again")
    _chosen.append(kind)
    try:
        yield
    finally:
        _chosen.pop()


def kind() -> str:
    return _chosen[-1]


def make_engine(clock: Callable[[], int], *, threaded: bool = False, workers: int = 1) -> Any:
    """Return an engine. Without threads it moves packets only in `turn`, which both kinds have beside the contract.

    Only the native one has more than one worker.
    """
    if kind() == "portable":
        return PortableEngine(clock, threaded=threaded)
    from wyrmhole.engine.native import NativeEngine

    return NativeEngine(clock, threaded=threaded, workers=workers)


def index_count(engine: Any) -> int:
    """Return the number of receiver indices in the engine's tables. The contract has no method for it."""
    if engine.kind is EngineKind.PORTABLE:
        return len(engine.inspect().indices)
    indices: int = engine._native.sizes()[2]
    return indices

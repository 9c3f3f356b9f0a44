"""Tests of the native engine alone, on kernel edges. They are skipped if it is not built, except in CI."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.lab import Lab
from tests.support.engines import chosen


@pytest.fixture(autouse=True)
def native() -> Iterator[None]:
    with chosen("native"):
        yield


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Lab(tmp_path) as lab:
        yield lab

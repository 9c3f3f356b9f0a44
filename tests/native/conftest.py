"""Tests of what only the native engine has, on the kernel's edges. They skip where it is not built, but not in CI."""

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

"""Run every test in this folder on each engine, except those marked `portable_only`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.engines import KINDS, chosen


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engine_kind" in metafunc.fixturenames:
        only = metafunc.definition.get_closest_marker("portable_only")
        metafunc.parametrize("engine_kind", KINDS[:1] if only else KINDS, indirect=True)


@pytest.fixture(autouse=True)
def engine_kind(request: pytest.FixtureRequest) -> Iterator[str]:
    with chosen(request.param):
        yield request.param

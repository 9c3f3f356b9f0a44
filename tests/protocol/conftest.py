"""Scenarios that use `make_world` run on the model data plane and on every engine."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from tests.support.engine_plane import EnginePlane
from tests.support.engines import KINDS, chosen
from tests.support.model_plane import ModelPlane
from tests.support.world import MakeWorld, World


@pytest.fixture(params=["model", *KINDS])
def make_world(request: pytest.FixtureRequest) -> Iterator[MakeWorld]:
    with chosen("portable" if request.param == "model" else request.param):
        yield partial(World, plane=ModelPlane if request.param == "model" else EnginePlane)

"""The two engines are one: the same script gives the same datagrams, frames, reports, drops and counters on both.

`make parity` runs 10,000 scripts; here a part of them, of other seeds.
"""

from __future__ import annotations

import os

from tests.engine_parity.script import draw
from tests.engine_parity.script_run import EngineSubject, first_difference, run
from tests.support.engines import chosen, make_engine

SCRIPTS = int(os.environ.get("SCRIPTS", "1000"))
FIRST = int(os.environ.get("FIRST_SCRIPT", "50000"))


def test_the_native_engine_makes_the_same_of_every_script_as_the_portable_one() -> None:
    with chosen("native"):
        for seed in range(FIRST, FIRST + SCRIPTS):
            script = draw(seed)
            expected, found = run(script, EngineSubject()), run(script, EngineSubject(make_engine))
            assert first_difference(script, expected, found) is None

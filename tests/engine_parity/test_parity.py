"""Parity: a script gives equal datagrams, frames, reports, drops and counters on both engines.

`make parity` runs 10,000 scripts; by default, 1,000 scripts of other seeds are run.
"""

from __future__ import annotations

import os

from tests.engine_parity.script import draw
from tests.engine_parity.script_run import EngineSubject, first_difference, run
from tests.support.engines import chosen, make_engine

SCRIPTS = int(os.environ.get("SCRIPTS", "1000"))
FIRST = int(os.environ.get("FIRST_SCRIPT", "50000"))


def test_both_engines_give_equal_traces() -> None:
    with chosen("native"):
        for seed in range(FIRST, FIRST + SCRIPTS):
            script = draw(seed)
            expected, found = run(script, EngineSubject()), run(script, EngineSubject(make_engine))
            assert first_difference(script, expected, found) is None

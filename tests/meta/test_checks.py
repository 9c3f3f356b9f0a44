"""The checks of the simulator, their planted bugs and the table in docs/reliability.md agree."""

from __future__ import annotations

import re
from pathlib import Path

from tests.simulation.mutations import MUTATIONS
from wyrmhole.simulation.model.checks import Check
from wyrmhole.simulation.runs.liveness import TRIALS

DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"
SOURCES = Path(__file__).parents[2] / "src" / "wyrmhole" / "simulation"


def test_document_lists_each_check_with_its_planted_bug() -> None:
    rows = re.findall(r"^\| ([IL]\d+) \| `(\w+)` \| (.*) \| (.*) \|$", DOCUMENT.read_text(), re.MULTILINE)
    bugs = {mutation.check: mutation.bug for mutation in MUTATIONS}
    assert rows == [(check.code, check.name, check.value, bugs[check]) for check in Check]


def test_codes_are_consecutive_from_one() -> None:
    codes = [check.code for check in Check]
    assert codes == [f"I{number}" for number in range(1, 34)] + [f"L{number}" for number in range(1, 12)]


def test_simulator_refers_to_checks_by_name() -> None:
    named: set[str] = set()
    for path in SOURCES.rglob("*.py"):
        if path.name != "checks.py":
            text = path.read_text()
            named |= set(re.findall(r"\bCheck\.(\w+)", text))
            assert not re.findall(r"\"[IL]\d+\"", text), path
    # Only the test of planted bugs compares two runs of one seed.
    assert named == {check.name for check in Check} - {"SEEDS_REPEAT"}


def test_trial_has_the_name_of_its_check() -> None:
    names = {check.name.lower(): check.code for check in Check}
    assert {trial.name: trial.code for trial in TRIALS.values() if trial.code != "quiet"}.items() <= names.items()
    assert len({trial.code for trial in TRIALS.values()}) == len(TRIALS)

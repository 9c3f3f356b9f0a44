"""Each check can fail: a bug is planted in the product, and the simulator must find it by the check's name."""

from __future__ import annotations

import pytest

from tests.simulation.mutations import MUTATIONS, Mutation, Planned
from wyrmhole.simulation.model.checks import Check, Violation
from wyrmhole.simulation.runs import liveness
from wyrmhole.simulation.runs.run import Run
from wyrmhole.simulation.world.world import World


def carry_out(planned: Planned) -> tuple[Check | None, str]:
    """Return the check that failed, or None, and the digest of the run."""
    run_or_scenario, trials = planned
    world = World(run_or_scenario.scenario() if isinstance(run_or_scenario, Run) else run_or_scenario)
    try:
        world.guarded(world.run_steps)
        world.guarded(lambda: liveness.run_trials(world, trials))
    except Violation as violation:
        return violation.check, world.digest
    finally:
        world.close()
    return None, world.digest


def test_every_check_has_a_planted_bug() -> None:
    assert {mutation.check for mutation in MUTATIONS} == set(Check)
    assert len(MUTATIONS) == len(Check)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: f"{mutation.check.code}-{mutation.plant.__name__}")
def test_a_planted_bug_is_found(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    mutation.plant(monkeypatch)
    found: set[Check | None] = set()
    for planned in mutation.runs():
        check, digest = carry_out(planned)
        if check is None and carry_out(planned)[1] != digest:
            check = Check.SEEDS_REPEAT
        found.add(check)
        if check == mutation.check:
            return
    pytest.fail(f"{mutation.bug}: found {found}, not {mutation.check.name}")


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.check.code)
def test_the_first_world_holds_without_the_bug(mutation: Mutation) -> None:
    assert carry_out(next(mutation.runs()))[0] is None

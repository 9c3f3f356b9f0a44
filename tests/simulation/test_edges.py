"""Every call of an edge fails in turn, in each failure mode of its contract, and all invariants hold."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache

import pytest

from wyrmhole.datapath.peer import EnginePeer
from wyrmhole.engine.loop import Loop
from wyrmhole.protocol.drops import DropReason
from wyrmhole.simulation.model.checks import Check
from wyrmhole.simulation.runs import liveness
from wyrmhole.simulation.runs.run import Outcome, Run, carry_out
from wyrmhole.simulation.world.edges import FAILURES
from wyrmhole.simulation.world.world import World

RUNS = [Run(seed, 0.006, "storm", hosts=2, trials=("connects_with_traffic",)) for seed in (25, 255, 350)]
"""Short runs in which hosts send, roam, crash, and go down and up. Data must then flow both ways within 15.4 s."""


@cache
def calls(run: Run) -> tuple[str, ...]:
    """Return the names of all edge calls in the first phase of the run."""
    world = World(run.scenario())
    world.calls.names = []
    try:
        world.guarded(world.run_steps)
        return tuple(world.calls.names)
    finally:
        world.close()


def failing(run: Run) -> list[Run]:
    """Return the run with each call failing once in each failure mode."""
    names = enumerate(calls(run))
    return [replace(run, fails=(number, mode)) for number, name in names for mode in range(len(FAILURES[name]))]


def test_the_runs_make_every_edge_call() -> None:
    made = Counter(name for run in RUNS for name in calls(run))
    assert set(made) == set(FAILURES)


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"seed-{run.seed}")
def test_each_edge_call_can_fail_once(run: Run) -> None:
    digests = set()
    for failing_run in failing(run):
        outcome = carry_out(failing_run)
        assert outcome.violation is None, f"{outcome.violation}\n{failing_run.line()}"
        digests.add(outcome.digest)
    assert len(digests) > len(calls(run)) / 10, "failures must change the trace"


def test_a_host_that_lost_its_tun_restarts() -> None:
    run = RUNS[0]
    number = calls(run).index("tun.read")
    world = World(run.scenario(), (number, FAILURES["tun.read"].index("gone")))
    try:
        world.guarded(world.run_steps)
        ended = [host for host in world.hosts.values() if host.lives > 1 or not host.running]
        world.guarded(lambda: liveness.run_trials(world, ("connects_with_traffic",)))
    finally:
        world.close()
    assert ended


def found(runs: list[Run]) -> Outcome:
    """Return the outcome of the first run in which a check fails."""
    return next(outcome for outcome in map(carry_out, runs) if outcome.violation is not None)


def test_a_counter_taken_back_after_a_failed_send_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug is plausible: it keeps the counters of the datagrams that actually left without a gap."""
    transmit = Loop._transmit

    def take_back(self: Loop, peer: EnginePeer, data: bytes | memoryview, size: int, tos: int) -> None:
        lost = self._tables.drops[DropReason.SEND_FAILED]
        transmit(self, peer, data, size, tos)
        keypair = peer.keypairs.current
        if keypair is not None and keypair.send_counter:
            keypair.send_counter -= self._tables.drops[DropReason.SEND_FAILED] > lost

    monkeypatch.setattr(Loop, "_transmit", take_back)
    outcome = found(failing(RUNS[0]))
    assert outcome.violation is not None and outcome.violation.check is Check.NONCES_ARE_UNIQUE


def test_an_unreported_end_of_the_tun_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def forget(self: Loop, *, reported: bool = False) -> None:
        self._tun = None

    monkeypatch.setattr(Loop, "_tun_gone", forget)
    outcome = found(failing(RUNS[0]))
    assert outcome.violation is not None and outcome.violation.check is Check.CONNECTS_WITH_TRAFFIC
    assert carry_out(outcome.run).digest == outcome.digest
    assert "--fail-edge" in outcome.run.line()

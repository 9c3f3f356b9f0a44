"""The simulator itself: seeds repeat, a failure shrinks to a command that repeats it, and 1,000 peer-hours hold."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from dataclasses import replace

import pytest

from wyrmhole.datapath.replay import ReplayWindow
from wyrmhole.protocol.drops import DropReason
from wyrmhole.protocol.interface import Interface
from wyrmhole.simulation.__main__ import main
from wyrmhole.simulation.clock import SECOND
from wyrmhole.simulation.model.checks import Check, Violation
from wyrmhole.simulation.runs.liveness import trial_named
from wyrmhole.simulation.runs.run import Run, carry_out
from wyrmhole.simulation.runs.shrink import shrink
from wyrmhole.simulation.world.network import Weather
from wyrmhole.simulation.world.scenario import DELUGE, OVERTAKEN, Scenario, Step
from wyrmhole.simulation.world.world import World

STORM = Run(seed=5, hours=0.1, profile="storm", trials=())

FOUND = {
    "a series of attempts that the other side's initiations restarted": Run(17, 0.2, "storm"),
    "a passive and a persistent keepalive at once": Run(2, 0.2, "storm"),
    "packets that wait while the private key changes": Run(6, 0.2, "storm"),
    "handshakes that cross at each renewal": Run(
        31,
        0.05,
        "storm",
        trials=("connects_with_traffic", "recovers_after_state_loss", "converges_after_crossed_handshakes"),
    ),
    "the last attempt postponed once more": Run(5, 24, "calm", keep=(117, 126, 128), trials=()),
    "a session ended early by a clock that is 1 % fast, behind a NAT": Run(20290023, 24, "calm", keep=(298,)),
}
"""Seeds that once found a fault of the product or of the model."""


@pytest.mark.parametrize("run", FOUND.values(), ids=FOUND)
def test_a_seed_that_once_failed_holds(run: Run) -> None:
    outcome = carry_out(run)
    assert outcome.violation is None, f"{outcome.violation}\n{run.line()}"


def test_a_thousand_peer_hours_hold() -> None:
    """Simulate one day, and one storm, of several worlds of 2 to 16 hosts."""
    peer_hours, seed = 0.0, 0
    while peer_hours < 1000:
        seed += 1
        for run in (Run(seed, 24, "calm"), Run(seed, 0.05, "storm")):
            outcome = carry_out(run)
            assert outcome.violation is None, f"{outcome.violation}\n{run.line()}"
            peer_hours += outcome.peer_hours


def test_ten_thousand_packets_overtake_one() -> None:
    """More datagrams overtake one than the replay window holds. Some late datagrams are therefore refused as replays
    although they never arrived before, and the model of the window agrees about each."""
    weather = Weather(reordered=0.01, overtaken=OVERTAKEN)
    deluge = Step(SECOND, "deluge", (1, 2, 2 * DELUGE, 1000, weather))
    world = World(Scenario(1, 2, 10 * SECOND, (0, 0), {}, (deluge,)))
    try:
        world.guarded(world.run_steps)
        refused = world.hosts[2].engine.drops()[DropReason.REPLAYED]
        held = len(world.network.held(1, 2))
        sent, delivered = world.ledger.counts["packets sent"], world.ledger.counts["packets delivered"]
    finally:
        world.close()
    assert world.network.most_overtaken == OVERTAKEN == 10_000
    assert refused > 10
    assert sent == delivered + refused + held == 1 + 2 * DELUGE


@pytest.mark.parametrize("seed", range(1, 7))
def test_idle_with_keepalives(seed: int) -> None:
    """For three hours: on one side, on the other, on both (L11)."""
    outcome = carry_out(Run(seed, 3, "idle", trials=("keepalives_renew_sessions",)))
    assert outcome.violation is None, f"{outcome.violation}\n{outcome.run.line()}"
    assert outcome.counts["sessions"] > 0


@pytest.mark.parametrize("crash", [False, True])
def test_idle_peers_with_keepalives_on_both_sides_hold_after_crossed_handshakes(crash: bool) -> None:
    """Both sides once kept an idle session alive, let it end at 180 s, and then crossed every 200 s (field report)."""
    chosen = [Step(SECOND, "talk", (a, 3 - a, 1, 1, 48, False, False)) for a in (1, 2)]
    chosen += [Step(2 * SECOND, "keepalive", (a, 3 - a, 25)) for a in (1, 2)]
    chosen += [Step(1800 * SECOND, "crash", (1, SECOND))] * crash
    world = World(Scenario(1, 2, 3600 * SECOND, (0, 0), {}, tuple(chosen)))
    try:
        world.guarded(world.run_steps)
        assert world.ledger.counts["initiations"] <= 4 + 3600 // 120
        assert world.ledger.counts["initiations"] >= 3600 // 200
    finally:
        world.close()


def test_a_deluge_amid_faults_holds() -> None:
    run = Run(3, 0.05, "deluge", hosts=2, trials=("connects_with_traffic",))
    outcome = carry_out(run)
    assert outcome.violation is None, f"{outcome.violation}\n{run.line()}"


def test_the_same_seed_gives_the_same_trace_in_another_process() -> None:
    """The trace is equal even if hashes of strings and bytes have another salt (I29)."""
    program = (
        "from wyrmhole.simulation.runs.run import Run, carry_out;"
        "print(carry_out(Run(seed=5, hours=0.1, profile='storm')).digest)"
    )
    expected = carry_out(Run(seed=5, hours=0.1, profile="storm")).digest
    for salt in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": salt}
        finished = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        assert finished.stdout.strip() == expected


def test_other_seeds_give_other_traces() -> None:
    assert carry_out(STORM).digest != carry_out(replace(STORM, seed=6)).digest


def test_a_failure_shrinks_to_a_command_that_repeats_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ReplayWindow, "accept", lambda self, counter: True)
    outcome = carry_out(STORM)
    assert outcome.violation is not None
    least = shrink(outcome, max_runs=150)
    assert least.violation is not None
    assert least.violation.check == outcome.violation.check
    assert len(least.run.scenario().steps) <= 10 < len(STORM.scenario().steps)
    assert carry_out(least.run).digest == least.digest
    line = least.run.line().removeprefix("python -m wyrmhole.simulation ")
    assert main([*line.split(), "--no-shrink"]) == 1
    assert least.run.line() in capsys.readouterr().out


@pytest.mark.parametrize("hours", [24, 0.05, 1 / 3, 1e-7])
def test_the_command_states_the_hours_exactly(hours: float) -> None:
    run = Run(1, hours, "storm", hosts=2)
    words = run.line().split()
    assert float(words[words.index("--hours") + 1]) == hours


def test_an_exception_in_the_product_is_a_violation_with_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Interface, now: int) -> None:
        raise KeyError("broken")

    monkeypatch.setattr(Interface, "handle_timeout", fail)
    outcome = carry_out(STORM)
    assert outcome.violation is not None
    assert outcome.violation.check is Check.NO_EXCEPTION_ESCAPES
    assert "KeyError" in outcome.violation.message


def test_a_violation_survives_pickling() -> None:
    violation = Violation(Check.LOAD_ENDS, "host 1: a cookie reply 2 s after the load")
    violation.at = 3.5
    copied = pickle.loads(pickle.dumps(violation))
    assert (copied.check, copied.message, str(copied)) == (Check.LOAD_ENDS, violation.message, str(violation))
    assert str(copied).startswith("LOAD_ENDS (I23) at 3.500 s: host 1: a cookie reply")


def test_a_trial_is_chosen_by_name_or_by_code() -> None:
    assert [trial_named(text) for text in ("L2", "recovers_after_state_loss")] == ["recovers_after_state_loss"] * 2
    assert trial_named("L10") is None


def test_the_command_prints_a_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "3", "--hours", "0.02", "--hosts", "2"]) == 0
    printed = capsys.readouterr().out
    assert "1 runs from seed 3, 0.0 peer-hours, 0 violations" in printed
    assert "x real time" in printed


@pytest.mark.parametrize("arguments", [["--hosts", "1"], ["--hosts", "17"], ["--trials", "L12"], ["--keep", "a"]])
def test_bad_arguments_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(arguments)
    assert refused.value.code == 2
    assert "error: argument" in capsys.readouterr().err

"""One run from a seed to its outcome, and the command that repeats it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from wyrmhole.simulation.model.checks import Violation
from wyrmhole.simulation.runs import liveness
from wyrmhole.simulation.world.scenario import Scenario, draw
from wyrmhole.simulation.world.world import World


@dataclass(frozen=True, slots=True)
class Run:
    """The parameters that determine a run.

    `keep` has the numbers of the scenario's steps that happen; None keeps all. If `hosts` is None, 2 to 16 are drawn;
    if `trials` is None, some liveness trials are drawn. `fails` is (edge call, failure mode); see `world.edges`.
    """

    seed: int
    hours: float
    profile: str = "calm"
    hosts: int | None = None
    keep: tuple[int, ...] | None = None
    trials: tuple[str, ...] | None = None
    fails: tuple[int, int] | None = None

    def scenario(self) -> Scenario:
        drawn = draw(self.seed, hours=self.hours, hosts=self.hosts, profile=self.profile)
        return drawn.keep(None if self.keep is None else list(self.keep))

    def line(self) -> str:
        """Return the command that repeats the run exactly."""
        words = ["python -m wyrmhole.simulation", f"--seed {self.seed}", f"--hours {_exact(self.hours)}"]
        words += [f"--profile {self.profile}"]
        words += [] if self.hosts is None else [f"--hosts {self.hosts}"]
        words += [] if self.keep is None else ["--keep " + (",".join(map(str, self.keep)) or "none")]
        words += [] if self.trials is None else ["--trials " + (",".join(self.trials) or "none")]
        words += [] if self.fails is None else ["--fail-edge {}:{}".format(*self.fails)]
        return " ".join(words)


def _exact(hours: float) -> str:
    """Format the hours exactly: a rounded duration would be a different run."""
    return f"{hours:g}" if float(f"{hours:g}") == hours else repr(hours)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a run. `digest` is the hash of everything that happened; `violation` is None if all checks held."""

    run: Run
    peer_hours: float
    digest: str
    counts: Counter[str] = field(default_factory=Counter)
    violation: Violation | None = None


def carry_out(run: Run) -> Outcome:
    """Run the scenario and the trials until they end or a check fails."""
    scenario = run.scenario()
    world = World(scenario, run.fails)
    violation = None
    try:
        world.guarded(world.run_steps)
        world.guarded(lambda: liveness.run_trials(world, run.trials))
    except Violation as caught:
        violation = caught
    finally:
        world.close()
    peer_hours = run.hours * scenario.hosts
    return Outcome(run, peer_hours, world.digest, world.ledger.counts, violation)

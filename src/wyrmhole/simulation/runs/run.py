"""One run from a seed to its outcome, and the line that repeats it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from wyrmhole.simulation.model.checks import Violation
from wyrmhole.simulation.runs import liveness
from wyrmhole.simulation.world.scenario import Scenario, draw
from wyrmhole.simulation.world.world import World


@dataclass(frozen=True, slots=True)
class Run:
    """What decides a run. `keep` are the numbers of the scenario's steps that happen; None: all. `hosts` None draws
    2 to 16. `trials` are the liveness trials; None draws some. `fails` is the number of an edge call that fails, and
    the number of the way in which it does (`simulation.edges`)."""

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
        """The command that repeats it bit for bit."""
        words = ["python -m wyrmhole.simulation", f"--seed {self.seed}", f"--hours {_exact(self.hours)}"]
        words += [f"--profile {self.profile}"]
        words += [] if self.hosts is None else [f"--hosts {self.hosts}"]
        words += [] if self.keep is None else ["--keep " + (",".join(map(str, self.keep)) or "none")]
        words += [] if self.trials is None else ["--trials " + (",".join(self.trials) or "none")]
        words += [] if self.fails is None else ["--fail-edge {}:{}".format(*self.fails)]
        return " ".join(words)


def _exact(hours: float) -> str:
    """In full where six digits would be another number: another duration is another run."""
    return f"{hours:g}" if float(f"{hours:g}") == hours else repr(hours)


@dataclass(frozen=True, slots=True)
class Outcome:
    """`digest` is the hash of all that happened; `violation` what did not hold, None when all did."""

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

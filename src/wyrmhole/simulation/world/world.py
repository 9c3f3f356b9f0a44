"""A world: hosts, a network, an attacker, virtual time, and the steps of a scenario.

A run has two phases:

    safety   the steps happen; after every event, each host is compared with its model (host, model/watch)
    healing  faults end and settings are made to agree; then the liveness trials run (runs/liveness)

The work is divided among these files:

    schedule               planned events, in order
    cast, delivery         the hosts, and the datagrams between them
    traffic, faults,       the steps of a scenario, by subject
    administrator, assaults

A run depends on the scenario alone: each source of randomness is a `random.Random` seeded with a text that names it,
nothing reads a clock, and no order depends on a hash. `digest` is the hash of everything that happened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from wyrmhole.simulation.clock import SECOND
from wyrmhole.simulation.model.checks import Check, Violation
from wyrmhole.simulation.model.ledger import Ledger
from wyrmhole.simulation.world.administrator import Administrator
from wyrmhole.simulation.world.assaults import Assaults
from wyrmhole.simulation.world.attacker import Attacker
from wyrmhole.simulation.world.cast import Cast
from wyrmhole.simulation.world.delivery import Delivery
from wyrmhole.simulation.world.edges import EdgeCalls
from wyrmhole.simulation.world.faults import Faults
from wyrmhole.simulation.world.host import Host
from wyrmhole.simulation.world.network import Nat, Network
from wyrmhole.simulation.world.scenario import DrawnSteps, Scenario, Step
from wyrmhole.simulation.world.schedule import Call, Schedule
from wyrmhole.simulation.world.traffic import Traffic
from wyrmhole.wire.messages import HANDSHAKE_SIZES

START = 1000 * SECOND
AUDIT_EVERY = 1200 * SECOND
MAX_STEPS = 1 << 40


class World:
    """A world at the start of its scenario. `fails` selects an edge call that fails: see EdgeCalls."""

    def __init__(self, scenario: Scenario, fails: tuple[int, int] | None = None) -> None:
        seed = scenario.seed
        random = Random(f"{seed}/world")
        self.scenario = scenario
        self.calls = EdgeCalls(fails)
        self.ledger = ledger = Ledger()
        self.schedule = schedule = Schedule(START)
        self.network = network = Network(Random(f"{seed}/network"))
        attacker = Attacker(network, Random(f"{seed}/attacker"))
        self.hosts: dict[int, Host] = {}
        self.delivery = delivery = Delivery(self.hosts, schedule, network, attacker, ledger, random)
        self.cast = Cast(self.hosts, scenario, schedule, network, ledger, self.calls, delivery.transmit)
        self.administrator = Administrator(self.cast, schedule, delivery, random)
        self.assaults = Assaults(self.hosts, schedule, network, attacker, delivery, random)
        faults = Faults(self.cast, schedule, network)
        traffic = Traffic(self.hosts, schedule, delivery, faults)
        self._steps: dict[str, Call] = {}
        for part in (traffic, faults, self.administrator, self.assaults):
            self._steps |= part.steps()
        for number, timeout in scenario.nats.items():
            network.nats[number] = Nat(timeout * SECOND)
        self.cast.introduce()

    @property
    def digest(self) -> str:
        return self.ledger.digest

    @property
    def now(self) -> int:
        return self.schedule.now

    def close(self) -> None:
        """Release the engines' descriptors. Safe after a violation."""
        self.cast.close()

    def at(self, when: int, call: Call, *arguments: object) -> None:
        self.schedule.at(when, call, *arguments)

    def run_until(self, end: int) -> None:
        self.schedule.run_until(end)

    def run_for(self, duration: int) -> None:
        self.schedule.run_until(self.now + duration)

    def send(self, source: int, destination: int) -> int | None:
        """See Delivery.send."""
        return self.delivery.send(source, destination)

    # The scenario

    def run_steps(self) -> None:
        """Start all hosts and run all steps, until the scenario ends."""
        for host in self.hosts.values():
            host.start()
        first = self.schedule.reserve(MAX_STEPS)
        steps = self.scenario.steps
        if not isinstance(steps, DrawnSteps):
            steps = sorted(steps, key=lambda step: step.at)
        self._plan_step(iter(steps), first)
        end = START + self.scenario.duration
        self._plan_audit(end)
        self.run_until(end)
        self.audit()

    def _plan_step(self, steps: Iterator[Step], place: int) -> None:
        """Plan the next step at its time, with its reserved place in the order of events."""
        step = next(steps, None)
        if step is not None:
            self.schedule.at_place(START + step.at, place, self._step, step, steps, place)

    def _step(self, step: Step, steps: Iterator[Step], place: int) -> None:
        self._plan_step(steps, place + 1)
        self._steps[step.name](*step.arguments)

    def cancel_steps(self) -> None:
        """Cancel events that steps have planned, and lose the datagrams in flight. Timers stay."""
        self.schedule.keep_only(self.cast.fire)

    # Audits

    def _plan_audit(self, end: int) -> None:
        if self.now + AUDIT_EVERY < end:
            self.schedule.after(AUDIT_EVERY, self._audit_and_plan, end)

    def _audit_and_plan(self, end: int) -> None:
        self.audit()
        self._plan_audit(end)

    def audit(self) -> None:
        for host in self.hosts.values():
            host.audit()
        self._forget()

    def _forget(self) -> None:
        """Let the ledger forget what can no longer be delivered or accepted."""
        staged: set[int] = set()
        messages = self.delivery.in_flight()
        for host in self.hosts.values():
            if host.running:
                staged |= host.staged()
                messages += host.queued_handshakes()
        self.ledger.forget(self.now, staged, [data for data in messages if HANDSHAKE_SIZES.get(data[0]) == len(data)])

    # Errors

    def guarded(self, call: Callable[[], None]) -> None:
        """Make the call. Any exception becomes a violation that carries the virtual time."""
        try:
            call()
        except Violation as violation:
            violation.at = (self.schedule.now - START) / SECOND
            raise
        except Exception as error:
            escaped = Violation(Check.NO_EXCEPTION_ESCAPES, f"{type(error).__name__}: {error}")
            escaped.at = (self.schedule.now - START) / SECOND
            raise escaped from error

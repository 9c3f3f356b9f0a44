"""A world: hosts, a network, an attacker, virtual time, and the steps of a scenario.

    safety   the steps happen; after every event, each host is compared with its model (host, model/watch)
    healing  faults end, settings agree again; then the liveness trials run (runs/liveness)

    schedule               what will happen when
    cast, delivery         the hosts, and what passes between them
    traffic, faults,       the steps of a scenario, by what they are about
    administrator, assaults

Everything follows from the scenario: each source of randomness is a `random.Random` seeded with a text that names it,
nothing reads a clock, and no order depends on a hash. `digest` is the hash of all that happened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import Any

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
    """`fails` is the edge call that fails, and its way: see EdgeCalls."""

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
        """Release the descriptors of engines; safe after a violation."""
        self.cast.close()

    def at(self, when: int, call: Call, *arguments: Any) -> None:
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
        """Safety under faults: all hosts start, then all steps happen, to the end of the scenario."""
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
        """The next step waits for its time, with the place in the order that it has among all events."""
        step = next(steps, None)
        if step is not None:
            self.schedule.at_place(START + step.at, place, self._step, step, steps, place)

    def _step(self, step: Step, steps: Iterator[Step], place: int) -> None:
        self._plan_step(steps, place + 1)
        self._steps[step.what](*step.arguments)

    def cancel_steps(self) -> None:
        """Cancel what steps planned for later, and lose the datagrams in flight; timers stay."""
        self.schedule.keep_only(self.cast.fire)

    # Audits

    def _plan_audit(self, end: int) -> None:
        if self.now + AUDIT_EVERY < end:
            self.schedule.after(AUDIT_EVERY, self._audit_and_go_on, end)

    def _audit_and_go_on(self, end: int) -> None:
        self.audit()
        self._plan_audit(end)

    def audit(self) -> None:
        for host in self.hosts.values():
            host.audit()
        self._forget()

    def _forget(self) -> None:
        """The ledger keeps what may still be delivered or accepted."""
        staged: set[int] = set()
        messages = self.delivery.in_flight()
        for host in self.hosts.values():
            if host.running:
                staged |= host.staged()
                messages += host.queued_handshakes()
        self.ledger.forget(self.now, staged, [data for data in messages if HANDSHAKE_SIZES.get(data[0]) == len(data)])

    # Errors

    def guarded(self, call: Callable[[], None]) -> None:
        """Run; whatever is raised becomes a violation with its time."""
        try:
            call()
        except Violation as violation:
            violation.at = (self.schedule.now - START) / SECOND
            raise
        except Exception as error:
            crossed = Violation(Check.NO_EXCEPTION_ESCAPES, f"{type(error).__name__}: {error}")
            crossed.at = (self.schedule.now - START) / SECOND
            raise crossed from error

"""The memory of a run does not grow with its length, and forgetting does not weaken a check."""

from __future__ import annotations

import gc

import pytest

from wyrmhole.engine.portable import PortableEngine
from wyrmhole.simulation.clock import SECOND
from wyrmhole.simulation.model.checks import Check, Violation
from wyrmhole.simulation.model.ledger import MEMORY, Genuine, Ledger, RetiredKeys
from wyrmhole.simulation.packets import PacketRecord
from wyrmhole.simulation.runs.run import Run
from wyrmhole.simulation.world.scenario import Scenario, Step, draw
from wyrmhole.simulation.world.world import World


def objects_at_the_end_of(hours: float) -> tuple[int, int]:
    """Return the number of objects that the world keeps, and of engines, including those of former lives."""
    gc.collect()
    before = sum(isinstance(each, PortableEngine) for each in gc.get_objects())
    world = World(Run(2, hours, "storm", hosts=3).scenario())
    try:
        world.guarded(world.run_steps)
        ledger = world.ledger
        live = sum(len(host.shadow.by_local) for host in world.hosts.values() if host.running)
        assert len(ledger.keys) == live
        hosts = sum(len(host.events.recent) + len(host.identities) for host in world.hosts.values())
        kept = len(ledger.packets) + len(ledger._genuine) + len(ledger.owners) + len(world.schedule) + hosts
        return kept, sum(isinstance(each, PortableEngine) for each in gc.get_objects()) - before
    finally:
        world.close()


def test_four_hours_keep_no_more_than_one() -> None:
    """Four hours may keep 1.5 times as much, because storms differ in how much is in flight. Besides its present life,
    a host has at most one former life that was not collected yet."""
    short, _ = objects_at_the_end_of(1)
    long, engines = objects_at_the_end_of(4)
    assert long < 1.5 * short
    assert engines <= 6


def test_drawn_steps_are_equal_in_each_iteration() -> None:
    for profile in ("calm", "storm", "deluge"):
        steps = draw(4, hours=1, profile=profile).steps
        first, second = list(steps), list(steps)
        assert first == second
        assert len(steps) == len(first) > 0
        assert first == sorted(first, key=lambda step: step.at)
        assert list(draw(4, hours=1, profile=profile).keep([0, 5]).steps) == [first[0], first[5]]


def test_chosen_steps_happen_in_the_order_of_their_times() -> None:
    chosen = [Step(at * SECOND, "talk", (1, 2, 1, 1, 48, False, False)) for at in (1, 2, 3)]
    digests = set()
    for steps in (chosen, chosen[::-1]):
        world = World(Scenario(1, 2, 10 * SECOND, (0, 0), {}, tuple(steps)))
        try:
            world.guarded(world.run_steps)
            digests.add(world.digest)
        finally:
            world.close()
    assert len(digests) == 1


def test_a_retired_key_is_known_until_two_tables_are_full() -> None:
    keys = [number.to_bytes(8, "little") + bytes(24) for number in range(200)]
    retired = RetiredKeys(size=64)
    for number, key in enumerate(keys):
        retired.add(key, (number, 2**40 + number))
        assert retired.life_of(key) == (number, 2**40 + number)
    assert all(retired.life_of(key) == (number, 2**40 + number) for number, key in enumerate(keys) if number >= 152)
    assert retired.life_of(keys[0]) is None
    assert retired.life_of(bytes(range(32))) is None


@pytest.mark.parametrize(("life", "check"), [((1, 1), Check.NONCES_ARE_UNIQUE), ((1, 2), Check.LIVES_SHARE_NOTHING)])
def test_reuse_of_a_key_after_its_session_is_found(life: tuple[int, int], check: Check) -> None:
    ledger = Ledger()
    ledger.new_key(b"k" * 32, (1, 1))
    ledger.retire_key(b"k" * 32)
    with pytest.raises(Violation) as found:
        ledger.new_key(b"k" * 32, life)
    assert found.value.check == check


def test_staged_packets_and_messages_in_flight_are_kept() -> None:
    ledger = Ledger()
    initiations = [b"\1\0\0\0" + bytes((number,)) * 144 for number in range(2)]
    for number in range(2):
        ledger.packets[number] = PacketRecord(b"", 1, None, ledger.now)
        ledger.made(initiations[number], Genuine(1, b"", None))
    ledger.forget(MEMORY + SECOND, {1}, [initiations[1], b"\1\0\0\0" + b"x" * 144])
    assert list(ledger.packets) == [1]
    assert ledger.genuine(initiations[0]) is None
    assert ledger.genuine(initiations[1]) == Genuine(1, b"", None)

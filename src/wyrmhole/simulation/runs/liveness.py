"""Liveness: the world heals after the faults, and trials check what must then work within a deadline.

Each trial is a small scenario on a healed world for one of L1 to L8 or L11. L9 is checked whenever a packet is staged,
L10 at the end. Deadlines count from the first packet after healing, on a network without loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from wyrmhole.protocol.tai64n import emit
from wyrmhole.simulation.clock import MILLISECOND, SECOND, YEAR
from wyrmhole.simulation.model.checks import Check, require
from wyrmhole.simulation.world.host import Host
from wyrmhole.simulation.world.network import Weather
from wyrmhole.simulation.world.scenario import draw_idle
from wyrmhole.simulation.world.world import World

ONE_WAY = 20 * MILLISECOND
RTT = 2 * ONE_WAY
SLACK = RTT + 200 * MILLISECOND
"""A round trip, the timer wheel's ticks, and a clock drift of up to 1 %."""
SESSION = 5400 * MILLISECOND + SLACK
BOTH_WAYS = 15_400 * MILLISECOND + SLACK
GIVE_UP = 110 * SECOND
QUIET = 800 * SECOND
TRIALS_PER_RUN = 3
SAME_CLOCK = 1000
"""The largest difference of two clocks, in parts per million, at which a trial without loss is fair: 1 % of 180 s
exceeds the margin at the end of a session."""

Play = Callable[[World, Random, Host, Host], None]


@dataclass(frozen=True, slots=True)
class Trial:
    """A liveness trial. `code` is the number of its check, and part of the seed of its random numbers."""

    name: str
    code: str
    play: Play


TRIALS: dict[str, Trial] = {}
"""All trials by name. Drawing depends on their order."""


def trial(check: Check | None) -> Callable[[Play], Play]:
    """Register a trial under the function's name. A trial without its own check exercises the safety invariants."""

    def add(play: Play) -> Play:
        TRIALS[play.__name__] = Trial(play.__name__, "quiet" if check is None else check.code, play)
        return play

    return add


def trial_named(text: str) -> str | None:
    """Return the name of the trial with this name or code, or None if it is unknown."""
    return next((each.name for each in TRIALS.values() if text in (each.name, each.code)), None)


def heal(world: World) -> None:
    """End all faults: the network delivers everything, all hosts run, and their settings agree."""
    world.cancel_steps()
    world.network.weather = Weather(delay=ONE_WAY)
    world.network.cuts.clear()
    world.network.holes.clear()
    world.network.forget_held()
    world.calls.heal()
    for number in world.hosts:
        _revive(world, number)
    for host in world.hosts.values():
        _settle_host(world, host)
    for host in world.hosts.values():
        for other in world.hosts.values():
            if host is not other:
                _agree(world, host, other)
    world.run_for(30 * SECOND)


def _revive(world: World, number: int) -> None:
    host = world.hosts[number]
    if host.running and not host.awake:
        host.resume()
        world.cast.catch_up(number)
    if not host.running:
        host.start()
        world.cast.catch_up(number)
    if not host.interface.is_up:
        host.up()


def _settle_host(world: World, host: Host) -> None:
    host.busy_until = 0
    host.bind.failing = host.tun.failing = 0
    host.fire()
    if not host.running:
        host.start()


def _agree(world: World, host: Host, other: Host) -> None:
    """Correct keys, prefixes and addresses, like an administrator.

    A peer that restarted with its wall clock set back is removed and added again: after a crash it no longer knows its
    latest timestamp.
    """
    settings = world.cast.settings_for(host, other)
    known = host.settings.peers.get(other.number)
    shadow = host.shadow.peer_of(other.public.raw)
    is_behind = shadow is not None and emit(other.clock.wall()) <= shadow.stamp_accepted
    if known is None or known.public != other.public or is_behind:
        world.administrator.forget(host.number, other.number)
        world.administrator.add(host.number, settings)
    world.administrator.reconfigure(
        host.number,
        other.number,
        prefixes=settings.prefixes,
        psk=None,
        endpoint=settings.endpoint,
        keepalive=settings.keepalive,
    )


def run_trials(world: World, names: Sequence[str] | None = None) -> None:
    """Run these trials, or some drawn from the seed; then remove all peers (L10) and stop all hosts (I28)."""
    heal(world)
    drawn = Random(f"{world.scenario.seed}/trials").sample(list(TRIALS), TRIALS_PER_RUN)
    for name in drawn if names is None else names:
        run_trial(world, Random(f"{world.scenario.seed}/{TRIALS[name].code}"), name)
    remove_all(world)


def run_trial(world: World, random: Random, name: str) -> None:
    """Run one trial on two random hosts that are not behind a NAT."""
    reachable = [host for host in world.hosts.values() if host.number not in world.network.nats]
    first, second = random.sample(reachable, 2)
    TRIALS[name].play(world, random, first, second)
    world.ledger.counts[f"trials of {name}"] += 1
    world.audit()


def remove_all(world: World) -> None:
    for host in world.hosts.values():
        for number in list(host.settings.peers):
            world.administrator.forget(host.number, number)
        host.audit()
        host.audits.empty()
    for host in world.hosts.values():
        host.stop()


# Helpers


def _fresh(world: World, *hosts: Host) -> None:
    """End all sessions of these hosts."""
    for host in hosts:
        host.down()
    for host in hosts:
        host.up()


def _connected(world: World, a: Host, b: Host) -> None:
    """Establish a new session, with nothing pending."""
    _fresh(world, a, b)
    _must_arrive(world, Check.CONNECTS_WITH_TRAFFIC, [world.send(a.number, b.number)], 2 * SESSION)
    _both_ways(world, Check.CONNECTS_WITH_TRAFFIC, a, b)


def _must_arrive(world: World, check: Check, numbers: list[int | None], within: int) -> None:
    world.run_for(within)
    for number in numbers:
        text = f"packet {number} did not arrive within {within / SECOND:.3f} s"
        require(world.delivery.was_delivered(number), check, text)


def _both_ways(world: World, check: Check, a: Host, b: Host, within: int = RTT) -> None:
    _must_arrive(world, check, [world.send(a.number, b.number), world.send(b.number, a.number)], within)


def _talk(world: World, host: Host, other: Host, every: int, duration: int) -> None:
    """Plan packets at a fixed interval."""
    for when in range(world.now, world.now + duration, every):
        world.at(when, world.send, host.number, other.number)


def _initiations(a: Host, b: Host) -> int:
    """Return the number of initiations of both sides together."""
    return a.shadow_of(b).initiations + b.shadow_of(a).initiations


# Trials


@trial(Check.CONNECTS_WITH_TRAFFIC)
def connects_with_traffic(world: World, random: Random, a: Host, b: Host) -> None:
    """Start from the state that the faults left, or from none."""
    if random.random() < 0.5:
        _fresh(world, a, b)
    start = world.now
    had_session = any(host.shadow_of(other).usable(host.now) for host, other in ((a, b), (b, a)))
    for host, other in random.choice((((a, b),), ((b, a),), ((a, b), (b, a)))):
        _talk(world, host, other, SECOND, BOTH_WAYS)
    world.run_until(start + SESSION)
    if not had_session:
        made = any(host.shadow_of(other).usable(host.now) for host, other in ((a, b), (b, a)))
        require(
            made,
            Check.CONNECTS_WITH_TRAFFIC,
            f"hosts {a.number} and {b.number} have not made a session in {SESSION / SECOND:.1f} s",
        )
    world.run_until(start + BOTH_WAYS)
    _both_ways(world, Check.CONNECTS_WITH_TRAFFIC, a, b)


@trial(Check.RECOVERS_AFTER_STATE_LOSS)
def recovers_after_state_loss(world: World, random: Random, a: Host, b: Host) -> None:
    """One side crashes and restarts without the other's endpoint, while the other continues to send."""
    _connected(world, a, b)
    if emit(b.clock.wall()) <= a.shadow_of(b).stamp_accepted:
        return  # its timestamps are ahead of its clock, and a crash would lose them: see `_agree`
    b.crash()
    b.settings.peers[a.number].endpoint = None
    world.run_for(random.randrange(1, 5) * SECOND)
    b.start()
    _talk(world, a, b, random.choice((100, 1000, 3000)) * MILLISECOND, BOTH_WAYS)
    world.run_for(BOTH_WAYS)
    _both_ways(world, Check.RECOVERS_AFTER_STATE_LOSS, a, b)
    world.administrator.reconfigure(b.number, a.number, endpoint=a.address)


@trial(Check.CONVERGES_AFTER_CROSSED_HANDSHAKES)
def converges_after_crossed_handshakes(world: World, random: Random, a: Host, b: Host) -> None:
    """Both sides initiate within one one-way delay, then send over several renewals."""
    world.run_for(6 * SECOND)
    _fresh(world, a, b)
    before = _initiations(a, b)
    lead = random.randrange(ONE_WAY)
    _talk(world, a, b, 5 * SECOND, 500 * SECOND)
    world.run_for(lead)
    _talk(world, b, a, 5 * SECOND, 500 * SECOND)
    world.run_for(2 * SESSION)
    _both_ways(world, Check.CONVERGES_AFTER_CROSSED_HANDSHAKES, a, b)
    converged = _initiations(a, b)
    require(
        converged - before <= 4,
        Check.CONVERGES_AFTER_CROSSED_HANDSHAKES,
        f"hosts {a.number} and {b.number} needed {converged - before} initiations to converge",
    )
    world.run_for(480 * SECOND)
    renewals = _initiations(a, b) - converged
    require(
        renewals <= 5,
        Check.CONVERGES_AFTER_CROSSED_HANDSHAKES,
        f"hosts {a.number} and {b.number} sent {renewals} initiations in 480 s",
    )


@trial(Check.RENEWALS_LOSE_NOTHING)
def renewals_lose_nothing(world: World, random: Random, a: Host, b: Host) -> None:
    """One or both sides send at a fixed spacing for 600 s. The spacing may exceed the life of a session."""
    if abs(a.clock.drift - b.clock.drift) > SAME_CLOCK:
        return
    _connected(world, a, b)
    numbers: list[int | None] = []
    for host, other in random.choice((((a, b),), ((b, a),), ((a, b), (b, a)))):
        spacing = random.choice((int(SECOND * 200 ** random.random()), random.randrange(160, 185) * SECOND))
        for when in range(world.now, world.now + 600 * SECOND, spacing):
            world.at(when, _send_into, world, host, other, numbers)
    world.run_for(600 * SECOND)
    _must_arrive(world, Check.RENEWALS_LOSE_NOTHING, numbers, SESSION)


def _send_into(world: World, host: Host, other: Host, numbers: list[int | None]) -> None:
    numbers.append(world.send(host.number, other.number))


@trial(Check.STARTS_AGAIN_AFTER_GIVING_UP)
def starts_again_after_giving_up(world: World, random: Random, a: Host, b: Host) -> None:
    """The other side is down until the attempts end. After its return, the next packet must reach it."""
    _fresh(world, a)
    b.down()
    a.gave_up.clear()
    world.send(a.number, b.number)
    world.run_for(GIVE_UP)
    require(
        b.public.raw in a.gave_up,
        Check.STAGED_PACKETS_HAVE_AN_END,
        f"host {a.number} did not give up within {GIVE_UP / SECOND:.0f} s",
    )
    b.up()
    before = _initiations(a, b)
    number = world.send(a.number, b.number)
    require(
        _initiations(a, b) == before + 1,
        Check.STARTS_AGAIN_AFTER_GIVING_UP,
        f"host {a.number} did not initiate again for a new packet",
    )
    _must_arrive(world, Check.STARTS_AGAIN_AFTER_GIVING_UP, [number], 2 * RTT)


@trial(Check.STAYS_REACHABLE_BEHIND_A_NAT)
def stays_reachable_behind_a_nat(world: World, random: Random, a: Host, b: Host) -> None:
    """The side behind the NAT sends nothing but persistent keepalives.

    Both sides begin without a session. If only one had lost it, that side would stay unreachable until the other ended
    the session, because a keepalive expects no answer.
    """
    if not world.network.nats:
        return
    inside = world.hosts[random.choice(list(world.network.nats))]
    if abs(inside.clock.drift - b.clock.drift) > SAME_CLOCK:
        return
    timeout = world.network.nats[inside.number].timeout // SECOND
    interval = random.randrange(1, timeout - 4)
    for number in inside.settings.peers:
        world.administrator.reconfigure(inside.number, number, keepalive=interval if number == b.number else 0)
    world.administrator.reconfigure(b.number, inside.number, endpoint=None)
    _fresh(world, b, inside)
    world.run_for(SESSION)
    for _ in range(6):
        if random.random() < 0.3:
            world.network.rebind(inside.number)
            world.run_for(interval * SECOND + SESSION)
        world.run_for(random.randrange(1, 100 * SECOND))
        usable = b.shadow_of(inside).usable(b.now)
        _must_arrive(
            world, Check.STAYS_REACHABLE_BEHIND_A_NAT, [world.send(b.number, inside.number)], RTT if usable else SESSION
        )
    world.administrator.reconfigure(inside.number, b.number, keepalive=0)


@trial(Check.CONNECTS_AFTER_THE_CLOCK_STEPPED_BACK)
def connects_after_the_clock_stepped_back(world: World, random: Random, a: Host, b: Host) -> None:
    """The wall clock steps back by seconds or years while the machine runs."""
    _connected(world, a, b)
    before = a.clock.wall_offset
    a.clock.wall_offset -= random.choice((SECOND, 3600 * SECOND, YEAR, 10 * YEAR))
    world.run_for(6 * SECOND)
    _fresh(world, a, b)
    _must_arrive(world, Check.CONNECTS_AFTER_THE_CLOCK_STEPPED_BACK, [world.send(a.number, b.number)], 2 * RTT)
    a.clock.wall_offset = before


@trial(Check.NEEDS_NO_COOKIE_AFTER_A_FLOOD)
def needs_no_cookie_after_a_flood(world: World, random: Random, a: Host, b: Host) -> None:
    """Two seconds after the end of a flood, no handshake needs a cookie."""
    _fresh(world, a, b)
    world.assaults.flood_once(b.number, 300, random.choice((1, 24)))
    world.run_for(2 * SECOND)
    cookies = world.ledger.counts["cookie replies"]
    number = world.send(a.number, b.number)
    _must_arrive(world, Check.NEEDS_NO_COOKIE_AFTER_A_FLOOD, [number], 2 * RTT)
    require(
        world.ledger.counts["cookie replies"] == cookies,
        Check.NEEDS_NO_COOKIE_AFTER_A_FLOOD,
        f"host {b.number} still demands cookies two seconds after a flood",
    )


@trial(Check.KEEPALIVES_RENEW_SESSIONS)
def keepalives_renew_sessions(world: World, random: Random, a: Host, b: Host) -> None:
    """For an hour, only persistent keepalives pass."""
    _connected(world, a, b)
    _fresh(world, a, b)
    duration = 3600 * SECOND
    world.administrator.idle(a.number, b.number, *draw_idle(random, has_nat=False), duration)
    world.run_for(duration + SECOND)
    for host, other in ((a, b), (b, a)):
        world.administrator.reconfigure(host.number, other.number, keepalive=0)


@trial(None)
def forgets_secrets_when_quiet(world: World, random: Random, a: Host, b: Host) -> None:
    """All hosts are silent for so long that no secret and no timer may remain (I16, I19)."""
    for host in world.hosts.values():
        for number in host.settings.peers:
            world.administrator.reconfigure(host.number, number, keepalive=0)
    _connected(world, a, b)
    world.run_for(QUIET)
    world.audit()

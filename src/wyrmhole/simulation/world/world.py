"""A world: hosts, a network, an attacker, virtual time, and the steps of a scenario.

    events   one heap of (time, order, call): datagrams that arrive, timers of hosts, steps and what follows from them
    safety   the steps run; every host's model looks at every event (shadow, host)
    healing  faults end, settings agree again; then the liveness trials run (liveness)

Everything follows from the scenario: each source of randomness is a `random.Random` seeded with a text that names it,
nothing reads a clock, and no order depends on a hash. `digest` is the hash of all that happened.

Longer than 500 lines because every kind of step of a scenario has its method here.
"""

from __future__ import annotations

import dataclasses
import functools
import heapq
import itertools
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from wyrmhole.protocol.keys import PresharedKey, PrivateKey
from wyrmhole.simulation import packets
from wyrmhole.simulation.clock import MILLISECOND, SECOND, HostClock
from wyrmhole.simulation.model.checks import Check, Violation, require
from wyrmhole.simulation.model.ledger import Ledger
from wyrmhole.simulation.world.attacker import Attack, Attacker
from wyrmhole.simulation.world.edges import EdgeCalls
from wyrmhole.simulation.world.host import PORT, Host
from wyrmhole.simulation.world.network import Captured, Nat, Network, Weather
from wyrmhole.simulation.world.scenario import DrawnSteps, Scenario, Step
from wyrmhole.simulation.world.settings import PeerSettings
from wyrmhole.wire.endpoint import Endpoint, SockAddr
from wyrmhole.wire.messages import HANDSHAKE_SIZES
from wyrmhole.wire.prefix import Prefix

START = 1000 * SECOND
QUIET_AGAIN = 4200 * MILLISECOND
AUDIT_EVERY = 1200 * SECOND
MAX_STEPS = 1 << 40
ATTEMPT = 5400 * MILLISECOND
"""Until a handshake that waits for Rekey-Timeout is done."""
CLOCKS = 1.02
"""Two clocks may drift by 1 % in opposite directions."""
WATCH_EVERY = 3 * SECOND
RESTART = 2 * SECOND
"""Until somebody starts an interface again whose TUN was deleted."""


"""The lengths of the types."""


def handshake_age(interval: int, other: int) -> int:
    """How old the latest handshake may get while persistent keepalives flow and all of them arrive.

    The initiator renews with its first keepalive after 120 s. If the other side's come first, nothing leaves it, and it
    renews with the first that it receives after 165 s; or the session ends at 179 s, and the next one renews."""
    flows = min(each for each in (interval, other) if each)
    if interval and (not other or interval < other):
        return int((120 + flows) * SECOND * CLOCKS) + ATTEMPT
    return int(((165 if flows < 13 else 180) + flows) * SECOND * CLOCKS) + ATTEMPT


class World:
    """`fails` is the edge call that fails, and its way: see EdgeCalls."""

    def __init__(self, scenario: Scenario, fails: tuple[int, int] | None = None) -> None:
        self.scenario = scenario
        self.calls = EdgeCalls(fails)
        self.now = START
        self.random = Random(f"{scenario.seed}/world")
        self.ledger = Ledger()
        self.network = Network(Random(f"{scenario.seed}/network"))
        self.attacker = Attacker(self.network, Random(f"{scenario.seed}/attacker"))
        self._heap: list[tuple[int, int, Callable[..., object], tuple[Any, ...]]] = []
        self._order = itertools.count()
        self._wakes: dict[int, int] = {}
        self._asleep: dict[int, list[tuple[Callable[..., object], tuple[Any, ...]]]] = {}
        """What somebody wants of a machine that sleeps: it is done when it wakes."""
        self._numbers = itertools.count(1)
        self._roams = itertools.count(1)
        self.hosts = {number: self._make_host(number) for number in range(1, scenario.hosts + 1)}
        for number, timeout in scenario.nats.items():
            self.network.nats[number] = Nat(timeout * SECOND)
        self._introduce()

    @property
    def digest(self) -> str:
        return self.ledger.digest

    def close(self) -> None:
        """Release the descriptors of engines; safe after a violation."""
        for host in self.hosts.values():
            if host.running:
                host.crash()

    # Making

    def _make_host(self, number: int) -> Host:
        clock = HostClock(lambda: self.now, self.scenario.drifts[number - 1])
        return Host(
            number,
            seed=str(self.scenario.seed),
            ledger=self.ledger,
            clock=clock,
            calls=self.calls,
            transmit=self._transmit,
            wake=self._wake,
            ended=lambda host: self.after(RESTART, self._restart, host.number),
        )

    def _introduce(self) -> None:
        """Every host knows every other; addresses behind a NAT nobody knows."""
        for host in self.hosts.values():
            self.network.place(host.number, host.address)
            for other in self.hosts.values():
                if other is not host:
                    host.settings.peers[other.number] = self.settings_for(host, other)

    def settings_for(self, host: Host, other: Host) -> PeerSettings:
        endpoint = None if other.number in self.network.nats else other.address
        # Only some, because one that cannot reach host 1 for hours tries every five seconds, and little else happens.
        keepalive = 25 if host.number in self.network.nats and host.number % 4 == 3 and other.number == 1 else 0
        prefixes = [packets.v4_prefix(other.number), packets.v6_prefix(other.number)]
        return PeerSettings(other.number, other.public, prefixes, None, endpoint, keepalive)

    # Time

    def at(self, when: int, call: Callable[..., object], *arguments: Any) -> None:
        heapq.heappush(self._heap, (max(when, self.now), next(self._order), call, arguments))

    def after(self, delay: int, call: Callable[..., object], *arguments: Any) -> None:
        self.at(self.now + delay, call, *arguments)

    def run_until(self, end: int) -> None:
        heap = self._heap
        while heap and heap[0][0] <= end:
            when, _, call, arguments = heapq.heappop(heap)
            self.now = when
            call(*arguments)
        self.now = max(self.now, end)

    def run_for(self, duration: int) -> None:
        self.run_until(self.now + duration)

    def _wake(self, host: Host, when: int) -> None:
        due = self._wakes.get(host.number)
        if due is None or when < due:
            self._wakes[host.number] = max(when, self.now)
            self.at(when, self._fire, host)

    def _fire(self, host: Host) -> None:
        due = self._wakes.get(host.number)
        if due is not None and due <= self.now:
            del self._wakes[host.number]
            host.fire()

    def _waits(self, a: int, call: Callable[..., object], *arguments: Any) -> bool:
        """Whether the host sleeps; the call then waits for it to wake, or to start again."""
        host = self.hosts[a]
        if host.running and not host.awake:
            self._asleep.setdefault(a, []).append((call, arguments))
            return True
        return False

    def catch_up(self, a: int) -> None:
        for call, arguments in self._asleep.pop(a, []):
            call(*arguments)

    # The scenario

    def run_steps(self) -> None:
        """Safety under faults: all hosts start, then all steps, to the end of the scenario."""
        for host in self.hosts.values():
            host.start()
        first = next(self._order)
        self._order = itertools.count(first + MAX_STEPS)
        steps = self.scenario.steps
        if not isinstance(steps, DrawnSteps):
            steps = sorted(steps, key=lambda step: step.at)
        self._plan_step(iter(steps), first)
        end = START + self.scenario.duration
        self._plan_audit(end)
        self.run_until(end)
        self.audit()

    def _plan_step(self, steps: Iterator[Step], order: int) -> None:
        """The next step waits for its time, with the place in the order that it has among all events."""
        step = next(steps, None)
        if step is not None:
            heapq.heappush(self._heap, (max(START + step.at, self.now), order, self._step, (step, steps, order)))

    def _step(self, step: Step, steps: Iterator[Step], order: int) -> None:
        self._plan_step(steps, order + 1)
        do: Callable[..., None] = getattr(self, f"do_{step.what}")
        do(*step.arguments)

    def _plan_audit(self, end: int) -> None:
        if self.now + AUDIT_EVERY < end:
            self.after(AUDIT_EVERY, self._audit_and_go_on, end)

    def _audit_and_go_on(self, end: int) -> None:
        self.audit()
        self._plan_audit(end)

    def cancel_steps(self) -> None:
        """What steps left to happen later does not, and datagrams under way are lost; timers stay."""
        self._heap = [event for event in self._heap if event[2] == self._fire]
        heapq.heapify(self._heap)

    def audit(self) -> None:
        for host in self.hosts.values():
            host.audit()
        self._forget()

    def _forget(self) -> None:
        """The ledger keeps what may still be delivered or accepted."""
        staged: set[int] = set()
        under_way = [heard.data for heard in self.network.captured] + self.network.all_held()
        under_way += [arguments[2] for _, _, call, arguments in self._heap if call == self._arrive]
        for host in self.hosts.values():
            if host.running:
                staged |= host.staged()
                under_way += host.queued_handshakes()
        self.ledger.forget(self.now, staged, [data for data in under_way if HANDSHAKE_SIZES.get(data[0]) == len(data)])

    # The network

    def _transmit(self, host: Host, destination: SockAddr, data: bytes) -> None:
        self.ledger.trace(self.now, host.number, data)
        self.ledger.counts["datagrams"] += 1
        source = self.network.source_of(host.number, host.address, self.now)
        self.network.captured.append(Captured(source, destination, data))
        receiver = self.network.receiver(destination, self.now)
        if receiver is None:
            self.attacker.hears(destination, data)
            return
        for when, copy in self.network.copies(host.number, receiver, data, self.now):
            self.at(when, self._arrive, destination, source, copy)

    def _arrive(self, destination: SockAddr, source: SockAddr, data: bytes) -> None:
        """A datagram is there, and with it those of the same sender that a socket would give as one train."""
        train, heap = [data], self._heap
        while heap and heap[0][0] == self.now and heap[0][2] == self._arrive and len(train[-1]) == len(data):
            also = heap[0][3]
            if also[0] != destination or also[1] != source or len(also[2]) > len(data) or len(train) == 64:
                break
            train.append(heapq.heappop(heap)[3][2])
        self.deliver(destination, source, train)

    def deliver(self, destination: SockAddr, source: SockAddr, train: list[bytes]) -> None:
        number = self.network.receiver(destination, self.now)
        if number is not None:
            self.hosts[number].receive(source, train)

    def send(self, source: int, destination: int, size: int = 48, *, v6: bool = False, as_host: int = 0) -> int | None:
        """A program on one host sends a packet to the other. Returns its number; None: the host is not there."""
        host = self.hosts[source]
        if not host.running or not host.awake or not host.interface.is_up or host.tun.gone:
            return None
        number = next(self._numbers)
        where = packets.address(destination, self.random.choice((1, 200)), v6=v6)
        packet = packets.build(packets.address(as_host or source, 1, v6=v6), where, number, size)
        host.inject(number, packet, where)
        return number

    def was_delivered(self, number: int | None) -> bool:
        return number is not None and self.ledger.packets[number].delivered

    # Steps: traffic

    def do_talk(self, a: int, b: int, count: int, spacing: int, size: int, v6: bool, answered: bool) -> None:
        if not count:
            return
        self.send(a, b, size, v6=v6)
        if answered:
            self.after(spacing // 2, self.do_talk, b, a, 1, 0, size, v6, False)
        if count > 1:
            self.after(spacing, self.do_talk, a, b, count - 1, spacing, size, v6, answered)

    do_burst = do_talk

    def do_deluge(self, a: int, b: int, count: int, spacing: int, weather: Weather) -> None:
        """So many packets that thousands of them overtake one; the first asks for a session."""
        self.send(a, b)
        self.after(SECOND, self.do_weather, weather, count * spacing + SECOND)
        self.after(SECOND, self.do_talk, a, b, count, spacing, 48, False, False)

    def do_spoof_inside(self, a: int, b: int) -> None:
        """A program on one host sends with the inner source of a third."""
        others = [number for number in self.hosts if number not in (a, b)]
        self.send(a, b, as_host=others[0] if others else b)

    # Steps: the network and the machines

    def do_weather(self, weather: Weather, duration: int) -> None:
        self.network.weather = weather
        self.after(duration, self._clear_weather, weather)

    def _clear_weather(self, weather: Weather) -> None:
        if self.network.weather is weather:
            self.network.weather = Weather()

    def do_cut(self, a: int, b: int, duration: int) -> None:
        """One way only; another step may cut the other."""
        self.network.cuts[a, b] = self.now + duration

    def do_hole(self, a: int, b: int, duration: int, size: int) -> None:
        self.network.holes[a, b] = (self.now + duration, size)

    def do_roam(self, a: int) -> None:
        """The host gets another address, or its NAT another port."""
        host = self.hosts[a]
        if a in self.network.nats:
            self.network.rebind(a)
            return
        host.address = Endpoint(f"192.0.{3 + next(self._roams) % 200}.{a}", PORT)
        self.network.place(a, host.address)
        self.do_stale_sources(a)

    def do_suspend(self, a: int, duration: int) -> None:
        host = self.hosts[a]
        if host.running and host.awake:
            host.suspend()
            self.after(duration, self._resume, a, host.lives)

    def _resume(self, a: int, life: int) -> None:
        host = self.hosts[a]
        if host.running and host.lives == life and not host.awake:
            host.resume()
            self.catch_up(a)

    def do_wall(self, a: int, jump: int) -> None:
        self.hosts[a].clock.wall_offset += jump

    def do_crash(self, a: int, duration: int) -> None:
        host = self.hosts[a]
        if host.running:
            host.crash()
            self.after(duration, self._restart, a)

    def _restart(self, a: int) -> None:
        if not self.hosts[a].running:
            self.hosts[a].start()
            self.catch_up(a)

    def do_toggle(self, a: int, duration: int) -> None:
        """The TUN goes down, and up again."""
        host = self.hosts[a]
        if host.running and host.awake and host.interface.is_up:
            host.down()
            self.after(duration, self._up, a, host.lives)

    def _up(self, a: int, life: int) -> None:
        host = self.hosts[a]
        if self._waits(a, self._up, a, life):
            return
        if host.running and host.lives == life and not host.interface.is_up:
            host.up()

    def do_busy(self, a: int, duration: int) -> None:
        """The control thread has no time: packets pass, reports wait."""
        host = self.hosts[a]
        host.busy_until = host.now + duration
        self._wake(host, self.now + duration)

    def do_fail_sends(self, a: int, count: int) -> None:
        if self.hosts[a].running:
            self.hosts[a].bind.failing = count

    def do_fail_writes(self, a: int, count: int) -> None:
        if self.hosts[a].running:
            self.hosts[a].tun.failing = count

    def do_stale_sources(self, a: int) -> None:
        if self.hosts[a].running and not self._waits(a, self.do_stale_sources, a):
            self.hosts[a].routes_changed()

    # Steps: configuration

    def reconfigure(self, a: int, b: int, **changes: Any) -> None:
        """Host a's settings for peer b change, in its file and in its interface if there is one."""
        host = self.hosts[a]
        if self._waits(a, functools.partial(self.reconfigure, a, b, **changes)) or b not in host.settings.peers:
            return
        settings = host.settings.peers[b] = dataclasses.replace(host.settings.peers[b], **changes)
        if host.running:
            host.apply_peer(settings)

    def readd(self, a: int, b: int, **changes: Any) -> None:
        """Host a forgets peer b and gets to know it anew."""
        settings = self.forget(a, b)
        if settings is not None:
            self.add(a, dataclasses.replace(settings, **changes))

    def forget(self, a: int, b: int) -> PeerSettings | None:
        """Remove the peer; returns what it was. The host must not sleep."""
        host = self.hosts[a]
        settings = host.settings.peers.get(b)
        if settings is not None and host.running:
            host.remove_peer(b)
        elif settings is not None:
            del host.settings.peers[b]
        return settings

    def add(self, a: int, settings: PeerSettings) -> None:
        host = self.hosts[a]
        if not self._waits(a, self.add, a, settings) and settings.number not in host.settings.peers:
            settings.public = self.hosts[settings.number].public
            for prefix in settings.prefixes:
                self._take_prefix(host, prefix)
            host.settings.peers[settings.number] = settings
            if host.running:
                host.apply_peer(settings)

    def do_readd(self, a: int, b: int, gap: int) -> None:
        if self._waits(a, self.do_readd, a, b, gap):
            return
        settings = self.forget(a, b)
        if settings is not None:
            self.after(gap, self.add, a, settings)

    def do_change_psk(self, a: int, b: int, gap: int) -> None:
        """One side first, the other a while later."""
        psk = PresharedKey(self.random.randbytes(32))
        self.reconfigure(a, b, psk=psk)
        self.after(gap, self._change_psk, b, a, psk)

    def _change_psk(self, a: int, b: int, psk: PresharedKey) -> None:
        self.reconfigure(a, b, psk=psk)

    def do_change_key(self, a: int, gap: int) -> None:
        """A new identity, which the others learn of later, one by one."""
        if self._waits(a, self.do_change_key, a, gap):
            return
        self.hosts[a].change_key(PrivateKey(self.random.randbytes(32)))
        for number in self.hosts:
            if number != a:
                self.after(self.random.randrange(gap + 1), self._learn_key, number, a)

    def _learn_key(self, a: int, b: int) -> None:
        if self._waits(a, self._learn_key, a, b):
            return
        settings = self.hosts[a].settings.peers.get(b)
        if settings is not None and settings.public != self.hosts[b].public:
            self.readd(a, b, public=self.hosts[b].public)

    def do_change_keepalive(self, a: int, b: int, seconds: int, duration: int) -> None:
        self.reconfigure(a, b, keepalive=seconds)
        if seconds:
            self.after(duration, self.do_change_keepalive, a, b, 0, 0)

    def do_idle(self, a: int, b: int, interval: int, other: int, duration: int) -> None:
        """Host a initiates a session with b, which persistent keepalives of these intervals then keep alive, without
        data: of a, of b, or of both."""
        self.send(a, b)
        self.after(2 * SECOND, self.do_keepalive, a, b, interval)
        self.after(3 * SECOND, self.do_keepalive, b, a, other)
        # The first packet may have to wait for an attempt, and is answered by a keepalive.
        self.after(25 * SECOND, self._watch_handshake, a, b, handshake_age(interval, other), self.now + duration)

    def do_keepalive(self, a: int, b: int, interval: int) -> None:
        self.reconfigure(a, b, keepalive=interval)

    def _watch_handshake(self, a: int, b: int, most: int, end: int) -> None:
        """L11, every few seconds: the age that `wg show` gives, on both sides."""
        for host, other in ((self.hosts[a], self.hosts[b]), (self.hosts[b], self.hosts[a])):
            peer = host.interface.peer(other.public)
            age = most + 1 if peer is None else host.clock.wall() - peer.last_handshake_wall
            text = f"host {host.number}: the latest handshake with {other.number} is {age / SECOND:.1f} s old"
            require(age <= most, Check.KEEPALIVES_RENEW_SESSIONS, text)
        if self.now + WATCH_EVERY <= end:
            self.after(WATCH_EVERY, self._watch_handshake, a, b, most, end)

    def do_change_routes(self, a: int) -> None:
        """Part of somebody's network moves to another peer, and the order of prefixes changes."""
        host = self.hosts[a]
        if not host.settings.peers or self._waits(a, self.do_change_routes, a):
            return
        owner = self.random.choice(list(host.settings.peers))
        whole = packets.v4_prefix(self.random.choice(list(self.hosts)))
        half = Prefix(4, whole.network | 128, 25)
        prefixes = [prefix for prefix in host.settings.peers[owner].prefixes if prefix != half]
        self._take_prefix(host, half)
        self.random.shuffle(prefixes)
        self.reconfigure(a, owner, prefixes=[*prefixes, half])

    def _take_prefix(self, host: Host, prefix: Prefix) -> None:
        """In the settings a prefix has one owner, as in the table."""
        for settings in host.settings.peers.values():
            settings.prefixes = [each for each in settings.prefixes if each != prefix]

    # Steps: the attacker

    def do_replay(self, a: int, count: int) -> None:
        """What was heard comes again, from where it came or from elsewhere."""
        for heard in self._heard(count):
            source = heard.source if self.random.random() < 0.5 else self.attacker.address()
            self.deliver(heard.destination, source, [heard.data])

    def do_reflect(self, a: int, count: int) -> None:
        """A host gets its own datagrams back."""
        for heard in self._heard(count):
            self.deliver(heard.source, heard.destination, [heard.data])

    def _heard(self, count: int) -> list[Captured]:
        captured = self.network.captured
        return [captured[self.random.randrange(len(captured))] for _ in range(count)] if captured else []

    def do_garbage(self, a: int, count: int) -> None:
        self.hosts[a].receive_garbage(self.attacker.garbage(count))

    def do_forge(self, a: int, count: int) -> None:
        host = self.hosts[a]
        for source, data in self.attacker.forged(host.public, count):
            host.receive(source, [data])

    def do_flood(self, a: int, count: int, sources: int) -> None:
        """Valid mac1s from some sources. When those count as quiet again, they come back with their cookies, behind
        another flood."""
        self.after(QUIET_AGAIN, self._flood_again, a, count, self.flood_once(a, count, sources))

    def flood_once(self, a: int, count: int, sources: int) -> list[Attack]:
        host = self.hosts[a]
        sent = self.attacker.flood(host.public, count, sources)
        host.receive_garbage(sent)
        return sent

    def _flood_again(self, a: int, count: int, sent: list[Attack]) -> None:
        host = self.hosts[a]
        proved = self.attacker.with_cookies(host.public, sent, each=1)
        host.receive_garbage(self.attacker.flood(host.public, count, 1) + proved)

    # Errors

    def guarded(self, call: Callable[[], None]) -> None:
        """Run; whatever is raised becomes a violation with its time."""
        try:
            call()
        except Violation as violation:
            violation.at = (self.now - START) / SECOND
            raise
        except Exception as error:
            crossed = Violation(Check.NO_EXCEPTION_ESCAPES, f"{type(error).__name__}: {error}")
            crossed.at = (self.now - START) / SECOND
            raise crossed from error

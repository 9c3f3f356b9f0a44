"""One planted bug for each check, which the simulator must find.

A mutation breaks the product by a plausible mistake; `runs` yields the worlds in which a check must fail. If the drawn
steps of a storm would need many seeds to trigger the bug, a scenario of a few chosen steps replaces them.

Longer than 500 lines because it is one list: a planted bug for each check.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from wyrmhole.datapath import replay
from wyrmhole.datapath.gate import Gate, Queue
from wyrmhole.datapath.inbound import Inbound
from wyrmhole.datapath.keypair import Keypair, Keypairs
from wyrmhole.datapath.outbound import Outbound
from wyrmhole.datapath.tables import Tables
from wyrmhole.engine.loop import Loop
from wyrmhole.engine.portable import PortableEngine
from wyrmhole.protocol import cookie, exchange, tai64n
from wyrmhole.protocol.constants import SECOND
from wyrmhole.protocol.data_plane import NEVER
from wyrmhole.protocol.events import HandshakeGaveUp
from wyrmhole.protocol.exchange import Exchange
from wyrmhole.protocol.index_table import IndexTable
from wyrmhole.protocol.interface import Interface
from wyrmhole.protocol.keys import PublicKey
from wyrmhole.protocol.peer import LONG_AGO
from wyrmhole.protocol.prefix_owners import PrefixOwners
from wyrmhole.protocol.ratelimiter import RateLimiter
from wyrmhole.protocol.renewal import ACTIONS, Renewal
from wyrmhole.protocol.timers import PeerTimers, Timer
from wyrmhole.simulation.model.checks import Check
from wyrmhole.simulation.runs.run import Run
from wyrmhole.simulation.world.scenario import Scenario, Step

Plant = Callable[[pytest.MonkeyPatch], None]
Planned = tuple[Run | Scenario, tuple[str, ...]]
"""A run or scenario, and the names of the liveness trials that follow."""


@dataclass(frozen=True)
class Mutation:
    check: Check
    bug: str
    plant: Plant
    runs: Callable[[], Iterator[Planned]]


def storms(hours: float = 0.1, hosts: int | None = None, count: int = 12) -> Callable[[], Iterator[Planned]]:
    return lambda: ((Run(seed, hours, "storm", hosts), ()) for seed in range(1, count + 1))


def trials(name: str, nats: bool = False, count: int = 6) -> Callable[[], Iterator[Planned]]:
    """Return worlds without faults, each followed by one trial."""
    return lambda: ((_planned(seed, (), {3: 60} if nats else {}), (name,)) for seed in range(1, count + 1))


def steps(*chosen: tuple[float, str, tuple[object, ...]]) -> Callable[[], Iterator[Planned]]:
    """Return a world of three hosts that lasts 400 s, with chosen steps (second, step, arguments)."""
    made = tuple(Step(int(at * SECOND), name, arguments) for at, name, arguments in chosen)
    return lambda: iter([(_planned(1, made, {}), ())])


def _planned(seed: int, chosen: tuple[Step, ...], nats: dict[int, int]) -> Scenario:
    return Scenario(seed, 3, 400 * SECOND if chosen else SECOND, (0, 0, 0), nats, chosen)


def talk(a: int, b: int, count: int = 1, spacing: float = 0.1) -> tuple[str, tuple[object, ...]]:
    return "talk", (a, b, count, int(spacing * SECOND), 48, False, False)


MUTATIONS: list[Mutation] = []


def bug(check: Check, text: str, runs: Callable[[], Iterator[Planned]] | None = None) -> Callable[[Plant], Plant]:
    def add(plant: Plant) -> Plant:
        MUTATIONS.append(Mutation(check, text, plant, runs or storms()))
        return plant

    return add


def after(patch: pytest.MonkeyPatch, owner: type, name: str, also: Callable[..., None]) -> None:
    """Patch the method to call `also` afterwards, with its result and arguments."""
    method = getattr(owner, name)

    def both(*arguments: Any, **named: Any) -> Any:
        result = method(*arguments, **named)
        also(result, *arguments)
        return result

    patch.setattr(owner, name, both)


def before(patch: pytest.MonkeyPatch, owner: type, name: str, also: Callable[..., None]) -> None:
    method = getattr(owner, name)

    def both(*arguments: Any, **named: Any) -> Any:
        also(*arguments)
        return method(*arguments, **named)

    patch.setattr(owner, name, both)


# Safety


@bug(Check.NONCES_ARE_UNIQUE, "a counter is reused after each fifth packet")
def counter_twice(patch: pytest.MonkeyPatch) -> None:
    def take_back(result: None, self: Outbound, peer: object, keypair: Keypair, *rest: object) -> None:
        keypair.send_counter -= keypair.send_counter % 5 == 4

    after(patch, Outbound, "_seal_all", take_back)


@bug(Check.COUNTERS_HAVE_NO_GAP, "a counter is sometimes skipped")
def counter_gap(patch: pytest.MonkeyPatch) -> None:
    def skip(result: None, self: Outbound, peer: object, keypair: Keypair, *rest: object) -> None:
        keypair.send_counter += keypair.send_counter % 5 == 4

    after(patch, Outbound, "_seal_all", skip)


@bug(Check.PACKETS_ARRIVE_ONCE, "the replay window accepts everything")
def no_window(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(replay.ReplayWindow, "accept", lambda self, counter: True)


@bug(Check.PACKETS_ARRIVE_INTACT, "the inner source is not checked")
def any_source(patch: pytest.MonkeyPatch) -> None:
    def deliver(self: Any, peer: Any, packets: list[bytes], ecn: int, now: int) -> None:
        from wyrmhole.wire import ip
        from wyrmhole.wire.coalesce import plain

        self._tables.note_data_received(peer, now)
        for packet in packets:
            self._write(plain(packet[: ip.length_of(packet)]))

    patch.setattr(Inbound, "_deliver", deliver)


_MOVING = [(1.0 + n, "change_routes", (1,)) for n in range(20)] + [(1.5 + n, *talk(1, 2, 4)) for n in range(20)]


@bug(Check.PACKETS_GO_TO_THEIR_OWNER, "the shortest prefix wins", steps(*_MOVING))
def shortest_prefix(patch: pytest.MonkeyPatch) -> None:
    def route(self: Any, destination: bytes) -> Any:
        address = int.from_bytes(destination, "big")
        node = self.allowed_ips._v4.root
        while node is not None and not (address ^ node.network) >> 32 - node.length:
            if node.value is not None:
                return node.value
            node = node.right if address >> (31 - node.length) & 1 else node.left
        return None

    patch.setattr(Tables, "route", route)


@bug(Check.KEYPAIRS_EXPIRE, "a session sends for a minute too long", steps((1, *talk(1, 2)), (182, *talk(2, 1))))
def long_session(patch: pytest.MonkeyPatch) -> None:
    def lengthen(result: None, self: Keypair, params: object) -> None:
        self.send_until += 60 * SECOND
        self.reject_at += 60 * SECOND

    after(patch, Keypair, "__init__", lengthen)


@bug(Check.INITIATIONS_ARE_SPACED, "retransmissions come after four seconds, without any limit")
def impatient(patch: pytest.MonkeyPatch) -> None:
    def forget(self: Renewal, peer: Any, *rest: object) -> None:
        peer.last_handshake_sent = LONG_AGO

    before(patch, Renewal, "initiate", forget)
    patch.setattr(Renewal, "_jitter", lambda self: -SECOND)


@bug(Check.RESPONDERS_WAIT_FOR_CONFIRMATION, "a responder sends staged packets as soon as it has a key")
def eager_responder(patch: pytest.MonkeyPatch) -> None:
    def send(result: None, self: Any, peer: int, params: Any) -> None:
        engine_peer = self._tables.peers[peer]
        if not params.is_initiator and engine_peer.staged:
            engine_peer.keypairs.confirm()
            self._outbound.send_staged(engine_peer, self._now)

    after(patch, Loop, "install_keypair", send)


@bug(Check.REPLAY_WINDOW_IS_A_SET, "the window is 64 packets wide")
def narrow_window(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(replay, "WINDOW_SIZE", 64)
    patch.setattr(replay, "_MASK", (1 << 64) - 1)


@bug(Check.TIMESTAMPS_RISE, "a timestamp follows the wall clock down")
def falling_stamps(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(tai64n, "next_stamp", lambda wall, last: tai64n.emit(wall))


_COOKIE_REPLAYED = [(1.0, "flood", (2, 140, 1)), (1.0, *talk(1, 2))] + [(1.1, "replay", (1, 20)) for _ in range(60)]


@bug(Check.ENDPOINTS_FOLLOW_PROOF, "a cookie reply moves the endpoint", steps(*_COOKIE_REPLAYED))
def roaming_cookie(patch: pytest.MonkeyPatch) -> None:
    def move(self: Any, datagram: Any, now: int) -> None:
        peer = self.exchange.indices.get(int.from_bytes(datagram.data[4:8], "little"))
        if datagram.data[0] == 3 and peer is not None and peer.endpoint != datagram.endpoint:
            self._learn_endpoint(peer, datagram, now)

    def pass_replays(self: Gate, kind: int, *rest: Any) -> Any:
        verdict = admit(self, kind, *rest)
        return Queue.REPLIES if kind == 3 else verdict

    # Only a replayed reply comes from another endpoint, and the gate would drop it.
    admit = Gate.admit
    patch.setattr(Gate, "admit", pass_replays)
    before(patch, Interface, "_handle_handshake", move)


@bug(Check.UNPROVEN_INPUT_CHANGES_NOTHING, "a response that does not authenticate ends the handshake")
def fragile_handshake(patch: pytest.MonkeyPatch) -> None:
    def end(result: object, self: Exchange, datagram: Any) -> None:
        peer = self.indices.get(int.from_bytes(datagram.data[8:12], "little"))
        if result is None and peer is not None:
            self.abandon(peer)

    after(patch, Exchange, "_consume_response", end)


@bug(Check.UNPROVEN_SOURCES_GET_NOTHING, "a cookie reply is sent twice", steps((1, "flood", (1, 300, 4))))
def two_cookies(patch: pytest.MonkeyPatch) -> None:
    def again(result: None, self: Any, endpoint: Any, source: Any, datagram: bytes) -> None:
        self._bind.send(datagram, 0, endpoint.sockaddr, source)

    after(patch, Loop, "send_to", again)


@bug(Check.INDICES_ARE_UNIQUE, "indices of dropped keypairs are not freed")
def stale_indices(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Interface, "_free_indices", lambda self, peer, indices: None)


@bug(Check.KEYPAIRS_ROTATE_IN_ORDER, "the previous keypair outlives the next rotation")
def long_previous(patch: pytest.MonkeyPatch) -> None:
    def install(self: Keypairs, keypair: Keypair) -> list[Keypair]:
        self.current, self.next = keypair, None
        return []

    patch.setattr(Keypairs, "install_initiator", install)


@bug(Check.SECRETS_ARE_FORGOTTEN, "keys are not zeroed after 540 s", trials("forgets_secrets_when_quiet"))
def kept_keys(patch: pytest.MonkeyPatch) -> None:
    def leave(self: Renewal, *rest: object) -> None:
        pass

    patch.setitem(ACTIONS, Timer.ZERO_KEYS, leave)


@bug(Check.STAGED_PACKETS_ARE_ACCOUNTED_FOR, "the newest staged packet makes room")
def newest_first(patch: pytest.MonkeyPatch) -> None:
    def stage(self: Tables, peer: Any, packet: bytes, now: int) -> None:
        if peer.staged and len(peer.staged) >= 128:
            self.staged_bytes -= len(peer.staged.pop())
        original(self, peer, packet, now)

    original = Tables.stage
    patch.setattr(Tables, "stage", stage)


@bug(Check.RATE_LIMITER_IS_BOUNDED, "the limiter remembers any number of sources", steps((1, "flood", (1, 300, 24))))
def endless_limiter(patch: pytest.MonkeyPatch) -> None:
    def lift(self: RateLimiter, *rest: object) -> None:
        self._max_sources = 1 << 30

    before(patch, RateLimiter, "allow", lift)


@bug(Check.TIMERS_HAVE_OWNERS, "a removed peer keeps its timer")
def orphan_timer(patch: pytest.MonkeyPatch) -> None:
    def arm(result: None, self: Any, peer: Any) -> None:
        self.renewal.wheel.arm(peer.id, NEVER >> 8)

    after(patch, Interface, "remove_peer", arm)


@bug(Check.KEEPALIVES_CAUSE_NO_KEEPALIVE, "a keepalive counts as data that needs an answer")
def chatty(patch: pytest.MonkeyPatch) -> None:
    def count(result: bool, self: Any, peer: Any, keypair: object, received: object, total: int, now: int) -> None:
        self._tables.note_data_received(peer, now)

    after(patch, Inbound, "_authenticated", count)


@bug(Check.KEEPALIVES_ARE_SPACED, "a passive keepalive leaves after five seconds")
def hasty_keepalive(patch: pytest.MonkeyPatch) -> None:
    def at(self: Any, marks: Any, timings: Any) -> int:
        since = marks.data_received_since
        return NEVER if since in (0, self.answered_since) else int(since + 5 * SECOND)

    patch.setattr(PeerTimers, "_keepalive_at", at)


_COOKIE_KEPT = [
    (1.0, "flood", (2, 300, 1)),
    (1.0, *talk(1, 2)),
    (20.0, "toggle", (1, SECOND)),
    (200.0, *talk(1, 2)),
]


@bug(Check.COOKIES_ARE_FRESH, "a cookie never expires", steps(*_COOKIE_KEPT))
def old_cookie(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cookie, "COOKIE_LIFETIME", 10**6 * SECOND)


@bug(Check.LOAD_ENDS, "load lasts for ten seconds", steps((1, "flood", (2, 300, 1)), (3, *talk(1, 2))))
def long_load(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(exchange, "UNDER_LOAD_HOLD", 10 * SECOND)


@bug(
    Check.PEERS_DO_NOT_BLOCK_EACH_OTHER,
    "while one peer waits for a key, all wait",
    steps((1, *talk(1, 2)), (2, "crash", (3, 100 * SECOND)), (3, *talk(1, 3)), (4, *talk(1, 2))),
)
def shared_backlog(patch: pytest.MonkeyPatch) -> None:
    def send_packets(self: Any, peer: Any, packets: list[bytes], protocol: int, ecn: int, now: int) -> None:
        if self._tables.staged_bytes and not peer.staged:
            for packet in packets:
                self._tables.stage(peer, packet, now)
        else:
            original(self, peer, packets, protocol, ecn, now)

    original = Outbound._send_packets
    patch.setattr(Outbound, "_send_packets", send_packets)


@bug(
    Check.ROUTES_CHANGE_WITHOUT_A_GAP,
    "a list of allowed IPs is emptied before it is replaced",
    steps((1, "change_routes", (1,))),
)
def gap_in_routes(patch: pytest.MonkeyPatch) -> None:
    def empty(self: Interface, peer: Any, prefixes: object) -> None:
        for prefix in list(peer.allowed_ips):
            self.remove_allowed_ip(peer, prefix)

    before(patch, Interface, "replace_allowed_ips", empty)


@bug(
    Check.SECRETS_ARE_NOT_MIXED,
    "sessions outlive the private key that made them",
    steps((1, *talk(1, 2, 50, 0.5)), (10, "change_key", (1, 1))),
)
def undead_sessions(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Tables, "expire_sending_keys", lambda self, peer: None)


_BOTH_CRASH = [(1.0, *talk(1, 2)), (5.0, "crash", (1, SECOND)), (5.0, "crash", (2, SECOND)), (10.0, *talk(1, 2))]


@bug(Check.LIVES_SHARE_NOTHING, "each life has the same randomness", steps(*_BOTH_CRASH))
def same_random(patch: pytest.MonkeyPatch) -> None:
    original = Interface.__init__

    def init(self: Interface, *arguments: Any, **named: Any) -> None:
        named["random"] = random.Random(1).randbytes
        original(self, *arguments, **named)

    patch.setattr(Interface, "__init__", init)


@bug(Check.STOPPED_MEANS_SILENT, "the socket is used after it was detached", steps((1, *talk(1, 2))))
def no_detach(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PortableEngine, "detach_bind", lambda self: None)


@bug(Check.SEEDS_REPEAT, "indices come from the operating system", steps((1, *talk(1, 2))))
def true_random(patch: pytest.MonkeyPatch) -> None:
    def draw(self: Any, *rest: object) -> None:
        self._random = os.urandom

    before(patch, IndexTable, "insert", draw)


@bug(
    Check.NO_EXCEPTION_ESCAPES,
    "a datagram of three bytes is read beyond its end",
    steps((1, "garbage", (1, 29)), (2, "garbage", (2, 29))),
)
def short_read(patch: pytest.MonkeyPatch) -> None:
    def read(self: Inbound, data: memoryview, received: object) -> None:
        assert len(data) != 3 or data[3]

    before(patch, Inbound, "_handle_other", read)


@bug(Check.COUNTERS_ARE_SUMS, "received keepalives are not counted")
def uncounted(patch: pytest.MonkeyPatch) -> None:
    def uncount(result: None, self: Tables, peer: Any, size: int, now: int) -> None:
        peer.rx_bytes -= size if size == 32 else 0

    after(patch, Tables, "note_received", uncount)


@bug(Check.HANDSHAKE_TIMES_ARE_TRUE, "an attempt counts as a handshake")
def early_handshake(patch: pytest.MonkeyPatch) -> None:
    def note(self: Any, peer: Any, *rest: object) -> None:
        peer.last_handshake_wall = self._wall_clock()

    before(patch, Renewal, "initiate", note)


@bug(Check.EVENTS_ARE_HARMLESS, "an event shows a session key", steps((1, *talk(1, 2))))
def leaky_event(patch: pytest.MonkeyPatch) -> None:
    def leak(self: Any, outcome: Any, now: int) -> None:
        shown = bytes(outcome.keys.send).hex()

        class Leaky(PublicKey):
            def __repr__(self) -> str:
                return shown

        self._record(HandshakeGaveUp(Leaky(outcome.peer.public_key.raw)))

    before(patch, Renewal, "begin_session", leak)


# Liveness


@bug(Check.CONNECTS_WITH_TRAFFIC, "an initiation is postponed by eight seconds", trials("connects_with_traffic"))
def slow_start(patch: pytest.MonkeyPatch) -> None:
    original = Renewal.initiate

    def initiate(self: Renewal, peer: Any, now: int, *, is_retry: bool) -> None:
        if is_retry:
            original(self, peer, now, is_retry=True)
        else:
            peer.timers.begin_series(now)
            peer.timers.postpone(now + 8 * SECOND)

    patch.setattr(Renewal, "initiate", initiate)


@bug(
    Check.RECOVERS_AFTER_STATE_LOSS,
    "unanswered data does not cause a handshake",
    trials("recovers_after_state_loss"),
)
def patient(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PeerTimers, "_new_handshake_at", lambda self, marks, timings: NEVER)


@bug(
    Check.CONVERGES_AFTER_CROSSED_HANDSHAKES,
    "both sides of crossed handshakes renew",
    trials("converges_after_crossed_handshakes"),
)
def nobody_yields(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Renewal, "_yields", lambda self, peer, now: False)


@bug(Check.RENEWALS_LOSE_NOTHING, "a key is requested only once", trials("renewals_lose_nothing", count=20))
def asked_once(patch: pytest.MonkeyPatch) -> None:
    original = Tables.install

    def install(self: Tables, peer: Any, params: Any) -> None:
        reported = peer.key_wanted_reported
        original(self, peer, params)
        peer.key_wanted_reported = reported

    patch.setattr(Tables, "install", install)


@bug(
    Check.STARTS_AGAIN_AFTER_GIVING_UP,
    "after giving up, a key is not requested again",
    trials("starts_again_after_giving_up"),
)
def given_up(patch: pytest.MonkeyPatch) -> None:
    original = Tables.flush_staged

    def flush(self: Tables, peer: int) -> None:
        reported = self.peers[peer].key_wanted_reported
        original(self, peer)
        self.peers[peer].key_wanted_reported = reported

    patch.setattr(Tables, "flush_staged", flush)


@bug(
    Check.STAYS_REACHABLE_BEHIND_A_NAT,
    "persistent keepalives come at twice their interval",
    trials("stays_reachable_behind_a_nat", nats=True, count=20),
)
def rare_keepalive(patch: pytest.MonkeyPatch) -> None:
    original = PeerTimers._persistent_at

    def at(self: PeerTimers, marks: Any) -> int:
        due = original(self, marks)
        return due if due == NEVER else due + self.persistent_interval * SECOND

    patch.setattr(PeerTimers, "_persistent_at", at)


@bug(
    Check.CONNECTS_AFTER_THE_CLOCK_STEPPED_BACK,
    "no initiation leaves while the wall clock is behind",
    trials("connects_after_the_clock_stepped_back"),
)
def waits_for_the_clock(patch: pytest.MonkeyPatch) -> None:
    original = Exchange.create_initiation

    def create(self: Any, peer: Any, now: int) -> bytes | None:
        behind = peer.last_stamp_sent is not None and tai64n.emit(self._wall_clock()) < peer.last_stamp_sent
        return None if behind else original(self, peer, now)

    patch.setattr(Exchange, "create_initiation", create)


@bug(
    Check.NEEDS_NO_COOKIE_AFTER_A_FLOOD,
    "after load, handshakes are silently refused for ten seconds",
    trials("needs_no_cookie_after_a_flood"),
)
def sulks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(exchange, "UNDER_LOAD_HOLD", 10 * SECOND)
    patch.setattr(Exchange, "_shield", lambda self, datagram, checker, now: (True, None))


@bug(
    Check.STAGED_PACKETS_HAVE_AN_END,
    "a series of attempts that should give up restarts",
    trials("starts_again_after_giving_up"),
)
def never_gives_up(patch: pytest.MonkeyPatch) -> None:
    def go_on(self: Any, peer: Any, now: int) -> None:
        self.initiate(peer, now, is_retry=False)

    patch.setattr(Renewal, "_give_up", go_on)


@bug(
    Check.KEEPALIVES_RENEW_SESSIONS, "persistent keepalives do not renew a session", trials("keepalives_renew_sessions")
)
def idle_sessions_end(patch: pytest.MonkeyPatch) -> None:
    original = Outbound.send_keepalive

    def send(self: Outbound, peer: Any, now: int) -> None:
        keypair = peer.keypairs.current
        asked = keypair is None or keypair.rekey_asked
        if keypair is not None:
            keypair.rekey_asked = True
        original(self, peer, now)
        if keypair is not None:
            keypair.rekey_asked = asked

    patch.setattr(Outbound, "send_keepalive", send)


@bug(Check.REMOVAL_LEAVES_NOTHING, "the protocol keeps a removed peer's prefixes", steps((1, *talk(1, 2))))
def kept_prefixes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PrefixOwners, "take_all", lambda self, peer: None)

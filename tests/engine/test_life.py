"""The engine's life cycle: TUN events, its thread, calls for removed peers, and `close`."""

from __future__ import annotations

import select
import threading

from tests.support.edges import PLAIN, ListBind, ListTun
from tests.support.engines import index_count, kind, make_engine
from tests.support.packets import ipv4
from tests.support.sides import (
    A_INNER,
    A_OUTER,
    B_INNER,
    B_OUTER,
    connected,
    params,
    thread_names,
)
from wyrmhole.engine.contract import TunChanged
from wyrmhole.net.tun import TunEvent
from wyrmhole.protocol.constants import (
    SECOND,
)
from wyrmhole.protocol.data_plane import (
    KeyWanted,
)
from wyrmhole.wire.endpoint import SockAddr
from wyrmhole.wire.prefix import Prefix


def test_tun_events_are_reported_and_a_lost_tun_is_survived() -> None:
    """EBADFD stops the reading, not the process."""
    a, _ = connected()
    a.tun.events.append(TunEvent.MTU)
    a.tun.gone = True
    a.tunnel(ipv4(A_INNER, B_INNER))
    changes = [report.event for report in a.engine.poll_reports() if isinstance(report, TunChanged)]
    assert changes == [TunEvent.MTU, TunEvent.DELETED]
    a.engine.turn()
    a.engine.close()


def test_calls_for_unknown_peers_are_ignored() -> None:
    """The removal of a peer races with every other call."""
    a, _ = connected()
    engine = a.engine
    for call in (engine.remove_peer, engine.clear_source, engine.forget_keypairs, engine.expire_sending_keys,
                 engine.expect_key, engine.flush_staged, engine.send_keepalive, engine.marks, engine.release_activity,
                 engine.counters):  # fmt: skip
        call(99)
    engine.install_keypair(99, params(1, 2, initiator=True))
    engine.insert_allowed_ip(99, Prefix.parse("10.0.0.0/8"))
    engine.send_to_peer(99, b"")
    engine.note_handshake(99, 1, 1)
    engine.set_endpoint(99, A_OUTER)
    assert a.drops() == {}


def test_close_is_idempotent_and_forgets_keys() -> None:
    a, _ = connected()
    assert index_count(a.engine) == 1
    a.engine.close()
    a.engine.close()
    assert index_count(a.engine) == 0


def test_the_thread_carries_packets_and_close_joins_it() -> None:
    """With its thread, the engine announces reports through its descriptor."""
    engine = make_engine(lambda: 1000 * SECOND, threaded=True)
    tun = ListTun()
    engine.attach_tun(tun)
    engine.add_peer(1)
    engine.set_mac1_key(bytes(32))
    engine.insert_allowed_ip(1, Prefix.parse(f"{B_INNER}/32"))
    engine.set_endpoint(1, B_OUTER)
    engine.commit()
    engine.set_mtu(1420)
    tun.inject(PLAIN + ipv4(A_INNER, B_INNER))
    poll = select.poll()
    poll.register(engine.fileno(), select.POLLIN)
    seen: list[object] = []
    while KeyWanted(1) not in seen:
        assert poll.poll(10_000), "no report within 10 s"
        seen += engine.poll_reports()
    sent: list[bytes] = []
    arrived = threading.Event()

    def transmit(sockaddr: SockAddr, data: bytes, source: bytes | None, tos: int) -> None:
        sent.append(data)
        arrived.set()

    engine.attach_bind(ListBind(transmit), 1)
    engine.install_keypair(1, params(10, 20, initiator=True))
    engine.commit()
    assert arrived.wait(10)
    assert len(sent[0]) == 32 + 32
    threads = thread_names()
    engine.close()
    assert threads - thread_names() >= {"wyrmhole-0"} or kind() == "portable"
    assert "wyrmhole-engine" not in {thread.name for thread in threading.enumerate()}

"""Looks into an interface and its engine that no product code needs: state as a value, and what memory holds.

`fingerprint` is everything that input may not change without proving itself. `reachable` walks the objects of the
package, for secrets that should be gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import BuiltinMethodType, FunctionType, MethodType
from typing import Any

from wyrmhole.datapath.keypair import Keypair
from wyrmhole.datapath.peer import EnginePeer
from wyrmhole.datapath.replay import WINDOW_SIZE
from wyrmhole.datapath.tables import Tables
from wyrmhole.engine.portable import PortableEngine
from wyrmhole.protocol.interface import Interface
from wyrmhole.protocol.peer import Peer

Fingerprint = tuple[object, ...]


def tables_of(engine: PortableEngine) -> Tables:
    return engine._tables


def fingerprint(interface: Interface, engine: PortableEngine) -> Fingerprint:
    """Without drop counters, the limiter, the load clock and cookies held, which unproven input may move."""
    tables = tables_of(engine)
    peers = tuple(_peer(peer) for peer in interface.peers)
    packets = tuple(_engine_peer(peer) for peer in tables.peers.values())
    return (peers, packets, tuple(sorted(tables.indices)), len(interface.exchange.indices), len(interface._wheel))


def difference(before: object, after: object) -> str:
    """Where two fingerprints differ first."""
    if isinstance(before, tuple) and isinstance(after, tuple) and len(before) == len(after):
        for place, (old, new) in enumerate(zip(before, after, strict=True)):
            if old != new:
                return f"[{place}]{difference(old, new)}"
    return f": {str(before)[:60]} to {str(after)[:60]}"


def endpoints(interface: Interface, engine: PortableEngine) -> Fingerprint:
    tables = tables_of(engine)
    return (
        tuple(peer.endpoint for peer in interface.peers),
        tuple(peer.sockaddr for peer in tables.peers.values()),
    )


def _peer(peer: Peer) -> Fingerprint:
    timers = peer.timers
    return (
        peer.id,
        peer.endpoint,
        id(peer.sent),
        peer.keypair_indices,
        peer.last_stamp_received,
        peer.last_stamp_sent,
        peer.last_initiation_consumed,
        peer.last_handshake_sent,
        peer.last_handshake_wall,
        tuple(getattr(timers, name) for name in timers.__slots__),
    )


def _engine_peer(peer: EnginePeer) -> Fingerprint:
    keypairs = peer.keypairs
    return (
        peer.id,
        peer.sockaddr,
        peer.source,
        peer.tx_bytes,
        peer.rx_bytes,
        peer.data_sent_since,
        peer.data_received_since,
        peer.last_data_received,
        peer.last_traversal,
        peer.active_said,
        peer.key_wanted_said,
        len(peer.staged or ()),
        tuple(_keypair(keypair) for keypair in (keypairs.previous, keypairs.current, keypairs.next)),
    )


def _keypair(keypair: Keypair | None) -> Fingerprint:
    if keypair is None:
        return ()
    window = keypair.window
    return (
        keypair.local_index,
        keypair.send_counter,
        keypair.send_until,
        keypair.rekey_asked,
        window.greatest,
        # As it is once folded, which asking about a counter may do at any time.
        (window._seen << window._pending | (1 << window._pending) - 1) & ((1 << WINDOW_SIZE) - 1),
    )


def reachable(*roots: object) -> Iterator[object]:
    """Every object of the package, container or bytes that can be reached from the roots."""
    seen: set[int] = set()
    waiting: list[object] = list(roots)
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        yield value
        waiting += _parts(value)


def _parts(value: Any) -> list[object]:
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple, set, frozenset)) or type(value).__name__ == "deque":
        return list(value)
    if isinstance(value, (MethodType, BuiltinMethodType)):
        return [value.__self__]
    if isinstance(value, FunctionType):
        return [cell.cell_contents for cell in value.__closure__ or ()]
    if not type(value).__module__.startswith("wyrmhole.") or type(value).__module__.startswith("wyrmhole.simulation"):
        return []
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    parts = [getattr(value, name, None) for name in slots]
    return parts + list(getattr(value, "__dict__", {}).values())

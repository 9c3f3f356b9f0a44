"""The state of an interface and its engine as one value, and a walk over the objects that they hold in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from types import BuiltinMethodType, FunctionType, MethodType
from typing import NamedTuple

from wyrmhole.engine.inspection import EngineState
from wyrmhole.engine.portable import PortableEngine
from wyrmhole.protocol.inspection import InterfaceState
from wyrmhole.protocol.interface import Interface


class Fingerprint(NamedTuple):
    """All state that unauthenticated input must not change."""

    interface: InterfaceState
    engine: EngineState

    @property
    def endpoints(self) -> tuple[object, ...]:
        """The peers' endpoints, as known to the protocol and to the engine."""
        return (
            tuple([peer.endpoint for peer in self.interface.peers]),
            tuple([peer.sockaddr for peer in self.engine.peers]),
        )


def fingerprint(interface: Interface, engine: PortableEngine) -> Fingerprint:
    return Fingerprint(interface.inspect(), engine.inspect())


def difference(before: object, after: object) -> str:
    """Return the path to the first value that differs, and both values."""
    if isinstance(before, tuple) and isinstance(after, tuple) and len(before) == len(after):
        names = getattr(before, "_fields", range(len(before)))
        for name, old, new in zip(names, before, after, strict=True):
            if old != new:
                return f".{name}{difference(old, new)}"
    return f": {str(before)[:60]} to {str(after)[:60]}"


def reachable(*roots: object) -> Iterator[object]:
    """Yield every object that can be reached from the roots through containers and objects of the package."""
    seen: set[int] = set()
    waiting: list[object] = list(roots)
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        yield value
        waiting += _parts(value)


def _parts(value: object) -> list[object]:
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple, set, frozenset, deque)):
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

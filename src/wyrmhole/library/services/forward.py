"""Ports carried through a tunnel: `forward` from this host into it, as ssh -L, and `expose` out of it, as ssh -R."""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeAlias

from wyrmhole.library.common.arguments import check_instance
from wyrmhole.library.services.dialer import KINDS, STREAM, Dialer, HostPort, HostSide, Side, TunnelSide
from wyrmhole.library.services.service import Limits, Service, reason_of
from wyrmhole.library.services.splice import close, splice
from wyrmhole.library.services.udp_flows import UdpFlows

log = logging.getLogger(__name__)

Connect: TypeAlias = Callable[[], Awaitable[socket.socket]]


async def forward(
    dialer: Dialer, listen: str, target: str, *, proto: str | None = None, limits: Limits | None = None
) -> Service:
    """Listen on this host and connect inside the tunnel: `forward(tunnel, "127.0.0.1:5432", "db.internal:5432")`.

    `proto` is "tcp" or "udp", which may also follow the port, as in `127.0.0.1:5353/udp`. Without a host, loopback.
    The target's name is resolved inside the tunnel, anew for each connection.
    Raises ValueError for what is no HOST:PORT, OSError when it cannot listen.
    """
    return await carry(HostSide(), listen, TunnelSide(dialer), target, proto, limits, "forward")


async def expose(
    dialer: Dialer, listen: str, target: str, *, proto: str | None = None, limits: Limits | None = None
) -> Service:
    """Listen inside the tunnel and connect on this host: `expose(tunnel, ":80", "127.0.0.1:8000")`.

    Without a host it listens on every address of the tunnel. The target is looked up as this host looks names up.
    Raises as `forward`.
    """
    return await carry(TunnelSide(dialer), listen, HostSide(), target, proto, limits, "expose")


async def carry(
    front: Side, listen: str, back: Side, target: str, proto: str | None, limits: Limits | None, verb: str
) -> Service:
    """Listen on one side, connect on the other."""
    check_instance("limits", limits, Limits, "a wyrmhole.library.services.service.Limits")
    here, there = HostPort.parse(listen), HostPort.parse(target)
    proto = one_proto(proto, here, there)
    if not there.host or not there.port:
        raise ValueError(f"{target!r} is no target: it needs a host and a port, as in db.internal:5432")
    limits = limits or Limits()
    service = Service(f"{verb} {proto} {here} to {there}", limits)
    for sock in await front.listen(here.host, here.port, KINDS[proto]):
        connect = partial(back.connect, there.host, there.port, KINDS[proto], limits.connect)
        if KINDS[proto] == STREAM:
            service.listen(sock, partial(carry_stream, connect=connect, service=service))
        else:
            service.relay(sock, UdpFlows(service.name, sock, connect, limits))
    return service


def one_proto(proto: str | None, *spots: HostPort) -> str:
    """The protocol that all who name one agree on. Raises ValueError."""
    check_instance("proto", proto, str, "'tcp', 'udp' or None")
    named = {each for each in (proto, *(spot.proto for spot in spots)) if each is not None}
    if len(named) > 1 or not named <= set(KINDS):
        raise ValueError(f"the protocol is tcp or udp, the same on both sides, not {' and '.join(sorted(named))}")
    return named.pop() if named else "tcp"


async def carry_stream(client: socket.socket, *, connect: Connect, service: Service) -> None:
    """One connection. When the target cannot be had the client sees a reset: nothing else tells it apart from an
    answer without content."""
    try:
        upstream = await connect()
    except OSError as error:
        log.warning("%s: %s", service.name, reason_of(error))
        close(client, reset=True)
        return
    await splice(client, upstream)

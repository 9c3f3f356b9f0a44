"""Port forwarding: `forward` from this host into a tunnel, like ssh -L, and `expose` out of it, like ssh -R."""

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

    `proto` is "tcp" or "udp", which may also follow the port, as in `127.0.0.1:5353/udp`. Without a host, listen on
    loopback. The target's name is resolved inside the tunnel, again for each connection.
    Raises ValueError if an argument is not HOST:PORT, or OSError if it cannot listen.
    """
    return await carry(HostSide(), listen, TunnelSide(dialer), target, proto, limits, "forward")


async def expose(
    dialer: Dialer, listen: str, target: str, *, proto: str | None = None, limits: Limits | None = None
) -> Service:
    """Listen inside the tunnel and connect on this host: `expose(tunnel, ":80", "127.0.0.1:8000")`.

    Without a host, listen on all addresses of the tunnel. The target's name is resolved by this host.
    Raises like `forward`.
    """
    return await carry(TunnelSide(dialer), listen, HostSide(), target, proto, limits, "expose")


async def carry(
    front: Side, listen: str, back: Side, target: str, proto: str | None, limits: Limits | None, verb: str
) -> Service:
    """Listen on one side and connect on the other."""
    check_instance("limits", limits, Limits, "a wyrmhole.library.services.service.Limits")
    front_end, back_end = HostPort.parse(listen), HostPort.parse(target)
    proto = agreed_proto(proto, front_end, back_end)
    if not back_end.host or not back_end.port:
        raise ValueError(f"{target!r} is not a target: expected a host and a port, such as db.internal:5432")
    limits = limits or Limits()
    service = Service(f"{verb} {proto} {front_end} to {back_end}", limits)
    for sock in await front.listen(front_end.host, front_end.port, KINDS[proto]):
        connect = partial(back.connect, back_end.host, back_end.port, KINDS[proto], limits.connect)
        if KINDS[proto] == STREAM:
            service.listen(sock, partial(carry_stream, connect=connect, service=service))
        else:
            service.relay(sock, UdpFlows(service.name, sock, connect, limits))
    return service


def agreed_proto(proto: str | None, *ends: HostPort) -> str:
    """Return the protocol, tcp by default. Raises ValueError if the argument and the ends disagree."""
    check_instance("proto", proto, str, "'tcp', 'udp' or None")
    named = {name for name in (proto, *(end.proto for end in ends)) if name is not None}
    if len(named) > 1 or not named <= set(KINDS):
        raise ValueError(f"the protocol must be tcp or udp, the same on both sides, not {' and '.join(sorted(named))}")
    return named.pop() if named else "tcp"


async def carry_stream(client: socket.socket, *, connect: Connect, service: Service) -> None:
    """Serve one connection. If the target cannot be reached, reset the client's connection, because a plain close would
    look like an empty answer."""
    try:
        upstream = await connect()
    except OSError as error:
        log.warning("%s: %s", service.name, reason_of(error))
        close(client, reset=True)
        return
    await splice(client, upstream)

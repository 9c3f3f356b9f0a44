"""A socket that fails according to a script, for errors that a healthy machine does not produce."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from wyrmhole.net import sticky, udp_offload
from wyrmhole.net.bind import datagrams_of
from wyrmhole.net.tun import TunEvent

ANY_SOCKADDR = ("192.0.2.1", 9)


@dataclass
class Attempt:
    """The arguments of one `sendmsg`."""

    data: bytes
    segment_size: int
    source: bytes | None
    sockaddr: Any

    @property
    def datagrams(self) -> list[bytes]:
        return datagrams_of(self.data, self.segment_size)


@dataclass
class Script:
    """`judge` returns the errno of a send, 0 for success. `receiving` holds those of the next receives (0: no error).

    `on_reopen` is called when a socket replaces another, before it is bound.
    """

    judge: Callable[[Attempt], int] = lambda attempt: 0
    receiving: list[int] = field(default_factory=list)
    missing: frozenset[int] = frozenset()
    attempts: list[Attempt] = field(default_factory=list)
    sent: list[Attempt] = field(default_factory=list)
    on_reopen: Callable[[], None] = lambda: None

    def factory(self, *arguments: int) -> socket.socket:
        if arguments[0] in self.missing:
            raise OSError(97, os.strerror(97))
        if len(arguments) == 4:
            self.on_reopen()
        return ScriptedSocket(self, *arguments)

    @property
    def datagrams(self) -> list[bytes]:
        return [datagram for attempt in self.sent for datagram in attempt.datagrams]


class ScriptedSocket(socket.socket):
    def __init__(self, script: Script, *arguments: int) -> None:
        super().__init__(*arguments)
        self._script = script

    def sendmsg(self, buffers: Any, ancdata: Any = (), flags: int = 0, address: Any = None) -> int:
        segment_size, source = 0, None
        for level, kind, value in ancdata:
            if (level, kind) == (socket.IPPROTO_UDP, udp_offload.UDP_SEGMENT):
                (segment_size,) = struct.unpack("=H", value)
            elif kind in (sticky.IP_PKTINFO, socket.IPV6_PKTINFO):
                source = value
        attempt = Attempt(b"".join(buffers), segment_size, source, address)
        self._script.attempts.append(attempt)
        number = self._script.judge(attempt)
        if number:
            raise OSError(number, os.strerror(number))
        self._script.sent.append(attempt)
        return len(attempt.data)

    def recvmsg_into(self, buffers: Any, ancbufsize: int = 0, flags: int = 0) -> Any:
        number = self._script.receiving.pop(0) if self._script.receiving else 0
        if number:
            raise OSError(number, os.strerror(number))
        return super().recvmsg_into(buffers, ancbufsize, flags)


class StubLink:
    """The methods of a link that a TUN calls. Events are given, and limits are recorded."""

    def __init__(self, *events: TunEvent) -> None:
        self.events = list(events)
        self.mtu = 1420
        self.limits: list[int] = []

    def poll_events(self) -> list[TunEvent]:
        return self.events

    def limit_segments(self, count: int) -> None:
        self.limits.append(count)

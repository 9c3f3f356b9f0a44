"""What becomes of a TUN's interface: up, down, another MTU, another name, another network namespace, gone.

The TUN descriptor is the one thing that stays true. It tells the interface's present name (TUNGETIFF) and namespace
(TUNGETDEVNETNS), and EBADFD when there is no interface any more. The rest is asked by rtnetlink, by that name:

- In the namespace of this process: RTM_GETLINK, and the link multicasts as the sign to ask again.
- In another one: the same, through the id that netlink can give to a namespace (RTM_NEWNSID), with the listener told
  to hear all namespaces that have one. No socket or descriptor of the other namespace is kept, for that would keep it
  alive after its owner deleted it, and the interface and this process with it.
- Where that is not permitted: a timer, once a second, only while it is so. Each time a frame is written that the
  kernel refuses with EIO while the interface is down, and otherwise accepts and discards. The MTU stays as last known.

Multicasts are only a sign: the state is asked of the kernel then, so lost or merged notices do no harm.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import threading
from typing import NamedTuple

from wyrmhole.net import netlink, quiet_link, timerfd, tun_ioctl
from wyrmhole.net.tun import TunEvent

_IFF_UP = 0x1
_IFF_RUNNING = 0x40
_SIOCGSKNS = 0x894C
_PROBE_SECONDS = 1.0
_AT_ONCE_SECONDS = 1e-6
_PROBE_FRAME = bytes(10) + b"\x40"
"""No offload, and one byte that begins an IPv4 packet: enough for the driver, too short for the network stack."""


class _State(NamedTuple):
    up: bool
    mtu: int


class TunLink:
    """The state of the interface behind a TUN descriptor. `mtu` and `name` may be asked from any thread."""

    def __init__(
        self, tun: int, *, has_header: bool = True, sockets: tuple[socket.socket, socket.socket] | None = None
    ) -> None:
        """`sockets`: two rtnetlink sockets of the interface's own namespace, for a process that may not look into it
        from here; they are closed with this."""
        self._tun = tun
        self._probe = _PROBE_FRAME if has_header else _PROBE_FRAME[10:]
        self._lock = threading.Lock()
        self._epoll = select.epoll()
        self._timer = -1
        self._told: _State | None = None
        self._gone = False
        self._is_closed = False
        self._suspected = True
        self._mtu = 0
        self._index = 0
        self._link: netlink.Link | None = None
        self._is_elsewhere = False
        self._silenced: netlink.Link | None = None
        self._name = ""
        self._client, self._listener = _open_netlink() if sockets is None else _adopt_netlink(*sockets)
        self._home = _socket_namespace(self._client)
        if self._listener is not None:
            self._epoll.register(self._listener.fileno(), select.EPOLLIN)
        self._look()
        self._silence()

    def close(self) -> None:
        with self._lock:
            self._gone = self._is_closed = True
            self._set_probing(False)
            for closable in (self._epoll, self._listener, self._client):
                if closable is not None:
                    closable.close()
            self._listener = self._client = None

    def fileno(self) -> int:
        """Readable when `poll_events` should be called."""
        return self._epoll.fileno()

    @property
    def name(self) -> str:
        with self._lock:
            if not self._gone:
                with contextlib.suppress(OSError):
                    self._name = tun_ioctl.get_interface(self._tun)[0]
            return self._name

    @property
    def mtu(self) -> int:
        """As the kernel has it; the last one known when that cannot be told."""
        with self._lock:
            if not self._gone:
                self._look()
            return self._mtu

    def poll_events(self) -> list[TunEvent]:
        with self._lock:
            if self._is_closed:
                # An engine that it was lent to may still ask, once: for the engine this is the end.
                self._is_closed = False
                return [TunEvent.DELETED]
            if self._gone or not self._should_look():
                return []
            state = self._look()
            if state is None:
                self._gone = True
                self._stop_listening()
                return [TunEvent.DELETED]
            told, self._told = self._told, state
            self._silence()
        events = []
        if told is None or told.up != state.up:
            events.append(TunEvent.UP if state.up else TunEvent.DOWN)
        if told is not None and told.mtu != state.mtu:
            events.append(TunEvent.MTU)
        return events

    def limit_segments(self, count: int) -> None:
        """Ask the kernel for super-packets of no more segments, if the interface is in this process's namespace: what
        it has elsewhere by that name is not ours. A wish: nothing happens where that is not allowed."""
        with self._lock:
            if self._client is None or self._gone or not self._index:
                return
            try:
                if self._find_namespace(self._client) is None:
                    self._client.limit_segments(self._index, count)
            except OSError:
                return

    def set_mtu(self, mtu: int) -> None:
        """Set the MTU if the interface is in this process's namespace; another of that name elsewhere is not ours.

        Raises OSError.
        """
        with self._lock:
            if self._client is not None and not self._gone and self._find_namespace(self._client) is None:
                tun_ioctl.set_mtu(tun_ioctl.get_interface(self._tun)[0], mtu)

    def suspect_end(self) -> None:
        """Reading said that the interface is gone: have `poll_events` called, and look.

        The end of another namespace takes the interface with it, and that is not multicast.
        """
        with self._lock:
            if not self._gone and not self._suspected:
                self._suspected = True
                self._set_probing(True, _AT_ONCE_SECONDS)

    def _should_look(self) -> bool:
        changed, self._suspected = self._suspected, False
        if self._timer >= 0 and timerfd.take_expiry(self._timer):
            changed = True
        if self._listener is not None:
            messages, lost = netlink.drain(self._listener)
            changed = changed or lost or any(netlink.parse_link_index(message) == self._index for message in messages)
        return changed

    def _stop_listening(self) -> None:
        """The end: nothing more to tell, and so nothing to wake the poller for."""
        self._set_probing(False)
        if self._listener is not None:
            self._epoll.unregister(self._listener.fileno())

    # Looking

    def _look(self) -> _State | None:
        """The state, None when the interface is gone. Chooses between asking and probing."""
        try:
            self._name = tun_ioctl.get_interface(self._tun)[0]
        except OSError:
            return None
        try:
            link = self._ask_link()
        except OSError:
            self._set_probing(True)
            return _State(self._probe_up(), self._mtu)
        self._set_probing(False)
        self._index, self._mtu, self._link = link.interface, link.mtu, link
        return _State(link.flags & (_IFF_UP | _IFF_RUNNING) == _IFF_UP | _IFF_RUNNING, link.mtu)

    def _ask_link(self) -> netlink.Link:
        """Raises OSError where netlink does not show the interface or will not tell of its changes."""
        self._link = None
        if self._client is None:
            raise OSError(errno.EOPNOTSUPP, "netlink is not allowed")
        namespace_id = self._find_namespace(self._client)
        self._is_elsewhere = namespace_id is not None
        return self._client.link(self._name, namespace_id)

    def _silence(self) -> None:
        """Again after each change: IPv6 begins anew on an interface that came back or whose MTU was below 1280. Not in
        another namespace: a link can only be changed by a socket of its own."""
        if self._client is None or self._link is None or self._is_elsewhere:
            self._silenced = None
        elif self._silenced != self._link:
            self._silenced = self._link
            quiet_link.silence(self._client, self._link)

    def _find_namespace(self, client: netlink.Client) -> int | None:
        """The id of the interface's namespace, None for the one of this process."""
        try:
            namespace = fcntl.ioctl(self._tun, tun_ioctl.TUNGETDEVNETNS)
        except OSError:
            # An older kernel, or no right to know: a lookup by name here will tell.
            return None
        try:
            is_home = os.fstat(namespace).st_ino == self._home
            return None if is_home else self._adopt(client, namespace)
        finally:
            os.close(namespace)

    def _adopt(self, client: netlink.Client, namespace: int) -> int:
        if self._listener is not None:
            netlink.listen_everywhere(self._listener)
        return client.namespace_id(namespace)

    # Probing

    def _probe_up(self) -> bool:
        try:
            os.write(self._tun, self._probe)
        except OSError as error:
            return error.errno != errno.EIO
        return True

    def _set_probing(self, wanted: bool, first_seconds: float = _PROBE_SECONDS) -> None:
        if wanted and self._timer < 0:
            try:
                self._timer = timerfd.open_timer()
            except OSError:
                return
            timerfd.arm(self._timer, first_seconds, _PROBE_SECONDS)
            self._epoll.register(self._timer, select.EPOLLIN)
        elif not wanted and self._timer >= 0:
            os.close(self._timer)
            self._timer = -1


def _open_netlink() -> tuple[netlink.Client | None, socket.socket | None]:
    try:
        client = netlink.Client()
    except OSError:
        return None, None
    try:
        return client, netlink.open_listener(netlink.GROUP_LINK)
    except OSError:
        client.close()
        return None, None


def _adopt_netlink(client: socket.socket, listener: socket.socket) -> tuple[netlink.Client, socket.socket]:
    for sock in (client, listener):
        sock.setblocking(False)
    listener.bind((0, netlink.GROUP_LINK))
    return netlink.Client(client), listener


def _socket_namespace(client: netlink.Client | None) -> int:
    """The inode number of the network namespace that a socket was made in, 0 when the kernel does not tell."""
    if client is None:
        return 0
    try:
        namespace = fcntl.ioctl(client.fileno(), _SIOCGSKNS)
    except OSError:
        return 0
    try:
        return os.fstat(namespace).st_ino
    finally:
        os.close(namespace)

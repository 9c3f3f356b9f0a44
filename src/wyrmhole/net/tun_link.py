"""Follow the state of a TUN's interface: up or down, MTU, name, network namespace, deletion.

Only the TUN descriptor always refers to the right interface. It yields the present name (TUNGETIFF) and namespace
(TUNGETDEVNETNS), and EBADFD after the interface was deleted. The remaining state is queried by name over rtnetlink:

- If the interface is in the namespace of this process: RTM_GETLINK, repeated after each link multicast.
- If it is in another namespace: the same, through an id that netlink assigns to that namespace (RTM_NEWNSID), with a
  listener for all namespaces that have an id. No socket or descriptor of the other namespace is kept, because it would
  keep the namespace, the interface and this process alive after its owner has deleted it.
- If neither is permitted: a timer probes once per second. Each time a frame is written, which the kernel refuses with
  EIO while the interface is down, and otherwise accepts and discards. The MTU keeps its last known value.

A multicast only triggers a query of the kernel, so lost or merged notifications do no harm.
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
"""A frame without offload whose packet is the first byte of an IPv4 header. The driver accepts it, but it is too short
for the network stack."""


class _State(NamedTuple):
    up: bool
    mtu: int


class TunLink:
    """The state of a TUN descriptor's interface. `mtu` and `name` may be read in any thread."""

    def __init__(
        self, tun: int, *, has_header: bool = True, sockets: tuple[socket.socket, socket.socket] | None = None
    ) -> None:
        """Follow the interface of `tun`.

        `sockets` are two rtnetlink sockets of the interface's namespace, for a process that may not query it from its
        own namespace. They are closed with this object.
        """
        self._tun = tun
        self._probe = _PROBE_FRAME if has_header else _PROBE_FRAME[10:]
        self._lock = threading.Lock()
        self._epoll = select.epoll()
        self._timer = -1
        self._reported: _State | None = None
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
        self._update()
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
        """The MTU according to the kernel, or the last known value if the kernel cannot be queried."""
        with self._lock:
            if not self._gone:
                self._update()
            return self._mtu

    def poll_events(self) -> list[TunEvent]:
        with self._lock:
            if self._is_closed:
                # An engine to which the TUN was lent may still poll once, and must see the end.
                self._is_closed = False
                return [TunEvent.DELETED]
            if self._gone or not self._should_update():
                return []
            state = self._update()
            if state is None:
                self._gone = True
                self._stop_listening()
                return [TunEvent.DELETED]
            reported, self._reported = self._reported, state
            self._silence()
        events = []
        if reported is None or reported.up != state.up:
            events.append(TunEvent.UP if state.up else TunEvent.DOWN)
        if reported is not None and reported.mtu != state.mtu:
            events.append(TunEvent.MTU)
        return events

    def limit_segments(self, count: int) -> None:
        """Ask the kernel to limit the segments of super-packets. Best effort: nothing happens if not permitted.

        This is done only in this process's namespace; an interface of the same name elsewhere may not be ours.
        """
        with self._lock:
            if self._client is None or self._gone or not self._index:
                return
            try:
                if self._find_namespace(self._client) is None:
                    self._client.limit_segments(self._index, count)
            except OSError:
                return

    def set_mtu(self, mtu: int) -> None:
        """Set the MTU if the interface is in this process's namespace. Raises OSError."""
        with self._lock:
            if self._client is not None and not self._gone and self._find_namespace(self._client) is None:
                tun_ioctl.set_mtu(tun_ioctl.get_interface(self._tun)[0], mtu)

    def suspect_end(self) -> None:
        """Make `poll_events` check whether the interface is gone, after a read failed.

        The end of another namespace deletes the interface, and causes no multicast.
        """
        with self._lock:
            if not self._gone and not self._suspected:
                self._suspected = True
                self._set_probing(True, _AT_ONCE_SECONDS)

    def _should_update(self) -> bool:
        changed, self._suspected = self._suspected, False
        if self._timer >= 0 and timerfd.take_expiry(self._timer):
            changed = True
        if self._listener is not None:
            messages, lost = netlink.drain(self._listener)
            changed = changed or lost or any(netlink.parse_link_index(message) == self._index for message in messages)
        return changed

    def _stop_listening(self) -> None:
        """Stop waking the poller, because there will be no more events."""
        self._set_probing(False)
        if self._listener is not None:
            self._epoll.unregister(self._listener.fileno())

    # Queries

    def _update(self) -> _State | None:
        """Return the state, or None if the interface is gone. Probe it if netlink is not permitted."""
        try:
            self._name = tun_ioctl.get_interface(self._tun)[0]
        except OSError:
            return None
        try:
            link = self._query_link()
        except OSError:
            self._set_probing(True)
            return _State(self._probe_up(), self._mtu)
        self._set_probing(False)
        self._index, self._mtu, self._link = link.interface, link.mtu, link
        return _State(link.flags & (_IFF_UP | _IFF_RUNNING) == _IFF_UP | _IFF_RUNNING, link.mtu)

    def _query_link(self) -> netlink.Link:
        """Query the interface. Raises OSError if netlink does not show it or does not report its changes."""
        self._link = None
        if self._client is None:
            raise OSError(errno.EOPNOTSUPP, "netlink is not permitted")
        namespace_id = self._find_namespace(self._client)
        self._is_elsewhere = namespace_id is not None
        return self._client.link(self._name, namespace_id)

    def _silence(self) -> None:
        """Silence the interface after each change, unless it is in another namespace.

        The kernel initialises IPv6 again when an interface comes up or its MTU rises to 1280. Only a socket of its own
        namespace can change a link.
        """
        if self._client is None or self._link is None or self._is_elsewhere:
            self._silenced = None
        elif self._silenced != self._link:
            self._silenced = self._link
            quiet_link.silence(self._client, self._link)

    def _find_namespace(self, client: netlink.Client) -> int | None:
        """Return the id of the interface's namespace, or None for the namespace of this process."""
        try:
            namespace = fcntl.ioctl(self._tun, tun_ioctl.TUNGETDEVNETNS)
        except OSError:
            # An older kernel, or not permitted. The query by name will show whether the interface is here.
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
    """Return the inode number of the client's network namespace, or 0 if the kernel does not report it."""
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

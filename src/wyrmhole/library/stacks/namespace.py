"""NamespaceStack: the kernel's TCP/IP in a network namespace that belongs to this program. It needs no privileges.

A helper process makes a user namespace with a network namespace, opens /dev/net/tun there and passes the descriptor to
this process. A process outside a user namespace has all capabilities over it if its effective user created it.
Therefore this process can do the rest from outside: it makes the interface (TUNSETIFF), configures it with an rtnetlink
socket that the helper made inside, and ends sockets with a sock_diag socket. The helper only makes sockets and passes
them as descriptors. They are ordinary kernel sockets, so every library can use them at full speed.

The namespace exists as long as the TUN or a socket in it. If the helper dies, a new one enters the namespaces through
two descriptors that are kept here, unnoticed by the program. No user or group ids are mapped, because none are needed.

Whether the host permits namespaces is not tested beforehand. Every step is executed, the last one verifies that a
packet leaves the namespace, and a refusal names the failed step.

`close` ends every socket made here, no matter which process holds it. Otherwise a socket whose TUN is gone would hang
for 15 minutes. If the kernel cannot end sockets (no CONFIG_INET_DIAG_DESTROY), the known ones are shut down. Accepted
and detached sockets then end within two minutes by keepalives with TCP_USER_TIMEOUT.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import ipaddress
import logging
import os
import select
import socket
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from wyrmhole.errors import NamespaceError, TunnelError
from wyrmhole.library.common.descriptors import nofile
from wyrmhole.library.common.fork_guard import ForkGuard
from wyrmhole.library.stacks.helper_channel import MAX_BATCH, Helper
from wyrmhole.library.stacks.stack import HelperGone, HelperSlow, Socket, SocketVerbs, StackAbilities
from wyrmhole.namespaces import refusals
from wyrmhole.namespaces.steps import Stage
from wyrmhole.net import link_setup, netlink
from wyrmhole.net.link_setup import Interface, Network
from wyrmhole.net.linux_tun import LinuxTun
from wyrmhole.net.sock_diag import NETLINK_SOCK_DIAG, SockDiag

INTERFACE_NAME = "wg0"
PATIENCE = 1.0
"""Seconds that a helper may take to make a socket, which normally takes about 15 us. A slower one is replaced."""
MAX_BATCH_AHEAD = 32
"""Limit of TCP sockets in one request. The first request is for one socket, and each further one for twice as many,
because a round trip to the helper costs two process switches, or 0.5 ms on a busy machine. A batch has at most a 32nd
of the descriptors that the process may have."""
ORPHAN_TIMEOUT_MS = 30_000
ORPHAN_KEEPALIVE = {socket.TCP_KEEPIDLE: 60, socket.TCP_KEEPINTVL: 10}
"""TCP_USER_TIMEOUT and keepalive of sockets that cannot be ended from here. Without keepalives, nothing would time out
on an idle connection."""
QUEUE_PACKETS = 2000
_PROBE_PATIENCE_MS = 2000
_PROBE_PAYLOAD = b"wyrmhole tests whether this arrives"
_PROBE_FRAMES = 16
_PROBE_V4 = (ipaddress.IPv4Address("192.0.2.1"), ipaddress.IPv4Address("192.0.2.2"))
_PROBE_V6 = (ipaddress.IPv6Address("2001:db8::1"), ipaddress.IPv6Address("2001:db8::2"))
"""Documentation addresses (RFC 5737, RFC 3849). There are two, because one may be the tunnel's own."""
_DISCARD = 9

_SIOCGSKNS = 0x894C
_NS_GET_USERNS = 0xB701
_BBR = "bbr"

log = logging.getLogger("wyrmhole")


class _Step:
    """A step of opening. An OSError in it is raised as the NamespaceError of that step."""

    def __init__(self, step: Stage) -> None:
        self.step = step

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError) and not isinstance(error, TunnelError):
            raise refusals.refusal(self.step, error.errno or errno.EIO) from error


class _Spares:
    """TCP sockets of one family that were made in advance."""

    def __init__(self) -> None:
        self.waiting: deque[Socket] = deque()
        self.batch = 1

    def close(self) -> None:
        while self.waiting:
            self.waiting.pop().close()


class NamespaceStack(SocketVerbs):
    """See `stack.Stack`. Made by `open`. `configure` must be called before the port is used."""

    name = "netns"

    def __init__(self, helper: Helper, tun_fd: int) -> None:
        """Use `open` instead."""
        self._forks = ForkGuard()
        self._lock = threading.RLock()
        self._helper: Helper | None = helper
        self._namespaces: tuple[int, ...] = ()
        self._closed = False
        self._proven = False
        self._addresses: list[Interface] = []
        self._routes: list[Network] = []
        self._known: weakref.WeakSet[Socket] | None = None
        """The sockets that were handed out, if the kernel cannot end them; otherwise None."""
        self._congestion = ""
        self._index = 0
        self._spares: dict[int, _Spares] = {socket.AF_INET: _Spares(), socket.AF_INET6: _Spares()}
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, tun_fd)
            with _Step(Stage.SOCKET):
                setup, client, listener = self._make(3, socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
                (diag,) = self._make(1, socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG)
            for sock in (setup, client, listener, diag):
                undo.callback(sock.close)
            self._keep_namespaces(setup, undo)
            with _Step(Stage.ATTACH):
                self._tun = LinuxTun.attach_elsewhere(tun_fd, INTERFACE_NAME, (client, listener))
            undo.pop_all()
        self._setup, self._diag = netlink.Client(setup), SockDiag(diag)
        setup.setblocking(False)

    @classmethod
    def open(cls) -> NamespaceStack:
        """Make a stack, which takes about 20 ms. Raises NamespaceError with the step, the cause and the remedy."""
        helper, passed = Helper.start()
        try:
            stack = cls(helper, passed[0])
        except BaseException:
            helper.end()
            raise
        try:
            stack._find_traits()
            with _Step(Stage.LINK):
                stack._index = stack._setup.link(INTERFACE_NAME, None).interface
                link_setup.set_up(stack._setup, link_setup.LOOPBACK)
                with contextlib.suppress(OSError):
                    link_setup.refuse_link_local(stack._setup, stack._index)
        except BaseException:
            stack.close()
            raise
        return stack

    def __repr__(self) -> str:
        return f"<NamespaceStack {'closed' if self._closed else 'open'}>"

    @property
    def port(self) -> LinuxTun:
        return self._tun

    @property
    def traits(self) -> StackAbilities:
        return StackAbilities(unconnected_sockets=True, backlog=True, raw=True, congestion=self._congestion)

    @property
    def namespaces(self) -> tuple[int, int]:
        """Descriptors of the user and the network namespace, for setns(2) in this order. The stack closes them.

        Raises TunnelError if the kernel does not provide them.
        """
        with self._lock:
            self._check()
            if not self._namespaces:
                raise TunnelError(errno.EOPNOTSUPP, "this kernel does not report the namespaces of a socket")
            user, network = self._namespaces
            return user, network

    @property
    def helper_pid(self) -> int | None:
        return None if self._helper is None else self._helper.pid

    # Configuration

    def configure(self, addresses: Sequence[Interface], routes: Sequence[Network], mtu: int) -> None:
        """See `Stack.configure`. The first call also verifies that a packet leaves. Raises NamespaceError."""
        with self._lock:
            self._check()
            with _Step(Stage.LINK):
                link_setup.set_up(self._setup, self._index, mtu=mtu, queue=QUEUE_PACKETS)
            with _Step(Stage.ADDRESS):
                self._set_addresses(addresses)
            with _Step(Stage.ROUTE):
                self._set_routes(routes)
            if not self._proven and self._addresses:
                with _Step(Stage.PACKET):
                    self._prove()
                self._proven = True

    def _set_addresses(self, wanted: Sequence[Interface]) -> None:
        for address in [old for old in self._addresses if old not in wanted]:
            with contextlib.suppress(OSError):  # the kernel may have removed it with a change of the MTU
                link_setup.remove_address(self._setup, self._index, address)
            self._addresses.remove(address)
        # Add all of them again: below the minimum MTU of IPv6, the kernel removes IPv6 addresses for good.
        for address in wanted:
            link_setup.add_address(self._setup, self._index, address)
        self._addresses = list(wanted)

    def _set_routes(self, wanted: Sequence[Network]) -> None:
        for route in [old for old in self._routes if old not in wanted]:
            with contextlib.suppress(netlink.Refused):  # the kernel may have removed it with an address
                link_setup.remove_route(self._setup, self._index, route)
            self._routes.remove(route)
        # Add all of them again: the kernel removes a family's routes with its last address.
        for route in wanted:
            link_setup.add_route(self._setup, self._index, route)
        self._routes = list(wanted)

    def _prove(self) -> None:
        """Send a packet inside and receive it at the port. Then test with that socket whether sockets can be ended."""
        own = {address.ip for address in self._addresses}
        family, candidates = (
            (socket.AF_INET, _PROBE_V4) if any(ip.version == 4 for ip in own) else (socket.AF_INET6, _PROBE_V6)
        )
        target = next(str(each) for each in candidates if each not in own)
        with self._make(1, family, socket.SOCK_DGRAM, 0)[0] as sock:
            sock.connect((target, _DISCARD))
            sock.send(_PROBE_PAYLOAD)
            self._expect_probe()
            self._try_ending(sock)

    def _expect_probe(self) -> None:
        poll = select.poll()
        poll.register(self._tun.fileno(), select.POLLIN)
        frame = bytearray(65_545)
        for _ in range(_PROBE_FRAMES):
            if not poll.poll(_PROBE_PATIENCE_MS):
                break
            length = self._tun.read_into(frame)
            if frame[:length].endswith(_PROBE_PAYLOAD):
                return
        raise OSError(errno.ETIMEDOUT, "no packet left the namespace")

    def _try_ending(self, sock: Socket) -> None:
        try:
            self._diag.destroy(sock)
        except OSError as error:
            log.info("sockets cannot be ended from outside (%s): they will be shut down instead", error)
            self._known = weakref.WeakSet()

    def _find_traits(self) -> None:
        """Use BBR if it is loaded, because it does not treat every lost packet as congestion."""
        with _Step(Stage.SOCKET):
            (sock,) = self._make(1, socket.AF_INET, socket.SOCK_STREAM, 0)
        with sock:
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, _BBR.encode())
            except OSError:
                return
            self._congestion = _BBR

    def _keep_namespaces(self, inside: Socket, undo: contextlib.ExitStack) -> None:
        """Get the namespace descriptors from a socket, which works without /proc."""
        try:
            network = fcntl.ioctl(inside, _SIOCGSKNS)
            undo.callback(os.close, network)
            user = fcntl.ioctl(network, _NS_GET_USERNS)
            undo.callback(os.close, user)
        except OSError as error:
            log.info("no namespace descriptors (%s): the helper cannot be replaced if it dies", error)
            return
        self._namespaces = (user, network)

    # Sockets

    def socket(self, family: int, kind: int, protocol: int = 0, *, patience: float | None = None) -> Socket:
        """See `Stack.socket`. A dead or stopped helper is replaced in about 20 ms. Raises TunnelError, OSError."""
        kind &= ~(socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        if kind == socket.SOCK_STREAM and not protocol and family in self._spares:
            return self._stream(family, self._spares[family], patience)
        return self.sockets(1, family, kind, protocol, patience=patience)[0]

    def _stream(self, family: int, spares: _Spares, patience: float | None) -> Socket:
        self._check()
        try:
            return spares.waiting.pop()
        except IndexError:
            pass
        try:
            sock, *others = self.sockets(spares.batch, family, socket.SOCK_STREAM, patience=patience)
        except OSError as error:
            if error.errno != errno.EMFILE or spares.batch == 1:
                raise
            spares.batch = 1
            return self.sockets(1, family, socket.SOCK_STREAM, patience=patience)[0]
        spares.batch = min(spares.batch * 2, MAX_BATCH_AHEAD, max(1, nofile() // 32))
        spares.waiting.extend(others)
        return sock

    @property
    def spare_sockets(self) -> int:
        """The number of sockets made in advance, at most 62."""
        return sum(len(spares.waiting) for spares in self._spares.values())

    def sockets(
        self, count: int, family: int, kind: int, protocol: int = 0, *, patience: float | None = None
    ) -> list[Socket]:
        """Make 1 to 253 sockets at once, in a tenth of the time of single requests."""
        if not 1 <= count <= MAX_BATCH:
            raise ValueError(f"count is {count}; expected 1 to {MAX_BATCH} sockets")
        kind &= ~(socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        if not self._lock.acquire(timeout=PATIENCE * 4 if patience is None else patience):
            raise HelperSlow("other threads are waiting for the helper")
        try:
            self._check()
            made = self._make(count, family, kind, protocol, patience)
        finally:
            self._lock.release()
        for sock in made:
            self._prepare(sock)
        return made

    def _make(self, count: int, family: int, kind: int, protocol: int, patience: float | None = None) -> list[Socket]:
        helper = self._helper
        try:
            if helper is None:
                raise HelperGone(errno.EPIPE, "the helper ended")
            descriptors = helper.sockets(count, family, kind, protocol, PATIENCE if patience is None else patience)
        except (HelperGone, HelperSlow) as error:
            if patience is not None:
                raise
            descriptors = self._replace_helper(error).sockets(count, family, kind, protocol, PATIENCE)
        return [socket.socket(family, kind, protocol, fileno=descriptor) for descriptor in descriptors]

    def _replace_helper(self, error: OSError) -> Helper:
        """Replace the helper, once per request, because a third would fail like the second. Raises NamespaceError."""
        former, self._helper = self._helper, None
        status = 0 if former is None else former.end()
        if not self._namespaces:
            raise NamespaceError(errno.EPIPE, refusals.helper_failed(error, status), stage=Stage.SETNS.value)
        log.warning("the tunnel's helper process failed (%s; exit status %d): starting a new one", error, status)
        self._helper, _ = Helper.start(self._namespaces)
        return self._helper

    def _prepare(self, sock: Socket) -> None:
        sock.setblocking(False)
        if sock.type == socket.SOCK_STREAM and self._congestion:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, self._congestion.encode())
        if self._known is not None:
            self._known.add(sock)
            if sock.type == socket.SOCK_STREAM:
                _end_when_orphaned(sock)

    def _check(self) -> None:
        if self._closed:
            raise TunnelError(errno.EBADF, "the tunnel is closed: open a new one")
        self._forks.check()

    # End

    def abort_all(self) -> int:
        """See `Stack.abort_all`."""
        with self._lock:
            return 0 if self._closed else self._abort_all()

    def _abort_all(self) -> int:
        if self._known is None:
            try:
                return self._diag.destroy_all()
            except OSError as error:
                log.warning("cannot end the tunnel's sockets: %s", error)
                return -1
        for sock in list(self._known):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        return -1

    def close(self) -> None:
        """See `Stack.close`. In a forked child it only closes the child's descriptors."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for spares in self._spares.values():
                spares.close()
            if not self._forks.is_forked:
                self._abort_all()
                with contextlib.suppress(OSError):
                    link_setup.delete(self._setup, self._index)
                if self._helper is not None:
                    self._helper.end()
            self._helper = None
            self._setup.close()
            self._diag.close()
            self._tun.close()
            for descriptor in self._namespaces:
                os.close(descriptor)
            self._namespaces = ()


def _end_when_orphaned(sock: Socket) -> None:
    """Set keepalives. Connections that a listener accepts inherit them."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, ORPHAN_TIMEOUT_MS)
    for option, seconds in ORPHAN_KEEPALIVE.items():
        sock.setsockopt(socket.IPPROTO_TCP, option, seconds)

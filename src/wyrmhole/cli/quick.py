"""`up`, `down` and `save`: what wg-quick(8) does, without its dependence on ip(8), wg(8) and grep.

`up` goes hooks, daemon, keys and peers, addresses, MTU, DNS, routes, hooks; whatever fails, what was made before is
taken back in the other order. `down` finds what to take back by looking (rules by the mark, the firewall by its
name), so it also undoes what wg-quick brought up, and after a crash.

A default route goes into a table of its own, whose number is the tunnel's mark: packets without the mark go by that
table, the tunnel's own packets by the main one, and whatever the main table knows better than by its default route
keeps its way.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from wyrmhole.cli import quick_firewall
from wyrmhole.cli.quick_dns import NameService
from wyrmhole.cli.quick_host import Host
from wyrmhole.control import uapi_client
from wyrmhole.control.uapi_socket import DEFAULT_DIRECTORY
from wyrmhole.control.wg_change import Resolver, set_change
from wyrmhole.control.wg_quick import Config, ConfigPeer, interface_name
from wyrmhole.control.wg_values import ConfigEndpoint
from wyrmhole.device.config import DeviceChange
from wyrmhole.device.status import DeviceStatus, PeerStatus
from wyrmhole.errors import DeviceError
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.prefix import Prefix

FIRST_TABLE = 51820
OVERHEAD = 80
"""Bytes around a packet: IPv6 40, UDP 8, data header 16, tag 16."""

USUAL_MTU = 1500
HOOK_SHELL = ("bash", "-e", "-o", "pipefail", "-c")
GONE_SECONDS = 5.0
POLL_SECONDS = 0.02
SRC_VALID_MARK = Path("/proc/sys/net/ipv4/conf/all/src_valid_mark")
TABLE_NAMES = (Path("/etc/iproute2/rt_tables"), Path("/usr/share/iproute2/rt_tables"))


@dataclass(frozen=True, slots=True)
class Quick:
    """One interface and its file. `say` takes a line for the user: what is done, as a command of ip(8)."""

    path: Path
    config: Config
    resolve: Resolver
    say: Callable[[str], None]

    @property
    def name(self) -> str:
        return interface_name(self.path)

    @property
    def _names(self) -> NameService:
        return NameService(self.name, self.config.interface.dns_servers, self.config.interface.dns_domains)

    # Up

    def up(self) -> None:
        """Raises DeviceError; then nothing of it is left."""
        interface = self.config.interface
        self._names.require()
        if self._wants_default_route:
            quick_firewall.require()
        with Host(self.name) as host, ExitStack() as undo:
            if host.exists:
                raise DeviceError(f"{self.name} already exists: `wyrmhole down {self.name}` first")
            self._run_hooks(interface.pre_up)
            self._start_daemon()
            undo.callback(self._undo, host)
            uapi_client.apply(self.name, set_change(self.config, self.resolve))
            for address in interface.addresses:
                self.say(f"ip -{address.version} address add {address} dev {self.name}")
                host.add_address(address)
            self._set_up(host)
            self._set_dns()
            for prefix in self._prefixes():
                self._add_route(host, prefix)
            self._run_hooks(interface.post_up)
            undo.pop_all()

    def _undo(self, host: Host) -> None:
        """After a failure, whose message must not be lost for one of this."""
        try:
            self._take_down(host)
        except DeviceError as error:
            self.say(f"could not undo everything: {error}")

    def _start_daemon(self) -> None:
        self.say(f"wyrmholed {self.name}")
        result = subprocess.run(
            [sys.executable, "-m", "wyrmhole.cli.wyrmholed", self.name],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if result.returncode:
            said = result.stderr.strip().removeprefix("wyrmholed: ")
            raise DeviceError(f"the daemon did not start: {said or result.returncode}")

    def _set_up(self, host: Host) -> None:
        mtu = self.config.interface.mtu or self._best_mtu(host)
        self.say(f"ip link set mtu {mtu} up dev {self.name}")
        host.set_up(mtu)

    def _best_mtu(self, host: Host) -> int:
        """As wg-quick(8): the widest way to a peer, else the default route, else 1500; less what goes around."""
        endpoints = [peer.endpoint for peer in uapi_client.get(self.name).peers if peer.endpoint is not None]
        widest = max((host.path_mtu(endpoint.host) for endpoint in endpoints), default=0)
        return (widest or host.default_mtu() or USUAL_MTU) - OVERHEAD

    def _set_dns(self) -> None:
        if self.config.interface.dns_servers:
            self.say(f"resolvconf -a {self.name}")
            self._names.set()

    # Routes

    @property
    def _wants_default_route(self) -> bool:
        is_automatic = self.config.interface.table in (None, "auto")
        return is_automatic and any(prefix.length == 0 for prefix in self._prefixes())

    def _prefixes(self) -> list[Prefix]:
        """Narrow ones first, so that a route which a wider one makes superfluous is there before it."""
        found = {prefix: None for peer in self.config.peers for prefix in peer.allowed_ips}
        return sorted(found, key=lambda prefix: -prefix.length)

    def _add_route(self, host: Host, prefix: Prefix) -> None:
        table = self.config.interface.table
        if table == "off":
            return
        if table not in (None, "auto"):
            self.say(f"ip -{prefix.version} route add {prefix.emit()} dev {self.name} table {table}")
            host.add_route(prefix, table if isinstance(table, int) else table_number(str(table)))
        elif prefix.length == 0:
            self._add_default(host, prefix)
        elif not host.has_route(prefix):
            self.say(f"ip -{prefix.version} route add {prefix.emit()} dev {self.name}")
            host.add_route(prefix)

    def _add_default(self, host: Host, prefix: Prefix) -> None:
        version, mark = prefix.version, self._mark(host)
        self.say(f"ip -{version} route add {prefix.emit()} dev {self.name} table {mark}")
        host.add_route(prefix, mark)
        self.say(f"ip -{version} rule add not fwmark {mark} table {mark}")
        self.say(f"ip -{version} rule add table main suppress_prefixlength 0")
        host.add_rules(version, mark)
        own = [str(address.ip) for address in host.addresses() if address.version == version]
        if version == 4:
            SRC_VALID_MARK.write_text("1")
        self.say("nft -f /dev/stdin")
        quick_firewall.add(self.name, version, mark, own)

    def _mark(self, host: Host) -> int:
        if mark := uapi_client.get(self.name).fwmark:
            return mark
        mark = next(table for table in range(FIRST_TABLE, 1 << 32) if host.is_free(table))
        self.say(f"wyrmhole set {self.name} fwmark {mark}")
        uapi_client.apply(self.name, DeviceChange(fwmark=mark))
        return mark

    # Down

    def down(self) -> None:
        """Raises DeviceError."""
        interface = self.config.interface
        status = uapi_client.get(self.name)
        with Host(self.name) as host:
            self._run_hooks(interface.pre_down)
            if interface.save_config:
                self._save(host, status)
            self._take_down(host)
        self._run_hooks(interface.post_down)

    def _take_down(self, host: Host) -> None:
        """Remove whatever there is; each step is tried even if one before it failed."""
        problems = []
        for step in (self._names.unset, lambda: quick_firewall.remove(self.name), lambda: self._drop_rules(host)):
            try:
                step()
            except (DeviceError, OSError) as error:
                problems.append(str(error))
        if host.exists:
            self.say(f"ip link delete dev {self.name}")
            host.delete()
        self._wait_for_daemon()
        if problems:
            raise DeviceError("; ".join(problems))

    def _drop_rules(self, host: Host) -> None:
        if self.config.interface.table not in (None, "auto"):
            return
        with suppress(uapi_client.NoSuchInterface):
            if mark := uapi_client.get(self.name).fwmark:
                for version in host.delete_rules(mark):
                    self.say(f"ip -{version} rule delete table {mark}")
                    self.say(f"ip -{version} rule delete table main suppress_prefixlength 0")

    def _wait_for_daemon(self) -> None:
        """A daemon ends by itself when its interface is gone; the next `up` wants its name."""
        socket_file = Path(DEFAULT_DIRECTORY, f"{self.name}.sock")
        for _ in range(int(GONE_SECONDS / POLL_SECONDS)):
            if not socket_file.exists():
                return
            time.sleep(POLL_SECONDS)

    # Save

    def save(self) -> None:
        """Write what the interface is now into the file. Raises DeviceError and OSError."""
        with Host(self.name) as host:
            self._save(host, uapi_client.get(self.name))

    def _save(self, host: Host, status: DeviceStatus) -> None:
        self.config.interface.addresses = host.addresses()
        if self.config.interface.mtu is not None:
            self.config.interface.mtu = host.mtu()
        merge_status(self.config, status)
        write_atomically(self.path, self.config.emit())

    # Hooks

    def _run_hooks(self, hooks: Sequence[str]) -> None:
        for hook in hooks:
            text = hook.replace("%i", self.name)
            self.say(text)
            environment = os.environ | {"INTERFACE": self.name, "CONFIG_FILE": str(self.path)}
            try:
                status = subprocess.run([*HOOK_SHELL, text], env=environment, check=False).returncode
            except FileNotFoundError:
                raise DeviceError("hooks are for bash(1), which is not here: install it") from None
            if status:
                raise DeviceError(f"a hook ended with status {status}: {text}")


def table_number(name: str) -> int:
    """Of a routing table that has a name. Raises DeviceError."""
    for path in TABLE_NAMES:
        with suppress(OSError):
            for line in path.read_text().splitlines():
                match = re.fullmatch(r"\s*(\d+)\s+(\S+)\s*", line.partition("#")[0])
                if match and match[2] == name:
                    return int(match[1])
    raise DeviceError(
        f"Table = {name}: no table has that name in {TABLE_NAMES[0]}: give its number, or add a line there"
    )


def merge_status(config: Config, status: DeviceStatus) -> None:
    """Make the file's values those of the running interface. Comments, names of peers and names of hosts stay."""
    interface = config.interface
    interface.private_key = status.private_key
    interface.listen_port = status.listen_port or None
    if status.fwmark or interface.fwmark:
        interface.fwmark = status.fwmark
    known = {peer.public_key: peer for peer in config.peers}
    config.peers = [
        _merge_peer(known.get(peer.public_key) or ConfigPeer(peer.public_key), peer) for peer in status.peers
    ]


def _merge_peer(peer: ConfigPeer, status: PeerStatus) -> ConfigPeer:
    peer.preshared_key = None if status.preshared_key.is_zero else status.preshared_key
    if sorted(peer.allowed_ips) != sorted(status.allowed_ips):
        peer.allowed_ips = list(status.allowed_ips)
    if status.persistent_keepalive or peer.persistent_keepalive:
        peer.persistent_keepalive = status.persistent_keepalive
    if peer.endpoint is None or not peer.endpoint.is_name:
        peer.endpoint = None if status.endpoint is None else _config_endpoint(status.endpoint)
    return peer


def _config_endpoint(endpoint: Endpoint) -> ConfigEndpoint:
    return ConfigEndpoint.parse(endpoint.emit())


def write_atomically(path: Path, text: str) -> None:
    """Readable by the owner alone; either the whole new file is there or the old one. Raises OSError."""
    target = path.resolve()
    temporary = target.with_name(f"{target.name}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(fd, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise

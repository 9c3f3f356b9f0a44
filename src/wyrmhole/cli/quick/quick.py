"""`up`, `down` and `save`: what wg-quick(8) does, without its dependence on ip(8), wg(8) and grep.

The steps of `up` are: daemon, hooks, keys and peers, addresses, MTU, DNS, routes, hooks. Each step records how to undo
it. After a failure or a signal, all steps are undone in reverse order.

`down` finds what to remove by inspection: the firewall and the name servers' record by the interface's name, the rules
by the interface's routes. So it also takes down interfaces of wg-quick, and it needs the daemon only for `SaveConfig`:
a daemon that has crashed or hangs does not prevent the removal.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from wyrmhole.cli.quick import firewall
from wyrmhole.cli.quick.daemon import Daemon
from wyrmhole.cli.quick.dns import NameService
from wyrmhole.cli.quick.hook import run_hook
from wyrmhole.cli.quick.host import Host, best_mtu, too_narrow
from wyrmhole.cli.quick.names import EndpointLookup
from wyrmhole.cli.quick.routing import Routing
from wyrmhole.cli.quick.save import merge_status, write_atomically
from wyrmhole.cli.quick.signals import Interrupts
from wyrmhole.cli.quick.state import look, other_marks
from wyrmhole.control.config.change import add_change
from wyrmhole.control.config.file import Config, interface_name
from wyrmhole.control.uapi import client
from wyrmhole.device.config import DeviceChange
from wyrmhole.device.status import DeviceStatus
from wyrmhole.errors import DeviceError, UapiError
from wyrmhole.wire.ip import IPV6_MINIMUM_MTU

TABLE_NAMES = (Path("/etc/iproute2/rt_tables"), Path("/usr/share/iproute2/rt_tables"))

Say = Callable[[str], None]


class Undo:
    """The undo steps of `up`, run newest first. A step that fails is reported, and does not stop the others."""

    def __init__(self, warn: Say) -> None:
        self._warn = warn
        self._steps: list[Callable[[], object]] = []

    def add(self, step: Callable[[], object]) -> None:
        self._steps.append(step)

    def run(self) -> None:
        while self._steps:
            try:
                self._steps.pop()()
            except (DeviceError, OSError) as error:
                self._warn(f"could not undo everything: {error}")


@dataclass(frozen=True, slots=True)
class Quick:
    """One interface and its file. `say` takes a line for the user: what is done, as a command of ip(8). `warn` takes a
    sentence."""

    path: Path
    config: Config
    names: EndpointLookup
    say: Say
    warn: Say
    interrupts: Interrupts = field(default_factory=Interrupts)
    verbose: bool = False
    """Whether the daemon logs each handshake, regardless of LOG_LEVEL."""

    @property
    def name(self) -> str:
        return interface_name(self.path)

    @property
    def _dns(self) -> NameService:
        return NameService(self.name, self.config.interface.dns_servers, self.config.interface.dns_domains)

    def _step(self, text: str) -> None:
        """Print the next step, unless a signal has arrived."""
        self.interrupts.check()
        self.say(text)

    # Up

    def up(self) -> None:
        """Bring up the interface. Raises DeviceError, or SystemExit after a signal; then all steps have been undone."""
        self._dns.require()
        if self._wants_default_route:
            firewall.require()
        undo = Undo(self.warn)
        with Host(self.name) as host:
            if host.exists:
                raise DeviceError(f"{self.name} already exists: run `wyrmhole down {self.name}` first")
            try:
                self._bring_up(host, undo)
                self.interrupts.check()
            except BaseException:
                with self.interrupts.held():
                    undo.run()
                raise

    def _bring_up(self, host: Host, undo: Undo) -> None:
        interface = self.config.interface
        self._start_daemon(host, undo)
        self._run_hooks(interface.pre_up)
        status = self._configure()
        mtu = interface.mtu or self._path_mtu(host, status)
        self._add_addresses(host, mtu)
        self._step(f"ip link set mtu {mtu} up dev {self.name}")
        host.set_up(mtu)
        if interface.dns_servers:
            self._step(f"resolvconf -a {self.name}")
            undo.add(self._dns.unset)
            self._dns.set()
        self._add_routes(host, status, undo)
        self._run_hooks(interface.post_up)

    def _start_daemon(self, host: Host, undo: Undo) -> None:
        daemon = Daemon(self.name)
        undo.add(lambda: self._take_back(host, daemon))
        self._step(f"wyrmholed {self.name}")
        level = "debug" if self.verbose else os.environ.get("LOG_LEVEL") or "error"
        daemon.start(self.interrupts, level)
        if level in ("debug", "verbose"):
            self.say(f"wyrmholed logs to {daemon.log}")
        if marks := firewall.marks(self.name):
            # An earlier instance of this interface ended without `down`.
            firewall.remove(self.name)
            Routing(host, self._step, self.warn).remove_rules(marks)

    def _take_back(self, host: Host, daemon: Daemon) -> None:
        if daemon.may_run:
            if host.exists:
                host.delete()
            if sentence := daemon.end():
                self.warn(sentence)

    def _configure(self) -> DeviceStatus:
        """Add the file's configuration to that of PreUp. Returns the resulting state."""
        change = add_change(self.config, self.names.resolve(self.config, self.name))
        try:
            client.apply(self.name, change)
        except UapiError as error:
            reason = Daemon(self.name).explain(self.config.interface.listen_port)
            raise DeviceError(f"the daemon of {self.name} refused: {reason}" if reason else str(error)) from error
        return client.get(self.name)

    def _add_addresses(self, host: Host, mtu: int) -> None:
        """Add the addresses. `mtu` is the MTU that the interface gets afterwards."""
        addresses = self.config.interface.addresses
        reason = (host.lacks(6) or too_narrow(mtu)) if any(address.version == 6 for address in addresses) else None
        if reason and all(address.version == 6 for address in addresses):
            raise DeviceError(f"no Address of the file can be used: {reason}")
        for address in addresses:
            if reason and address.version == 6:
                self.warn(f"{reason}: left out the address {address}")
                continue
            self._step(f"ip -{address.version} address add {address} dev {self.name}")
            host.add_address(address)

    def _path_mtu(self, host: Host, status: DeviceStatus) -> int:
        """Return the MTU of the narrowest path, but at least 1280 with IPv6, which the kernel would otherwise
        remove."""
        uses_v6 = any(address.version == 6 for address in self.config.interface.addresses)
        mtu = best_mtu(host, (peer.endpoint for peer in status.peers))
        return max(mtu, IPV6_MINIMUM_MTU) if uses_v6 else mtu

    @property
    def _is_automatic(self) -> bool:
        return self.config.interface.table in (None, "auto")

    @property
    def _wants_default_route(self) -> bool:
        prefixes = (prefix for peer in self.config.peers for prefix in peer.allowed_ips)
        return self._is_automatic and any(prefix.length == 0 for prefix in prefixes)

    def _add_routes(self, host: Host, status: DeviceStatus, undo: Undo) -> None:
        """Add routes for the running peers: a hook may have added some, and of two with one prefix only the last has
        it."""
        table = self.config.interface.table
        if table == "off":
            return
        number = None if self._is_automatic else table if isinstance(table, int) else table_number(str(table))
        routing = Routing(host, self._step, self.warn)
        prefixes = routing.usable(prefix for peer in status.peers for prefix in peer.allowed_ips)
        defaults = [prefix for prefix in prefixes if prefix.length == 0 and number is None]
        for prefix in prefixes:
            if prefix not in defaults:
                routing.add(prefix, number)
        if defaults:
            defaults.sort(key=lambda prefix: prefix.version)
            may_change = self.config.interface.save_config
            routing.add_defaults(defaults, status.fwmark, may_change, self._set_mark, undo.add)

    def _set_mark(self, mark: int) -> None:
        client.apply(self.name, DeviceChange(fwmark=mark))

    # Down

    def down(self) -> None:
        """Take down the interface. Raises DeviceError."""
        interface = self.config.interface
        daemon = Daemon(self.name)
        with Host(self.name) as host:
            status = look(host, daemon, self.warn)
            # Without the daemon, a hook may fail, which must not prevent the removal.
            self._run_hooks(interface.pre_down, must_succeed=status is not None)
            with self.interrupts.held():
                if interface.save_config:
                    self._save_if_possible(host, status)
                self._take_down(host, daemon, status)
        self._run_hooks(interface.post_down, must_succeed=status is not None)

    def _save_if_possible(self, host: Host, status: DeviceStatus | None) -> None:
        if status is None:
            self.warn(f"SaveConfig: the running state is not known without the daemon; {self.path} stays as it is")
            return
        try:
            self._save(host, status)
        except OSError as error:
            raise DeviceError(
                f"cannot save the running state into {self.path}: {error.strerror}; {self.name} stays up: make room "
                "for a new file beside it, or take SaveConfig out of it"
            ) from error

    def _take_down(self, host: Host, daemon: Daemon, status: DeviceStatus | None) -> None:
        """Remove everything that exists. Each step is tried even if an earlier one failed."""
        try:
            self._dns.unset()
        except DeviceError as error:
            # Like in wg-quick(8): the program that holds the record may have been replaced since `up`.
            self.warn(f"the record of name servers may be left: {error}")
        problems = []
        steps: tuple[Callable[[], None], ...] = (
            lambda: self._drop_rules(host, status),
            lambda: self._delete(host, daemon),
        )
        for step in steps:
            try:
                step()
            except (DeviceError, OSError) as error:
                problems.append(str(error))
        if problems:
            raise DeviceError("; ".join(problems))

    def _drop_rules(self, host: Host, status: DeviceStatus | None) -> None:
        marks = firewall.marks(self.name)
        try:
            firewall.remove(self.name)
        finally:
            if self._is_automatic:
                if self._may_have_rules(status):
                    marks |= {self.config.interface.fwmark or 0, status.fwmark if status else 0} - {0}
                routing = Routing(host, self.say, self.warn)
                routing.remove_rules(marks)
                # Afterwards, because the interface of a killed daemon may vanish between any two looks.
                if not marks and not host.exists and self._may_have_rules(status):
                    routing.remove_rules(routing.orphaned_tables() - other_marks(self.name))

    def _may_have_rules(self, status: DeviceStatus | None) -> bool:
        return self._wants_default_route or _has_default_route(status)

    def _delete(self, host: Host, daemon: Daemon) -> None:
        if host.exists:
            self.say(f"ip link delete dev {self.name}")
            host.delete()
        if sentence := daemon.end():
            self.warn(sentence)

    # Save

    def save(self) -> None:
        """Write the running state to the file. Raises DeviceError and OSError."""
        with Host(self.name) as host:
            self._save(host, client.get(self.name))

    def _save(self, host: Host, status: DeviceStatus) -> None:
        self.config.interface.addresses = host.addresses()
        if self.config.interface.mtu is not None:
            self.config.interface.mtu = host.mtu()
        merge_status(self.config, status)
        write_atomically(self.path, self.config.emit())

    # Hooks

    def _run_hooks(self, hooks: Sequence[str], *, must_succeed: bool = True) -> None:
        for hook in hooks:
            text = hook.replace("%i", self.name)
            self._step(text)
            environment = os.environ | {"INTERFACE": self.name, "CONFIG_FILE": str(self.path)}
            if status := run_hook(text, environment, self.interrupts):
                sentence = f"a hook ended with status {status}: {text}"
                if must_succeed:
                    raise DeviceError(sentence)
                self.warn(sentence)


def _has_default_route(status: DeviceStatus | None) -> bool:
    return status is not None and any(prefix.length == 0 for peer in status.peers for prefix in peer.allowed_ips)


def table_number(name: str) -> int:
    """Return the number of a named routing table. Raises DeviceError."""
    for path in TABLE_NAMES:
        with suppress(OSError):
            for line in path.read_text().splitlines():
                match = re.fullmatch(r"\s*(\d+)\s+(\S+)\s*", line.partition("#")[0])
                if match and match[2] == name:
                    return int(match[1])
    raise DeviceError(
        f"Table = {name}: no table has that name in {TABLE_NAMES[0]}: give its number, or add a line there"
    )

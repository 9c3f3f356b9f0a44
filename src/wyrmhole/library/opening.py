"""`wyrmhole.open`: make a running tunnel from a configuration, or raise one clear error."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Generator
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

from wyrmhole.control.config.file import Config
from wyrmhole.control.config.load import load_config
from wyrmhole.engine.select import KINDS
from wyrmhole.errors import TunnelError
from wyrmhole.library.common import arguments
from wyrmhole.library.common.own_threads import HELPERS
from wyrmhole.library.configured_device import ConfiguredDevice
from wyrmhole.library.configuring import check_config, warn_of_servers
from wyrmhole.library.runtimes import check_runtime
from wyrmhole.library.stacks.configure import configure_stack
from wyrmhole.library.stacks.namespace import NamespaceStack
from wyrmhole.library.stacks.stack import Stack
from wyrmhole.library.tunnel import Tunnel
from wyrmhole.namespaces.refusals import DESCRIPTOR_LIMIT

STACKS = ("auto", "netns")
HOW_TO_USE = "use `async with wyrmhole.open(...) as tunnel`, or `tunnel = await wyrmhole.open(...)`"

log = logging.getLogger(__name__)


class PendingTunnel:
    """The result of `open`: enter it with `async with`, or await it and close the tunnel yourself."""

    def __init__(
        self,
        config: Config | str | os.PathLike[str],
        *,
        stack: str = "auto",
        device: str | None = None,
        name: str | None = None,
        engine: str = "auto",
    ) -> None:
        arguments.check_config(config)
        arguments.check_choice("stack", stack, STACKS)
        arguments.check_choice("engine", engine, KINDS)
        if device is not None and not isinstance(device, str):
            raise TypeError(f"device must be 'tun' or None, not {arguments.named_type(device)}")
        if device not in (None, "tun"):
            raise ValueError(f"unknown device {device!r}: use 'tun', or None for a private namespace")
        if name is not None:
            arguments.check_text("the name of an interface", name, "wg7")
            if device is None:
                raise ValueError("a name is only for an interface of this host: use it with device='tun'")
        self._config = config
        self._device = device
        self._name = name
        self._engine = engine
        self._tunnel: Tunnel | None = None

    def __repr__(self) -> str:
        return f"<PendingTunnel: not a tunnel yet; {HOW_TO_USE}>"

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            """Raises AttributeError with a hint, because the attribute is probably a method of the tunnel."""
            if name.startswith("_"):
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            raise AttributeError(f"wyrmhole.open() has not opened the tunnel yet, so it has no {name!r}: {HOW_TO_USE}")

        def __enter__(self) -> NoReturn:
            raise TypeError("wyrmhole.open() needs `async with`, or wyrmhole.sync.open() without asyncio")

        def __exit__(self, *_: object) -> None:
            """Exists so that `with` reaches `__enter__` and its message."""

    def __await__(self) -> Generator[object, None, Tunnel]:
        return self.open().__await__()

    async def __aenter__(self) -> Tunnel:
        self._tunnel = await self.open()
        return self._tunnel

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tunnel is not None:
            await self._tunnel.close()

    async def open(self) -> Tunnel:
        """Open the tunnel; awaiting this object does the same."""
        check_runtime()
        config = load_config(self._config)
        check_config(config)
        try:
            return await self._open_checked(config)
        except OSError as error:
            if isinstance(error, TunnelError) or error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            raise TunnelError(error.errno, f"cannot open the tunnel: {DESCRIPTOR_LIMIT}") from error

    async def _open_checked(self, config: Config) -> Tunnel:
        stack = await self._open_stack(config)
        outside: ConfiguredDevice | None = None
        try:
            outside = ConfiguredDevice(stack.port, self._engine)
            await outside.start(config)
        except BaseException:
            if outside is not None:
                await outside.device.close()
            stack.close()
            raise
        warn_of_servers(config)
        log.info("%s: opened, %s stack. %s", config.source, stack.name, outside.device.engine_reason)
        return Tunnel(stack, outside, config, None if isinstance(self._config, Config) else self._config)

    async def _open_stack(self, config: Config) -> Stack:
        """Make a stack in a thread, because this starts a process. Close it if the caller was cancelled."""
        making = partial(make_stack, config, self._device, self._name)
        return await HELPERS.run(making, unwanted=lambda stack: stack.close())


def open(
    config: Config | str | os.PathLike[str],
    *,
    stack: str = "auto",
    device: str | None = None,
    name: str | None = None,
    engine: str = "auto",
) -> PendingTunnel:
    """Open a tunnel: `async with wyrmhole.open("wg0.conf") as tunnel`, or `tunnel = await wyrmhole.open(...)`.

    `config` is the path of a file (`~` is your home directory), the text of a file, or a Config. `stack` is auto or
    netns: a private network namespace, which requires no privileges. `device="tun"` makes an interface called `name` on
    this host instead, which requires CAP_NET_ADMIN. `engine` is auto, native or portable.

    If the name of an endpoint does not resolve, this is logged, and the look-up is repeated while the tunnel works with
    its other peers.

    Raises TypeError and ValueError for wrong arguments, OSError if the file cannot be read, ConfigFileError if its
    content is invalid, socket.gaierror if no endpoint name resolves and no peer is usable, NamespaceError if the system
    refuses namespaces, ConfigError if the port is in use, TunnelError.
    """
    return PendingTunnel(config, stack=stack, device=device, name=name, engine=engine)


def make_stack(config: Config, device: str | None, name: str | None) -> Stack:
    """Make and configure a stack. Blocks for about 20 ms. Raises TunnelError, OSError."""
    stack: Stack
    if device == "tun":
        from wyrmhole.library.stacks.host import HostStack

        stack = HostStack.open(name)
    else:
        stack = NamespaceStack.open()
    try:
        configure_stack(stack, config)
    except BaseException:
        stack.close()
        raise
    return stack

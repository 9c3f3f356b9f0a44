"""`wyrmhole.open`: from a configuration to a running tunnel, or to one clear error."""

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
    """What `open` returns: `async with` it, or await it and close the tunnel yourself."""

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
            raise ValueError(f"there is no device {device!r}: use 'tun', or none for a private namespace")
        if name is not None:
            arguments.check_text("the name of an interface", name, "wg7")
            if device is None:
                raise ValueError("a name is for an interface of this host: use device='tun' with it")
        self._config = config
        self._device = device
        self._name = name
        self._engine = engine
        self._tunnel: Tunnel | None = None

    def __repr__(self) -> str:
        return f"<PendingTunnel: not a tunnel yet; {HOW_TO_USE}>"

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            """A verb of the tunnel, most likely."""
            if name.startswith("_"):
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            raise AttributeError(f"wyrmhole.open() has not opened the tunnel yet, so it has no {name!r}: {HOW_TO_USE}")

        def __enter__(self) -> NoReturn:
            raise TypeError("wyrmhole.open() needs `async with`, or wyrmhole.sync.open() without asyncio")

        def __exit__(self, *_: object) -> None:
            """Lest Python itself complains, with other words."""

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
            raise TunnelError(error.errno, f"No tunnel was opened: {DESCRIPTOR_LIMIT}") from error

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
        """In a thread, for a process is started; one that nobody waits for any more is closed."""
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

    `config` is a file (`~` is your home), the text of one, or a Config. `stack` is auto or netns: a private network
    namespace, for which no rights are needed. `device="tun"` makes an interface on this host instead, called `name`,
    which needs CAP_NET_ADMIN. `engine` is auto, native or portable.

    An endpoint's name that has no address now is logged, and asked for again while the tunnel works with its other
    peers.

    Raises TypeError and ValueError for arguments, OSError for the file, ConfigFileError for what is in it,
    socket.gaierror when no peer can be talked to for its endpoint's name, NamespaceError where namespaces are refused,
    TunnelError, ConfigError for a port that is taken.
    """
    return PendingTunnel(config, stack=stack, device=device, name=name, engine=engine)


def make_stack(config: Config, device: str | None, name: str | None) -> Stack:
    """Blocks for some 20 ms. Raises TunnelError, OSError."""
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

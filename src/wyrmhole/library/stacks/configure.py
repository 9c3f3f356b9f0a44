"""Give a stack the addresses, MTU and routes of a configuration, and undo this if it fails."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable, Sequence

from wyrmhole.control.config.file import Config
from wyrmhole.errors import NamespaceError, TunnelError
from wyrmhole.library.stacks.stack import Stack
from wyrmhole.namespaces import refusals
from wyrmhole.namespaces.steps import Stage
from wyrmhole.net.link_setup import Interface, Network
from wyrmhole.wire.messages import DEFAULT_MTU

log = logging.getLogger(__name__)


def configure_stack(stack: Stack, config: Config) -> None:
    """Set addresses, MTU, and a default route for each family with an address.

    A default route is enough, because the engine selects the peer.
    """
    interface = config.interface
    stack.configure(interface.addresses, routes_for(interface.addresses), interface.mtu or DEFAULT_MTU)


def reconfigure_stack(stack: Stack, old: Config, new: Config) -> Callable[[], None]:
    """Apply a changed configuration to a stack, and return a function that undoes it.

    Raises TunnelError; the stack is unchanged in this case.
    """

    def undo() -> None:
        try:
            configure_stack(stack, old)
        except OSError as error:
            log.error("cannot restore the tunnel's interface: %s", error)

    try:
        configure_stack(stack, new)
    except OSError as error:
        undo()
        raise TunnelError(error.errno, f"not reloaded, the tunnel is unchanged: {reason_of_stack(error)}") from error
    return undo


def reason_of_stack(error: OSError) -> str:
    """Return the reason of an error without the sentences about opening a tunnel."""
    if isinstance(error, NamespaceError) and isinstance(error.__cause__, OSError):
        return f"{refusals.TITLES[Stage(error.stage)]} failed: {error.__cause__.strerror}"
    return str(error.strerror or error)


def routes_for(addresses: Sequence[Interface]) -> list[Network]:
    versions = sorted({address.version for address in addresses})
    return [ipaddress.ip_network("0.0.0.0/0" if version == 4 else "::/0") for version in versions]

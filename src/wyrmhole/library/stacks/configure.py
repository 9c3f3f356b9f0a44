"""How a stack gets the addresses, MTU and routes of a configuration, and how it goes back when that fails."""

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
    """Addresses, MTU, and a way into the tunnel for every family with an address; the engine knows whose is what."""
    interface = config.interface
    stack.configure(interface.addresses, routes_for(interface.addresses), interface.mtu or DEFAULT_MTU)


def reconfigure_stack(stack: Stack, old: Config, new: Config) -> Callable[[], None]:
    """Have a stack follow a reload; returns what takes it back. Raises TunnelError; the stack is as before then."""

    def undo() -> None:
        try:
            configure_stack(stack, old)
        except OSError as error:
            log.error("the tunnel's interface could not be set up as it was: %s", error)

    try:
        configure_stack(stack, new)
    except OSError as error:
        undo()
        raise TunnelError(error.errno, f"not reloaded, the tunnel is as it was: {reason_of_stack(error)}") from error
    return undo


def reason_of_stack(error: OSError) -> str:
    """Without the words that belong to the opening of a tunnel."""
    if isinstance(error, NamespaceError) and isinstance(error.__cause__, OSError):
        return f"{refusals.TITLES[Stage(error.stage)]} failed: {error.__cause__.strerror}"
    return str(error.strerror or error)


def routes_for(addresses: Sequence[Interface]) -> list[Network]:
    versions = sorted({address.version for address in addresses})
    return [ipaddress.ip_network("0.0.0.0/0" if version == 4 else "::/0") for version in versions]

"""proxy and forward: listen on this host and connect clients through a tunnel, without root.

Both serve until the command ends.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

import click

import wyrmhole
from wyrmhole.cli.app import Failure, config_argument, config_path, load
from wyrmhole.cli.console_log import log_options, set_up_console
from wyrmhole.control.config.file import Config
from wyrmhole.errors import OpenProxyError

MAX_USERS_FILE = 1 << 20
"""In bytes. It holds about 20,000 users, far more than one proxy serves."""


class Serving(Protocol):
    """A `Service` of the library."""

    @property
    def addresses(self) -> list[tuple[str, int]]: ...

    async def wait_closed(self) -> None: ...


StartService = Callable[["wyrmhole.Tunnel"], Awaitable[Serving]]


@click.command(
    "proxy",
    short_help="Offer a tunnel as a SOCKS5 and HTTP proxy, without root.",
    epilog="""For clients on other hosts:

    \b
    wyrmhole proxy wg0.conf --listen 0.0.0.0:1080 --users users.txt

    A connection that fails is reported on stderr with the reason. Ctrl-C ends the proxy.
    """,
)
@config_argument
@click.option(
    "--listen", metavar="HOST:PORT", default="127.0.0.1:1080", show_default=True, help="Address to listen on."
)
@click.option("--users", type=click.Path(path_type=Path), help="File with one line USER:PASSWORD for each user.")
@click.option("--allow-open", is_flag=True, help="Serve other hosts without a password.")
@log_options
def proxy_command(config: str, listen: str, users: Path | None, allow_open: bool, verbose: bool, quiet: bool) -> None:
    """Serve SOCKS5 and HTTP on one port, and connect clients through the tunnel of CONFIG.

    Clients should let the proxy resolve names (socks5h in curl). It asks the servers in DNS = of CONFIG, inside the
    tunnel.
    """
    set_up_console(verbose, quiet)
    passwords = None if users is None else read_users(users)
    serve(load(config_path(config)), lambda tunnel: tunnel.proxy(listen, users=passwords, allow_open=allow_open))


@click.command(
    "forward",
    short_help="Forward a port of this host into a tunnel, like `ssh -L`.",
    epilog="""For datagrams:

    \b
    wyrmhole forward --udp wg0.conf 127.0.0.1:5353 10.0.0.1:53

    TARGET may be a name. It is resolved inside the tunnel, again for each connection. Ctrl-C ends the forward.
    """,
)
@config_argument
@click.argument("listen", metavar="HOST:PORT")
@click.argument("target", metavar="TARGET:PORT")
@click.option("--udp", is_flag=True, help="Forward datagrams instead of connections.")
@log_options
def forward_command(config: str, listen: str, target: str, udp: bool, verbose: bool, quiet: bool) -> None:
    """Listen on HOST:PORT here, and connect clients to TARGET:PORT in the tunnel of CONFIG, like `ssh -L`.

    A connection that fails is reported on stderr with the reason.
    """
    set_up_console(verbose, quiet)
    proto = "udp" if udp else "tcp"
    serve(load(config_path(config)), lambda tunnel: tunnel.forward(listen, target, proto=proto))


def read_users(path: Path) -> dict[str, str]:
    """Read a file of users. Raises Failure with file and line but without their contents, or OSError."""
    with path.open("rb") as file:
        data = file.read(MAX_USERS_FILE + 1)
    if len(data) > MAX_USERS_FILE:
        raise Failure(f"{path}: the file is larger than {MAX_USERS_FILE >> 20} MiB")
    users = {}
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        user, colon, password = line.partition(":")
        if not (user and colon and password):
            raise Failure(f"{path}:{number}: expected USER:PASSWORD")
        users[user] = password
    if not users:
        raise Failure(f"{path}: the file lists no users, so the proxy could serve nobody")
    return users


def serve(config: Config, start: StartService) -> None:
    """Serve until Ctrl-C or SIGTERM. Raises WyrmholeError or OSError if the tunnel or the service cannot be opened."""
    try:
        asyncio.run(_serve(config, start))
    except OpenProxyError as error:
        raise OpenProxyError(error.listen, "list users with --users FILE", "pass --allow-open") from error
    except ValueError as error:
        raise Failure(str(error)) from error


async def _serve(config: Config, start: StartService) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with wyrmhole.open(config) as tunnel:
        service = await start(tunnel)
        for host, port in service.addresses:
            click.echo(f"listening on {f'[{host}]' if ':' in host else host}:{port}", err=True)
        waits = [asyncio.ensure_future(wait) for wait in (stopped.wait(), service.wait_closed())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

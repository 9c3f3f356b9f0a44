"""proxy and forward: doors into a tunnel for programs of this host, without root, as long as the command runs."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import click

from wyrmhole.cli.app import Failure, config_argument, config_path, load
from wyrmhole.cli.console_log import log_options, set_up_console
from wyrmhole.control.config.file import Config
from wyrmhole.errors import OpenProxyError

MAX_USERS_FILE = 1 << 20
"""Bytes: some 20,000 users, far more than one proxy serves."""

OpenDoor = Callable[[Any], Awaitable[Any]]
"""Takes a Tunnel, gives a Service."""


@click.command(
    "proxy",
    short_help="Offer a tunnel as a SOCKS5 and HTTP proxy, without root.",
    epilog="""For clients on other hosts:

    \b
    wyrmhole proxy wg0.conf --listen 0.0.0.0:1080 --users users.txt

    Clients should leave names to the proxy, as socks5h does in curl. A connection that fails is reported on stderr,
    with the reason. Ctrl-C ends the proxy.
    """,
)
@config_argument
@click.option("--listen", metavar="HOST:PORT", default="127.0.0.1:1080", show_default=True, help="Where to listen.")
@click.option("--users", type=click.Path(path_type=Path), help="A file with a line USER:PASSWORD for each user.")
@click.option("--allow-open", is_flag=True, help="Serve other hosts without a password.")
@log_options
def proxy_command(config: str, listen: str, users: Path | None, allow_open: bool, verbose: bool, quiet: bool) -> None:
    """Serve SOCKS5 and HTTP on one port, and connect clients through the tunnel of CONFIG.

    Names are resolved inside, by the servers of DNS = in CONFIG: use socks5h in curl.
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

    TARGET may be a name: it is resolved inside, again for each connection. Ctrl-C ends the forward.
    """,
)
@config_argument
@click.argument("listen", metavar="HOST:PORT")
@click.argument("target", metavar="TARGET:PORT")
@click.option("--udp", is_flag=True, help="Forward datagrams instead of connections.")
@log_options
def forward_command(config: str, listen: str, target: str, udp: bool, verbose: bool, quiet: bool) -> None:
    """Listen on HOST:PORT here, and connect clients to TARGET:PORT in the tunnel of CONFIG, like `ssh -L`.

    A connection that fails is a line on stderr, with the reason.
    """
    set_up_console(verbose, quiet)
    proto = "udp" if udp else "tcp"
    serve(load(config_path(config)), lambda tunnel: tunnel.forward(listen, target, proto=proto))


def read_users(path: Path) -> dict[str, str]:
    """Raises Failure with file and line, and without what stands there; OSError."""
    with path.open("rb") as file:
        data = file.read(MAX_USERS_FILE + 1)
    if len(data) > MAX_USERS_FILE:
        raise Failure(f"{path}: larger than {MAX_USERS_FILE >> 20} MiB")
    users = {}
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        user, colon, password = line.partition(":")
        if not (user and colon and password):
            raise Failure(f"{path}:{number}: expected USER:PASSWORD")
        users[user] = password
    if not users:
        raise Failure(f"{path}: there is nobody in it, so nobody could be served")
    return users


def serve(config: Config, open_door: OpenDoor) -> None:
    """Until Ctrl-C or SIGTERM. Raises WyrmholeError and OSError of opening."""
    try:
        asyncio.run(_serve(config, open_door))
    except OpenProxyError as error:
        raise OpenProxyError(error.listen, "name users with --users FILE", "pass --allow-open") from error
    except ValueError as error:
        raise Failure(str(error)) from error


async def _serve(config: Config, open_door: OpenDoor) -> None:
    import wyrmhole

    open_tunnel: Any = wyrmhole.open
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with open_tunnel(config) as tunnel:
        service = await open_door(tunnel)
        for host, port in service.addresses:
            click.echo(f"listening on {f'[{host}]' if ':' in host else host}:{port}", err=True)
        waits = [asyncio.ensure_future(wait) for wait in (stopped.wait(), service.wait_closed())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

"""The settings of `wyrmholed`: its options, and environment variables for callers that pass no options."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

SWITCHES = ("tso", "uso", "gso", "gro", "spin", "steering")
"""TUN super-packets of TCP and UDP; GSO batches sent and received; the brief spinning of the native engine before it
sleeps; the BPF program that keeps a flow on one of several queues. See docs/offloads.md."""
MAX_WORKERS = 64
"""More than the processors of common machines. The kernel's limit of queues per TUN is 256."""

USAGE = "Usage: wyrmholed [-f/--foreground] [OPTION...] INTERFACE"

DESCRIPTION = """A user-space daemon for the WireGuard protocol: one process for each interface. wg configures it.

  wyrmholed wg0                        in the background, like wireguard-go
  LOG_LEVEL=debug wyrmholed -f wg0     in the foreground, with each handshake logged"""

ENVIRONMENT = """environment:
  LOG_LEVEL                    debug (or verbose), error, silent
  WG_PROCESS_FOREGROUND=1      like --foreground
  WG_TUN_FD                    descriptor of an open TUN to use
  WG_UAPI_FD                   descriptor of a listening Unix socket to use
  WYRMHOLE_ENGINE              like --engine
  WYRMHOLE_WORKERS             like --workers
  WYRMHOLE_AEAD                like --aead
  WYRMHOLE_WITHOUT             like --without
  WYRMHOLE_USER                like --user
  WYRMHOLE_SANDBOX=off         like --no-sandbox

Without LOG_LEVEL, errors are logged in the foreground and nothing in the background. The log goes to stdout."""


@dataclass(frozen=True, slots=True)
class DaemonSettings:
    name: str
    foreground: bool
    engine: str
    log_level: str
    tun_fd: int | None
    uapi_fd: int | None
    workers: int = 1
    aead: str = "auto"
    without: frozenset[str] = frozenset()
    user: str | None = None
    sandbox: bool = True

    @property
    def is_confined(self) -> bool:
        """Whether the daemon gives up privileges: by the sandbox, or by becoming another user."""
        return self.sandbox or self.user is not None


def parse_settings(arguments: Sequence[str], environ: Mapping[str, str]) -> DaemonSettings:
    """Parse arguments and environment.

    Raises SystemExit: 0 after --help and --version, 1 without an INTERFACE, with too many arguments or with a bad
    descriptor, 2 for a bad option.
    """
    parser = _parser(environ)
    options, surplus = parser.parse_known_args(arguments)
    if options.version:
        print(version_text())
        parser.exit()
    if surplus or options.name is None:
        # On stdout like wireguard-go, but with status 1, because 0 would report success to a supervisor.
        print(USAGE)
        reason = f"unexpected arguments: {' '.join(surplus)}" if surplus else "INTERFACE is missing"
        parser.exit(1, f"wyrmholed: {reason}; see wyrmholed --help\n")
    sandbox = environ.get("WYRMHOLE_SANDBOX", "on")
    if sandbox not in ("on", "off"):
        parser.error(f"WYRMHOLE_SANDBOX must be on or off, not {sandbox!r}")
    return DaemonSettings(
        name=options.name,
        foreground=options.foreground or environ.get("WG_PROCESS_FOREGROUND") == "1",
        engine=_parse_choice(parser, "WYRMHOLE_ENGINE", options.engine, ("auto", "portable", "native")),
        log_level=environ.get("LOG_LEVEL", ""),
        workers=_parse_workers(parser, options.workers),
        aead=_parse_choice(parser, "WYRMHOLE_AEAD", options.aead, ("auto", "aws-lc", "vector")),
        without=_parse_switches(parser, options.without),
        tun_fd=_parse_fd(parser, environ, "WG_TUN_FD"),
        uapi_fd=_parse_fd(parser, environ, "WG_UAPI_FD"),
        user=options.user or environ.get("WYRMHOLE_USER") or None,
        sandbox=sandbox == "on" and not options.no_sandbox,
    )


def _parser(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            self.exit(2, f"wyrmholed: {message}; see wyrmholed --help\n")

    parser = Parser(
        "wyrmholed",
        description=DESCRIPTION,
        epilog=ENVIRONMENT,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-f", "--foreground", action="store_true", help="stay in the foreground and log to stdout")
    parser.add_argument(
        "--engine",
        choices=("auto", "portable", "native"),
        default=environ.get("WYRMHOLE_ENGINE", "auto"),
        help="packet engine (default: auto, which means native if it was built)",
    )
    parser.add_argument(
        "--workers",
        metavar="N",
        default=environ.get("WYRMHOLE_WORKERS", "1"),
        help="threads of the native engine, 1 to 64; more than one helps on more than two cores",
    )
    parser.add_argument(
        "--aead",
        choices=("auto", "aws-lc", "vector"),
        default=environ.get("WYRMHOLE_AEAD", "auto"),
        help="cipher library of the native engine; vector is libIPSec_MB",
    )
    parser.add_argument(
        "--without",
        metavar="WHAT",
        default=environ.get("WYRMHOLE_WITHOUT", ""),
        help=f"features to switch off, separated by commas: {', '.join(SWITCHES)}",
    )
    parser.add_argument("--user", metavar="NAME", help="user to become after the start")
    parser.add_argument("--no-sandbox", action="store_true", help="keep all privileges and system calls")
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.add_argument("name", metavar="INTERFACE", nargs="?", help="name of the interface to create")
    return parser


def _parse_choice(parser: argparse.ArgumentParser, variable: str, text: str, choices: Sequence[str]) -> str:
    # argparse checks options but not defaults, which come from the environment.
    if text not in choices:
        parser.error(f"{variable} is {text!r}: use {', '.join(choices)}")
    return text


def _parse_workers(parser: argparse.ArgumentParser, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 4 and 1 <= int(text) <= MAX_WORKERS):
        parser.error(f"{text!r} is not a number of workers: use 1 to {MAX_WORKERS}")
    return int(text)


def _parse_switches(parser: argparse.ArgumentParser, text: str) -> frozenset[str]:
    names = frozenset(filter(None, text.split(",")))
    if names - set(SWITCHES):
        parser.error(f"cannot switch off {min(names - set(SWITCHES))!r}: expected names of {','.join(SWITCHES)}")
    return names


def _parse_fd(parser: argparse.ArgumentParser, environ: Mapping[str, str], variable: str) -> int | None:
    text = environ.get(variable, "")
    if text and not (text.isascii() and text.isdigit() and len(text) < 10):
        parser.exit(1, f"wyrmholed: {variable} is not a descriptor number: set it to that of an open descriptor\n")
    return int(text) if text else None


def version_text() -> str:
    # Imported here, because it takes longer to import than the rest of this module.
    from importlib.metadata import version

    system = os.uname()
    return (
        f"wyrmholed {version('wyrmhole')}\n\n"
        f"A user-space daemon for the WireGuard protocol, on {system.sysname} {system.machine}, "
        f"Python {sys.version.partition(' ')[0]}."
    )

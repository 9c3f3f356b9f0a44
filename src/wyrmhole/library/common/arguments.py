"""Check the arguments of public methods first, so that a wrong one gets one sentence instead of an internal traceback.

A wrong type raises TypeError, a value out of range ValueError.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

from wyrmhole.control.config.file import Config
from wyrmhole.wire.endpoint import MAX_PORT

MAX_TIMEOUT = 365 * 24 * 3600.0
"""In seconds; far below the range of an event loop's clock."""


def named_type(value: object) -> str:
    """Return the name of a value's type. Messages never contain the value, which may be a key."""
    return "None" if value is None else type(value).__name__


def check_text(what: str, value: object, example: str) -> None:
    """Check that a value is text. Raises TypeError, or ValueError for empty text."""
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a str such as {example!r}, not {named_type(value)}")
    if not value.strip():
        raise ValueError(f"{what} is empty; expected text such as {example!r}")


def check_choice(what: str, value: object, choices: tuple[str, ...]) -> None:
    """Check that a value is one of the choices. Raises TypeError, ValueError."""
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a str, one of {', '.join(choices)}, not {named_type(value)}")
    if value not in choices:
        raise ValueError(f"unknown {what} {value!r}: use {' or '.join(choices)}")


def check_timeout(value: object, what: str = "timeout") -> None:
    """Check a number of seconds; None means no limit. Raises TypeError, ValueError."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{what} must be a number of seconds or None, not {named_type(value)}")
    if math.isnan(value) or value < 0:
        raise ValueError(f"{what} is {value:g}; expected seconds from 0, or None for no limit")
    if value > MAX_TIMEOUT:
        raise ValueError(f"{what} is {value:g} s, which is more than a year; use None for no limit")


def check_number(what: str, value: object, low: int, high: int) -> None:
    """Check that a value is an int within bounds. Raises TypeError, ValueError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} must be an int from {low} to {high}, not {named_type(value)}")
    if not low <= value <= high:
        raise ValueError(f"{what} is {value}; expected {low} to {high}")


def check_host(host: object) -> None:
    """Check the host of a connection. Raises TypeError, ValueError."""
    check_text("the host", host, "db.internal")


def check_port(port: object) -> None:
    """Check a port: a number, or text that may be a service name, like in the standard library.

    Raises TypeError, ValueError.
    """
    if not isinstance(port, str | bytes):
        check_number("the port", port, 0, MAX_PORT)
    elif not port.strip():
        raise ValueError(f"the port is empty; expected a number from 0 to {MAX_PORT}")


NOT_PICKLED = (
    "a tunnel, its peers and its services cannot be pickled, because a tunnel belongs to the process that opened it: "
    "pass the configuration, and open another tunnel in the other process, with its own key if this tunnel stays open"
)


def check_lookup(host: object, port: object) -> None:
    """Check the host and port of a look-up, with the types of socket.getaddrinfo. Raises TypeError."""
    if not isinstance(host, str | bytes | None):
        raise TypeError(f"the host must be a str such as 'db.internal', or None, not {named_type(host)}")
    if isinstance(port, bool) or not isinstance(port, int | str | bytes | None):
        raise TypeError(f"the port must be an int, a str or None, not {named_type(port)}")


def check_address(what: str, address: object) -> None:
    """Check a pair (host, port). Raises TypeError, ValueError."""
    if not isinstance(address, tuple | list) or len(address) != 2:
        raise TypeError(f"{what} must be a pair (host, port), not {_shape(address)}")
    if not isinstance(address[0], str | bytes | None):
        raise TypeError(f"the host of {what} must be a str, not {named_type(address[0])}")
    check_port(address[1])


def _shape(value: object) -> str:
    return f"{len(value)} values" if isinstance(value, tuple | list) else named_type(value)


def check_instance(what: str, value: object, kind: type[object], expected: str) -> None:
    """Check the type of a value; None is allowed. Raises TypeError."""
    if value is not None and not isinstance(value, kind):
        raise TypeError(f"{what} must be {expected}, not {named_type(value)}")


def check_users(users: object) -> None:
    """Check the users of a proxy. Raises TypeError or ValueError, which never contain a password."""
    check_instance("users", users, Mapping, "a mapping of names to passwords")
    for name, password in (users or {}).items():  # type: ignore[attr-defined]
        if not isinstance(name, str) or not isinstance(password, str):
            raise TypeError("users must map str to str; a name or a password has another type")
        if not name or not password:
            raise ValueError("users has an empty name or password")


def check_config(config: object) -> None:
    """Check the type of a configuration, and that it is not empty. Raises TypeError, ValueError."""
    if not isinstance(config, Config | str | os.PathLike):
        raise TypeError(
            "a configuration must be the path of a file, the text of one, or a wyrmhole.Config, not "
            + named_type(config)
        )
    if isinstance(config, str) and not config.strip():
        raise ValueError("the configuration is empty; expected the path of a file, or its text")

"""Exceptions that wyrmhole raises on purpose. Each message is one sentence for the user and contains no secrets."""

from __future__ import annotations

import errno as errno_names


def how_to_install(extra: str) -> str:
    """Return the command that installs an extra.

    It names no package index, because wyrmhole is not published on one.
    """
    return f"install wyrmhole with its extra `{extra}`, for example pip install '.[{extra}]' in a checkout"


class WyrmholeError(Exception):
    """Base class of all expected errors. A bug never raises one of these."""


class ErrnoError(WyrmholeError):
    """An error with an errno for the UAPI. `errno_value` is positive; the reply line has the negative value."""

    def __init__(self, errno_value: int, message: str) -> None:
        super().__init__(message)
        self.errno_value = errno_value

    @property
    def errno_name(self) -> str:
        """The symbolic name, such as `EINVAL`, or the number as text if this platform has no name for it."""
        return errno_names.errorcode.get(self.errno_value, str(self.errno_value))


class ConfigError(ErrnoError):
    """A device rejected a change as a whole: EADDRINUSE (port in use), EPERM (mark not permitted) or EINVAL."""


class UapiError(ErrnoError):
    """Invalid UAPI text: EINVAL for a key or value, EPROTO for the syntax, EMSGSIZE for the size."""


class DeviceError(WyrmholeError):
    """A resource that the device needs is not available. The message names the remedy."""


class ConfigFileError(WyrmholeError, ValueError):
    """An unusable configuration file. The message begins with file and line, and contains no value of a key."""

    def __init__(self, source: str, line: int, expected: str) -> None:
        super().__init__(f"{source}:{line}: {expected}" if line else f"{source}: {expected}")
        self.source = source
        self.line = line
        """Counted from 1; 0 stands for the file as a whole."""
        self.expected = expected


class OpenProxyError(WyrmholeError, ValueError):
    """A proxy without passwords that other hosts could reach.

    `users` and `allow` name the remedies in the caller's terms.
    """

    def __init__(self, listen: str, users: str = "give users", allow: str = "set allow_open") -> None:
        super().__init__(
            f"refusing to open a proxy on {listen}: without passwords, any host that reaches it could use the tunnel "
            f"({users}, listen on 127.0.0.1, or {allow} to override)"
        )
        self.listen = listen


class TunnelError(WyrmholeError, OSError):
    """A tunnel cannot do what was asked: it is closed, belongs to another process, or could not be opened."""


class NamespaceError(TunnelError):
    """No private network namespace is available. The message names the step that failed, the cause and the remedy."""

    def __init__(self, errno_value: int, message: str, *, stage: str = "") -> None:
        super().__init__(errno_value, message)
        self.stage = stage

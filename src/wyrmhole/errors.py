"""What wyrmhole raises on purpose. Every message is one sentence for the person who runs it, free of secrets."""

from __future__ import annotations

import errno as errno_names


def how_to_install(extra: str) -> str:
    """How to get an extra, the same everywhere. It names no package index, because wyrmhole is not published on one."""
    return f"install wyrmhole with its extra `{extra}`, for example pip install '.[{extra}]' in a checkout"


class WyrmholeError(Exception):
    """The base of the family: catching it catches nothing that is a bug."""


class ErrnoError(WyrmholeError):
    """An error that has a number in the UAPI. `errno_value` is positive; the reply line carries its negative."""

    def __init__(self, errno_value: int, message: str) -> None:
        super().__init__(message)
        self.errno_value = errno_value

    @property
    def errno_name(self) -> str:
        """`EINVAL`, or the number as text when it has no name here."""
        return errno_names.errorcode.get(self.errno_value, str(self.errno_value))


class ConfigError(ErrnoError):
    """A device refused a change, whole: EADDRINUSE for a taken port, EPERM for a mark it may not set, EINVAL."""


class UapiError(ErrnoError):
    """Text that is no UAPI operation: EINVAL for a value or key, EPROTO for the form, EMSGSIZE for its size."""


class DeviceError(WyrmholeError):
    """A part of a device could not be had. The message says what to do about it."""


class ConfigFileError(WyrmholeError, ValueError):
    """A configuration file that cannot be used. The message begins with file and line; no value of a key is in it."""

    def __init__(self, source: str, line: int, expected: str) -> None:
        super().__init__(f"{source}:{line}: {expected}" if line else f"{source}: {expected}")
        self.source = source
        self.line = line
        """1 for the first; 0: the file as a whole."""
        self.expected = expected


class OpenProxyError(WyrmholeError, ValueError):
    """A proxy without users that other machines would reach. `users` and `allow` are what the caller calls the
    remedies."""

    def __init__(self, listen: str, users: str = "give users", allow: str = "set allow_open") -> None:
        super().__init__(
            f"a proxy on {listen} would let everybody into the tunnel who reaches this host: {users}, listen on "
            f"127.0.0.1, or {allow} if that is what you want"
        )
        self.listen = listen


class TunnelError(WyrmholeError, OSError):
    """A tunnel of this program cannot do what was asked: it is closed, of another process, or could not be opened."""


class NamespaceError(TunnelError):
    """No private network namespace was to be had. The message says at which step, why and what to do."""

    def __init__(self, errno_value: int, message: str, *, stage: str = "") -> None:
        super().__init__(errno_value, message)
        self.stage = stage

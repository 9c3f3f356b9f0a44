"""The error of an adapter whose library is not installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from wyrmhole.errors import how_to_install


@contextmanager
def needed(extra: str) -> Iterator[None]:
    """Guard the imports of a library. Raises ModuleNotFoundError that names the extra to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        message = f"wyrmhole.adapters.{extra} needs {error.name}: {how_to_install(extra)}"
        raise ModuleNotFoundError(message, name=error.name, path=error.path) from None

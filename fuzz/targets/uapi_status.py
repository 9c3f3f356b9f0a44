"""The reply of a daemon to `get=1`, as the command line reads it."""

from __future__ import annotations

from wyrmhole.control.uapi.format import emit_get
from wyrmhole.control.uapi.status import parse_get
from wyrmhole.errors import UapiError


def TestOneInput(data: bytes) -> None:
    """A reply is a status or a UapiError of one line that repeats no key. A status written as a daemon does reads the
    same."""
    text = data.decode(errors="replace")
    try:
        status = parse_get("wg0", text.split("\n"))
    except UapiError as error:
        assert "\n" not in str(error) and len(str(error)) < 200
        return
    written = emit_get(status).decode()
    assert parse_get("wg0", written.splitlines()) == status

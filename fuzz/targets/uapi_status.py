"""A daemon's reply to `get=1`, read by the command line."""

from __future__ import annotations

from wyrmhole.control.uapi.format import emit_get
from wyrmhole.control.uapi.status import parse_get
from wyrmhole.errors import UapiError


def TestOneInput(data: bytes) -> None:
    """A reply is a status, or raises a UapiError of one line that does not repeat a key. A status, written like by a
    daemon, reads the same."""
    text = data.decode(errors="replace")
    try:
        status = parse_get("wg0", text.split("\n"))
    except UapiError as error:
        assert "\n" not in str(error) and len(str(error)) < 200
        return
    written = emit_get(status).decode()
    assert parse_get("wg0", written.splitlines()) == status

"""A process that claims a key, and the warnings about a second claim."""

from __future__ import annotations

import pytest

SHARED = "uses the private key of this tunnel"


HOLD = (
    "import sys; from wyrmhole.library.one_key import claim; from wyrmhole.protocol.keys import PublicKey;"
    "held = claim(PublicKey(bytes.fromhex(sys.argv[1]))); print('held', flush=True); sys.stdin.read()"
)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if SHARED in record.getMessage()]

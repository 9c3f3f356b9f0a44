"""A certificate authority for the tests, and a certificate for the hosts that they reach."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme


@dataclass(frozen=True)
class Trust:
    """Servers load `certificate` (PEM, with its key). Clients trust `authority`, which is also in `context`."""

    certificate: str
    authority: str
    context: ssl.SSLContext


@pytest.fixture(scope="session")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Trust:
    folder: Path = tmp_path_factory.mktemp("trust")
    authority = trustme.CA()
    names = ("web.internal", "127.0.0.1", "::1", "10.77.0.2", "fd77::2")
    certificate = authority.issue_cert(*names)
    certificate.private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    context = ssl.create_default_context(cafile=str(folder / "authority.pem"))
    return Trust(str(folder / "server.pem"), str(folder / "authority.pem"), context)

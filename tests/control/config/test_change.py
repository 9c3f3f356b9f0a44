"""Turn a configuration file into a device change, and resolve the names of endpoints."""

from __future__ import annotations

import socket

import pytest

from wyrmhole.control.config.change import add_change, set_change, sync_change
from wyrmhole.control.config.endpoint_names import DEFAULT_RETRIES, NameResolver, parse_retries
from wyrmhole.control.config.file import Config
from wyrmhole.control.config.values import ConfigEndpoint
from wyrmhole.device.status import DeviceStatus, PeerStatus
from wyrmhole.errors import DeviceError
from wyrmhole.protocol.keys import PresharedKey, PrivateKey, PublicKey
from wyrmhole.wire.endpoint import Endpoint

ONE, TWO, THREE = (PublicKey(bytes([number]) * 32) for number in (1, 2, 3))
FILE = Config.parse(
    f"[Peer]\nPublicKey = {ONE.base64()}\nAllowedIPs = 10.0.0.0/8\nEndpoint = 192.0.2.1:5\n"
    f"[Peer]\nPublicKey = {TWO.base64()}\nEndpoint = a.example:6\nPersistentKeepalive = off\n"
)


def status(*keys: PublicKey) -> DeviceStatus:
    psk = PresharedKey(bytes([9]) * 32)
    return DeviceStatus("wg0", None, 1, 0, 0, tuple(PeerStatus(key, psk, None, (0, 0), 0, 0, 7, ()) for key in keys))


def test_set_resets_every_key_that_the_file_omits() -> None:
    change = set_change(FILE)
    assert change.private_key == PrivateKey(bytes(32))
    assert (change.listen_port, change.fwmark, change.replace_peers) == (0, 0, True)
    one, two = change.peers
    assert one.replace_allowed_ips and one.endpoint == Endpoint("192.0.2.1", 5) and one.persistent_keepalive is None
    assert two.endpoint is None and two.persistent_keepalive == 0


def test_add_leaves_other_settings_unchanged() -> None:
    change = add_change(FILE)
    assert (change.private_key, change.listen_port, change.fwmark, change.replace_peers) == (None, None, None, False)
    assert len(change.peers) == 2


def test_sync_removes_missing_peers_and_resets_omitted_keys() -> None:
    change = sync_change(FILE, status(ONE, THREE))
    assert not change.replace_peers, "replacing all peers would end every session"
    assert [(peer.public_key, peer.remove) for peer in change.peers] == [(THREE, True), (ONE, False), (TWO, False)]
    kept, new = change.peers[1:]
    assert kept.preshared_key == PresharedKey(bytes(32)) and kept.persistent_keepalive == 0
    assert new.preshared_key is None


# Look-up of names


class FlakyLookup:
    """A look-up that raises each given error once, then succeeds."""

    def __init__(self, *errors: int) -> None:
        self.errors = list(errors)
        self.waits: list[float] = []
        self.warnings: list[str] = []

    def look_up(self, host: str, port: int) -> str:
        if self.errors:
            raise socket.gaierror(self.errors.pop(0), "some reason")
        return f"[2001:db8::1]:{port}"

    def resolver(self, retries: int | None) -> NameResolver:
        return NameResolver(retries, self.waits.append, self.warnings.append, self.look_up)


NAME = ConfigEndpoint("a.example", 6)


def test_a_literal_is_not_looked_up() -> None:
    resolve = FlakyLookup(*[socket.EAI_NONAME] * 9).resolver(0)
    assert resolve(ConfigEndpoint("192.0.2.1", 5)) == Endpoint("192.0.2.1", 5)


def test_temporary_failure_is_retried_with_growing_delays() -> None:
    lookup = FlakyLookup(*[socket.EAI_AGAIN] * 15)
    assert lookup.resolver(15)(NAME) == Endpoint("2001:db8::1", 6)
    assert lookup.waits[:3] == pytest.approx([1, 1.2, 1.44]) and max(lookup.waits) <= 20
    assert lookup.warnings[0].startswith("some reason: `a.example:6'. Trying again in 1.00 seconds... (Ctrl-C stops")


@pytest.mark.parametrize(("errors", "waits"), [([socket.EAI_NONAME], 0), ([socket.EAI_AGAIN] * 9, 2)])
def test_unknown_name_or_last_retry_raises(errors: list[int], waits: int) -> None:
    lookup = FlakyLookup(*errors)
    with pytest.raises(DeviceError, match=r"endpoint a\.example:6: some reason"):
        lookup.resolver(2)(NAME)
    assert len(lookup.waits) == waits


def test_retries_are_parsed_like_wg_parses_them() -> None:
    assert [parse_retries(text) for text in ("3", "infinity", "", "x", "-1")] == [3, None, *[DEFAULT_RETRIES] * 3]

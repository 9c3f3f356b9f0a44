"""Parsing of the kernel's answers to sock_diag requests."""

from __future__ import annotations

import errno
import struct

import pytest

from wyrmhole.net import netlink
from wyrmhole.net.sock_diag import _raise

DUMPED = 20


def message(kind: int, payload: bytes) -> netlink.Message:
    return netlink.Message(kind, 1, memoryview(payload))


@pytest.mark.parametrize("rest", [b"", bytes(16)])
def test_an_error_is_raised_with_its_errno(rest: bytes) -> None:
    with pytest.raises(OSError) as caught:
        _raise(message(netlink.NLMSG_ERROR, struct.pack("=i", -errno.EPERM) + rest))
    assert caught.value.errno == errno.EPERM


def test_an_acknowledgement_does_not_raise() -> None:
    _raise(message(netlink.NLMSG_ERROR, struct.pack("=i", 0) + bytes(16)))


def test_a_socket_entry_does_not_raise_for_any_content() -> None:
    _raise(message(DUMPED, struct.pack("=i", -errno.EPERM) + bytes(68)))


@pytest.mark.parametrize("size", range(4))
def test_a_truncated_error_is_skipped(size: int) -> None:
    _raise(message(netlink.NLMSG_ERROR, bytes([255] * size)))
    _raise(message(DUMPED, bytes(size)))

"""The kernel's answers to sock_diag requests, read without a kernel."""

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
def test_an_error_is_raised_with_its_number(rest: bytes) -> None:
    with pytest.raises(OSError) as caught:
        _raise(message(netlink.NLMSG_ERROR, struct.pack("=i", -errno.EPERM) + rest))
    assert caught.value.errno == errno.EPERM


def test_an_acknowledgement_is_no_error() -> None:
    _raise(message(netlink.NLMSG_ERROR, struct.pack("=i", 0) + bytes(16)))


def test_a_socket_is_no_error_whatever_its_first_bytes() -> None:
    _raise(message(DUMPED, struct.pack("=i", -errno.EPERM) + bytes(68)))


@pytest.mark.parametrize("size", range(4))
def test_an_error_that_was_cut_off_is_passed_over(size: int) -> None:
    _raise(message(netlink.NLMSG_ERROR, bytes([255] * size)))
    _raise(message(DUMPED, bytes(size)))

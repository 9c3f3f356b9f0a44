"""LinuxTun on the kernel: the life cycle of an interface, frames, and other network namespaces.

Longer than 500 lines because nearly all of its tests share one interface of the kernel.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import select
import struct
from collections.abc import Iterator

import pytest

from tests.support.namespaces import Namespace, ip, namespaces
from tests.support.scripted import StubLink
from wyrmhole.net import netlink, timerfd, tun_ioctl
from wyrmhole.net.linux_tun import LinuxTun, TunError, check_name, segments_of_train
from wyrmhole.net.tun import Tun, TunEvent, TunOffloads

_numbers = itertools.count()

HEADER = bytes(10)
PING = bytes.fromhex("45000054000040004001b6a00a4d00010a4d0002") + bytes(64)
"""An IPv4 packet of 84 bytes from 10.77.0.1 to 10.77.0.2."""


def new_name() -> str:
    return f"wy{os.getpid() % 100000}x{next(_numbers)}"


@pytest.fixture
def tun() -> Iterator[LinuxTun]:
    tun = LinuxTun.create(new_name())
    yield tun
    tun.close()


def events(tun: Tun, *, namespace: Namespace | None = None) -> list[TunEvent]:
    """Return the events of the next wake-up, or an empty list on timeout."""
    poller = select.poll()
    poller.register(tun.events_fileno(), select.POLLIN)
    for _ in range(50):
        if poller.poll(100) and (found := tun.poll_events()):
            return found
    return []


def read_packet(tun: LinuxTun) -> bytes:
    """Return the next IPv4 frame."""
    buffer = bytearray(b"\xff" * 70_000)
    poller = select.poll()
    poller.register(tun.fileno(), select.POLLIN)
    while poller.poll(5000):
        length = tun.read_into(buffer)
        if length > 10 and buffer[10] >> 4 == 4:
            return bytes(buffer[:length])
    raise AssertionError("no IPv4 frame arrived")


@pytest.mark.network
def test_a_reused_interface_has_headers_of_ten_bytes() -> None:
    """A persistent TUN keeps the header size that its former user set, so we must set ours."""
    name = new_name()
    ip("tuntap", "add", "dev", name, "mode", "tun")
    try:
        former = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        tun_ioctl.attach(former, name, tun_ioctl.IFF_TUN | tun_ioctl.IFF_NO_PI | tun_ioctl.IFF_VNET_HDR)
        tun_ioctl.set_header_size(former, 12)
        os.close(former)
        tun = LinuxTun.create(name)
        try:
            ip("link", "set", name, "up")
            assert tun.write((HEADER, PING)), tun.counters.unwritten
        finally:
            tun.close()
    finally:
        ip("tuntap", "del", "dev", name, "mode", "tun")


@pytest.mark.parametrize("name", ["", "sixteen-bytes-xx", "a/b", "a b", "a\tb", "a:b", ".", "..", "a\0b", "é" * 8])
def test_invalid_interface_names_are_refused_with_a_reason(name: str) -> None:
    with pytest.raises(TunError) as caught:
        check_name(name)
    assert caught.value.errno == errno.EINVAL
    assert "1 to 15 bytes" in str(caught.value)


@pytest.mark.parametrize("name", ["a", "fifteen-bytes-x", "wg%d", "wg0.1", "ü" * 7])
def test_valid_interface_names_are_accepted(name: str) -> None:
    check_name(name)


def test_a_descriptor_that_is_not_a_tun_is_refused_and_left_open() -> None:
    read_end, write_end = os.pipe()
    with pytest.raises(TunError) as caught:
        LinuxTun.from_fd(read_end)
    assert "not a TUN interface" in str(caught.value)
    os.close(read_end)
    os.close(write_end)


@pytest.mark.parametrize(
    ("number", "word"), [(errno.ENOENT, "modprobe tun"), (errno.EACCES, "root"), (errno.EMFILE, "open files")]
)
def test_the_error_about_a_missing_driver_has_a_remedy(monkeypatch: pytest.MonkeyPatch, number: int, word: str) -> None:
    def refuse(*_arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(TunError) as caught:
        LinuxTun.create("wy0")
    assert caught.value.errno == number
    assert word in str(caught.value)


@pytest.mark.parametrize(("number", "word"), [(errno.EPERM, "CAP_NET_ADMIN"), (errno.EBUSY, "another process")])
def test_the_error_about_a_refused_interface_has_a_remedy(
    monkeypatch: pytest.MonkeyPatch, number: int, word: str
) -> None:
    def refuse(*_arguments: object) -> str:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", lambda *_arguments: os.dup(0))
    monkeypatch.setattr(tun_ioctl, "attach", refuse)
    with pytest.raises(TunError) as caught:
        LinuxTun.create("wy0")
    assert caught.value.errno == number
    assert word in str(caught.value)


def test_a_timer_descriptor_fires_once_or_periodically() -> None:
    timer = timerfd.open_timer()
    poller = select.poll()
    poller.register(timer, select.POLLIN)
    assert not timerfd.take_expiry(timer)
    timerfd.arm(timer, 1e-6)
    assert poller.poll(5000) and timerfd.take_expiry(timer)
    assert not timerfd.take_expiry(timer)
    timerfd.arm(timer, 1e-6, 1e-3)
    for _ in range(3):
        assert poller.poll(5000) and timerfd.take_expiry(timer)
    os.close(timer)


@pytest.mark.network
def test_a_new_interface_is_down_and_has_mtu_and_offloads(tun: LinuxTun) -> None:
    as_interface: Tun = tun
    assert as_interface.mtu == 1420
    assert as_interface.offloads.tso
    assert as_interface.poll_events() == [TunEvent.DOWN]
    assert as_interface.poll_events() == []
    assert not os.get_inheritable(tun.fileno()) and not os.get_blocking(tun.fileno())


def test_the_segments_of_a_train_depend_on_the_mtu() -> None:
    assert segments_of_train(1420) == 45
    assert segments_of_train(8920) == 7
    assert segments_of_train(65_535) == 1


@pytest.mark.network
def test_the_kernel_limits_super_packets_to_one_train(tun: LinuxTun) -> None:
    for mtu, wanted in ((1420, 45), (8920, 7)):
        ip("link", "set", tun.name, "mtu", str(mtu), "up")
        while (shown := json.loads(ip("-d", "-j", "link", "show", tun.name))[0])["gso_max_segs"] != wanted:
            assert events(tun), f"the limit is {shown['gso_max_segs']} segments, not {wanted}, at an MTU of {mtu}"


@pytest.mark.network
def test_a_name_template_is_filled_in() -> None:
    tun = LinuxTun.create("wytest%d", mtu=1280)
    assert tun.name.startswith("wytest") and tun.name[6:].isdigit()
    assert tun.mtu == 1280
    tun.close()


@pytest.mark.network
def test_offloads_can_be_switched_off() -> None:
    tun = LinuxTun.create(new_name(), tso=False)
    assert tun.offloads.tso is False and tun.offloads.uso is False
    tun.close()
    tun = LinuxTun.create(new_name(), uso=False)
    assert tun.offloads.tso is True and tun.offloads.uso is False
    tun.close()


@pytest.mark.network
def test_a_name_in_use_is_refused(tun: LinuxTun) -> None:
    with pytest.raises(TunError) as caught:
        LinuxTun.create(tun.name)
    assert caught.value.errno == errno.EBUSY
    with pytest.raises(TunError) as caught:
        LinuxTun.create("lo")
    assert caught.value.errno == errno.EINVAL


@pytest.mark.network
def test_an_impossible_mtu_is_refused_and_leaves_no_interface() -> None:
    name = new_name()
    with pytest.raises(TunError) as caught:
        LinuxTun.create(name, mtu=1)
    assert caught.value.errno == errno.EINVAL
    assert name not in ip("link", "show")


@pytest.mark.network
def test_up_down_mtu_and_rename_are_noticed(tun: LinuxTun) -> None:
    tun.poll_events()
    ip("link", "set", tun.name, "up")
    assert events(tun) == [TunEvent.UP]
    ip("link", "set", tun.name, "mtu", "1300")
    assert events(tun) == [TunEvent.MTU]
    assert tun.mtu == 1300
    ip("link", "set", tun.name, "down")
    assert events(tun) == [TunEvent.DOWN]
    renamed = new_name()
    ip("link", "set", tun.name, "name", renamed)
    assert tun.name == renamed
    ip("link", "set", renamed, "mtu", "1280")
    assert events(tun) == [TunEvent.MTU]
    assert tun.mtu == 1280


@pytest.mark.network
def test_events_of_other_interfaces_are_not_reported(tun: LinuxTun) -> None:
    tun.poll_events()
    other = LinuxTun.create(new_name())
    ip("link", "set", other.name, "up")
    other.close()
    assert tun.poll_events() == []


@pytest.mark.network
def test_lost_netlink_messages_do_not_lose_the_state(tun: LinuxTun, monkeypatch: pytest.MonkeyPatch) -> None:
    """After ENOBUFS, the state is queried again."""
    tun.poll_events()
    ip("link", "set", tun.name, "up")
    monkeypatch.setattr(netlink, "drain", lambda _socket: ([], True))
    assert tun.poll_events() == [TunEvent.UP]


@pytest.mark.network
def test_packets_pass_in_both_directions(tun: LinuxTun) -> None:
    with namespaces(1) as (namespace,):
        ip("link", "set", tun.name, "netns", namespace.name)
        namespace.address(tun.name, "10.77.0.2/24")
        namespace.ip("link", "set", tun.name, "up")
        echo = bytes.fromhex("45000054000040004001260f0a4d00010a4d0002") + bytes.fromhex("0800f7ff00000000") + bytes(56)
        assert tun.write([HEADER, fixed_checksum(echo[:20]), echo[20:]])
        frame = read_packet(tun)
        assert frame[:10] == HEADER
        assert len(frame) == 10 + 84 and frame[30] == 0, "the frame is not an echo reply"


def fixed_checksum(header: bytes) -> bytes:
    words = int.from_bytes(header[:10] + b"\0\0" + header[12:], "big") % 0xFFFF
    return header[:10] + (0xFFFF - words).to_bytes(2, "big") + header[12:]


@pytest.mark.network
def test_reading_from_an_empty_or_down_interface_returns_0(tun: LinuxTun) -> None:
    assert tun.read_into(bytearray(70_000)) == 0


@pytest.mark.network
def test_a_frame_written_to_a_down_interface_is_counted_as_lost(tun: LinuxTun) -> None:
    """Writing works again after the interface has come up."""
    assert tun.write([HEADER, PING]) is False
    assert tun.counters.unwritten == {errno.EIO: 1}
    assert tun.write(super_packet()) is False
    assert tun.counters.unwritten == {errno.EIO: 2}
    assert tun.offloads.tso, "a down interface does not switch offloads off"
    ip("link", "set", tun.name, "up")
    assert tun.write([HEADER + PING]) is True
    assert tun.write(super_packet()) is True


def super_packet() -> list[bytes]:
    """Return a coalesced IPv4 TCP frame: three segments of 100 bytes, as separate buffers."""
    header = struct.pack("=BBHHHH", 1, 1, 40, 100, 20, 16)
    ip_header = fixed_checksum(bytes.fromhex("4500015400004000400600000a4d00010a4d0002"))
    tcp_header = bytes.fromhex("0001000200000001000000015010ffff00000000")
    return [header, ip_header + tcp_header, bytes(100), bytes(100), bytes(100)]


@pytest.mark.network
@pytest.mark.parametrize(("gso_type", "lost"), [(1, "tso"), (4, "tso"), (0x81, "tso"), (5, "uso")])
def test_a_refused_super_packet_switches_its_offload_off(tun: LinuxTun, gso_type: int, lost: str) -> None:
    ip("link", "set", tun.name, "up")
    before = tun.offloads
    broken = bytes([1, gso_type]) + bytes(8)
    assert tun.write([broken, PING]) is False
    assert getattr(tun.offloads, lost) is False
    kept = "uso" if lost == "tso" else "tso"
    assert getattr(tun.offloads, kept) == getattr(before, kept)
    assert tun.write([HEADER, b"\x00nonsense"]) is False
    assert getattr(tun.offloads, kept) == getattr(before, kept), "a plain frame does not switch offloads off"


@pytest.mark.network
def test_deletion_is_reported_once_without_spinning(tun: LinuxTun) -> None:
    tun.poll_events()
    ip("link", "del", tun.name)
    assert events(tun) == [TunEvent.DELETED]
    with pytest.raises(OSError) as caught:
        tun.read_into(bytearray(70_000))
    assert caught.value.errno == errno.EBADFD
    assert tun.write([HEADER, PING]) is False
    assert tun.poll_events() == []
    LinuxTun.create(new_name()).close()
    poller = select.poll()
    poller.register(tun.events_fileno(), select.POLLIN)
    assert poller.poll(0) == [], "changes of other interfaces do not wake us"


@pytest.mark.network
def test_a_lent_tun_works_after_its_owner_closed(tun: LinuxTun) -> None:
    name = tun.name
    ip("addr", "add", "10.77.0.1/24", "dev", name)
    ip("link", "set", name, "up")
    lent = tun.lend()
    tun.close()
    try:
        assert tun.fileno() == -1 and lent.fileno() >= 0
        assert not os.get_inheritable(lent.fileno())
        assert lent.write([HEADER, PING])
        assert lent.poll_events() == [TunEvent.DELETED], "the interface is not followed any more"
        assert lent.poll_events() == []
        assert name in ip("-o", "link", "show")
    finally:
        lent.close()
        lent.close()
    assert name not in ip("-o", "link", "show")


@pytest.mark.network
def test_closing_a_lent_tun_leaves_its_owner_alone(tun: LinuxTun) -> None:
    ip("addr", "add", "10.77.0.1/24", "dev", tun.name)
    tun.poll_events()
    tun.lend().close()
    ip("link", "set", tun.name, "up")
    assert events(tun) == [TunEvent.UP]
    assert tun.write([HEADER, PING])


@pytest.mark.network
@pytest.mark.parametrize("may_ask", [True, False], ids=["netlink", "probing"])
def test_an_interface_is_followed_into_another_namespace(
    tun: LinuxTun, may_ask: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the permission to enter the other namespace, only the MTU is unknown."""

    def refuse(*_arguments: object) -> None:
        raise PermissionError(errno.EPERM, "not permitted")

    if not may_ask:
        monkeypatch.setattr(netlink, "listen_everywhere", refuse)
    with namespaces(1) as (namespace,):
        ip("link", "set", tun.name, "up")
        assert tun.poll_events() == [TunEvent.UP]
        ip("link", "set", tun.name, "netns", namespace.name)
        assert events(tun) == [TunEvent.DOWN]
        namespace.ip("link", "set", tun.name, "up")
        assert events(tun) == [TunEvent.UP]
        namespace.ip("link", "set", tun.name, "mtu", "1290")
        assert tun.mtu == (1290 if may_ask else 1420)
        if may_ask:
            assert events(tun) == [TunEvent.MTU]
        namespace.ip("link", "set", tun.name, "down")
        assert events(tun) == [TunEvent.DOWN]
        assert (tun._link._timer < 0) is may_ask, "the timer runs only while we probe"


@pytest.mark.network
def test_a_namespace_gets_an_id_and_keeps_it() -> None:
    client = netlink.Client()
    with namespaces(1) as (namespace,):
        there = os.open(f"/run/netns/{namespace.name}", os.O_RDONLY)
        number = client.namespace_id(there)
        assert number >= 0
        assert client.namespace_id(there) == number
        assert client.link("lo", number).flags & 1
        os.close(there)
    client.close()


@pytest.mark.network
def test_an_interface_that_returns_is_no_longer_probed(tun: LinuxTun, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise PermissionError(errno.EPERM, "not permitted")

    monkeypatch.setattr(netlink, "listen_everywhere", refuse)
    with namespaces(1) as (namespace,):
        ip("link", "set", tun.name, "netns", namespace.name)
        assert tun.poll_events() == [TunEvent.DOWN]
        assert tun._link._timer >= 0
        namespace.ip("link", "set", tun.name, "netns", str(os.getpid()))
        ip("link", "set", tun.name, "up")
        assert events(tun) == [TunEvent.UP]
        assert tun._link._timer < 0


@pytest.mark.network
def test_the_end_of_its_namespace_deletes_the_interface(tun: LinuxTun) -> None:
    """This process does not keep the namespace alive."""
    with namespaces(1) as (namespace,):
        ip("link", "set", tun.name, "netns", namespace.name)
        assert tun.poll_events() == [TunEvent.DOWN]
        assert tun.mtu == 1420
        namespace.delete()
        poller = select.poll()
        poller.register(tun.fileno(), select.POLLIN)
        with pytest.raises(OSError):
            # Before the error, the descriptor may be readable without one.
            while poller.poll(10_000):
                tun.read_into(bytearray(70_000))
        assert events(tun) == [TunEvent.DELETED]


@pytest.mark.network
def test_an_inherited_descriptor_works_like_a_created_one(tun: LinuxTun) -> None:
    """The MTU and the other settings of the interface are unchanged."""
    ip("link", "set", tun.name, "mtu", "1333", "up")
    second = LinuxTun.from_fd(os.dup(tun.fileno()))
    assert second.name == tun.name and second.mtu == 1333 and second.offloads == tun.offloads
    assert second.poll_events() == [TunEvent.UP]
    second.close()
    assert tun.write([HEADER, PING])


@pytest.mark.network
def test_a_descriptor_without_virtio_headers_carries_frames() -> None:
    fileno = os.open("/dev/net/tun", os.O_RDWR)
    name = tun_ioctl.attach(fileno, new_name(), tun_ioctl.IFF_TUN | tun_ioctl.IFF_NO_PI)
    tun = LinuxTun.from_fd(fileno)
    assert tun.offloads.tso is False and tun.offloads.uso is False
    with namespaces(1) as (namespace,):
        ip("link", "set", name, "netns", namespace.name)
        namespace.address(name, "10.77.0.2/24")
        namespace.ip("link", "set", name, "up")
        assert TunEvent.UP in tun.poll_events()
        echo = bytes.fromhex("45000054000040004001260f0a4d00010a4d0002") + bytes.fromhex("0800f7ff00000000") + bytes(56)
        assert tun.write([HEADER + fixed_checksum(echo[:20]), echo[20:]])
        frame = read_packet(tun)
        assert frame[:10] == HEADER and len(frame) == 10 + 84 and frame[30] == 0
        assert tun.write([bytes([1, 1]) + bytes(8), PING]) is False
    tun.close()


@pytest.mark.network
def test_a_tap_descriptor_is_refused() -> None:
    fileno = os.open("/dev/net/tun", os.O_RDWR)
    tun_ioctl.attach(fileno, new_name(), tun_ioctl.IFF_TAP | tun_ioctl.IFF_NO_PI)
    with pytest.raises(TunError) as caught:
        LinuxTun.from_fd(fileno)
    assert "IFF_TUN" in str(caught.value)
    os.close(fileno)


@pytest.mark.network
def test_close_can_be_repeated_and_leaves_no_interface() -> None:
    before = len(os.listdir("/proc/self/fd"))
    tun = LinuxTun.create(new_name())
    name = tun.name
    tun.close()
    tun.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert name not in ip("link", "show")
    assert tun.mtu == 1420 and tun.name == name


# Without a kernel


@pytest.mark.parametrize(
    ("events", "tso", "limits"),
    [
        ((TunEvent.UP,), True, [45]),
        ((TunEvent.MTU,), True, [45]),
        ((TunEvent.MTU, TunEvent.UP), True, [45]),
        ((TunEvent.DOWN,), True, []),
        ((), True, []),
        ((TunEvent.UP, TunEvent.MTU), False, []),
    ],
)
def test_super_packets_are_limited_when_the_interface_changes(
    events: tuple[TunEvent, ...], tso: bool, limits: list[int]
) -> None:
    link = StubLink(*events)
    stub = LinuxTun(-1, TunOffloads(tso=tso, uso=True), link=link)  # type: ignore[arg-type]
    assert stub.poll_events() == list(events)
    assert link.limits == limits


@pytest.mark.parametrize(
    ("number", "gso_type", "left"),
    [
        (errno.EINVAL, 1, TunOffloads(tso=False, uso=True)),
        (errno.EINVAL, 4, TunOffloads(tso=False, uso=True)),
        (errno.EINVAL, 0x81, TunOffloads(tso=False, uso=True)),
        (errno.EINVAL, 5, TunOffloads(tso=True, uso=False)),
        (errno.EINVAL, 0, TunOffloads(tso=True, uso=True)),
        (errno.EIO, 1, TunOffloads(tso=True, uso=True)),
        (errno.ENOMEM, 5, TunOffloads(tso=True, uso=True)),
    ],
)
def test_only_an_invalid_super_packet_turns_an_offload_off(
    monkeypatch: pytest.MonkeyPatch, number: int, gso_type: int, left: TunOffloads
) -> None:
    def refuse(fileno: int, parts: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "writev", refuse)
    stub = LinuxTun(-1, TunOffloads(tso=True, uso=True), link=StubLink())  # type: ignore[arg-type]
    assert not stub.write([bytes([0, gso_type]) + bytes(8), b"packet"])
    assert stub.offloads == left
    assert stub.counters.unwritten[number] == 1

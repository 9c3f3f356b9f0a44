//! System calls as safe functions. Each `unsafe` block passes pointers to memory that outlives the call, with the
//! lengths of that memory; where this is not obvious, a comment explains it.

use std::io;
use std::mem::{self, MaybeUninit};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::ptr;

use libc::{c_int, c_void, iovec};
use wyrmhole_core::edges::Gather;
use wyrmhole_core::peer::Source;

/// `IOV_MAX` of Linux.
const MAX_PARTS: usize = 1024;
/// Room for UDP_GRO, PKTINFO and TOS of either family; in words, for their alignment.
const CONTROL_WORDS: usize = 32;
const UDP_SEGMENT: c_int = 103;
const UDP_GRO: c_int = 104;
const SOURCE_V4: usize = 12;
const SOURCE_V6: usize = 20;

fn checked(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// The time of CLOCK_BOOTTIME in nanoseconds; it includes suspend.
#[must_use]
pub fn boottime() -> u64 {
    let mut time = MaybeUninit::<libc::timespec>::zeroed();
    // SAFETY: the kernel fills in the structure, and zeros would be a valid one.
    let time = unsafe {
        libc::clock_gettime(libc::CLOCK_BOOTTIME, time.as_mut_ptr());
        time.assume_init()
    };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Fill with secret bytes (getrandom(2), which waits until the system has entropy).
pub fn random(bytes: &mut [u8]) {
    let mut filled = 0;
    while filled < bytes.len() {
        let rest = &mut bytes[filled..];
        // SAFETY: the kernel writes into `rest` and no further than its length.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        // Fails only if a signal arrives before the first byte.
        filled += usize::try_from(got).unwrap_or(0);
    }
}

/// Duplicate the descriptor of another owner (F_DUPFD_CLOEXEC). The owner may close its number at any time, and that
/// number may then refer to another file, which we must not touch.
///
/// # Errors
/// If the number is not open, or no descriptor is available.
pub fn duplicate(lent: RawFd) -> io::Result<OwnedFd> {
    if lent < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: the number is only duplicated, by a call that fails if it is not open.
    unsafe { BorrowedFd::borrow_raw(lent) }.try_clone_to_owned()
}

/// A counter that wakes a poller; closed when dropped.
pub struct EventFd(RawFd);

impl EventFd {
    /// Create a non-blocking counter.
    ///
    /// # Errors
    /// If no descriptor is available.
    pub fn new() -> io::Result<Self> {
        // SAFETY: takes no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        checked(fd as isize).map(|_| Self(fd))
    }

    /// The descriptor to poll.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.0
    }

    /// Wake the poller.
    pub fn ring(&self) {
        let one = 1u64;
        // SAFETY: writes the eight bytes of a local. Fails only if the counter is full, which wakes the poller as well.
        unsafe { libc::write(self.0, ptr::from_ref(&one).cast::<c_void>(), 8) };
    }

    /// Reset the counter.
    pub fn clear(&self) {
        let mut count = 0u64;
        // SAFETY: reads eight bytes into a local. A counter of zero gives EAGAIN, which is ignored.
        unsafe { libc::read(self.0, ptr::from_mut(&mut count).cast::<c_void>(), 8) };
    }
}

impl Drop for EventFd {
    fn drop(&mut self) {
        // SAFETY: the descriptor is ours alone.
        unsafe { libc::close(self.0) };
    }
}

/// An event of one descriptor.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    /// The descriptor.
    pub fd: RawFd,
    /// The descriptor reports an error or a hang-up.
    pub is_broken: bool,
}

/// An epoll set; closed when dropped.
pub struct Epoll(RawFd);

impl Epoll {
    /// Create an empty set.
    ///
    /// # Errors
    /// If no descriptor is available.
    pub fn new() -> io::Result<Self> {
        // SAFETY: takes no pointers.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        checked(fd as isize).map(|_| Self(fd))
    }

    /// Watch a descriptor for reading. Has no effect if it is already watched.
    pub fn add(&self, fd: RawFd) -> bool {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: fd as u64 };
        // SAFETY: the event is a local that the kernel copies.
        unsafe { libc::epoll_ctl(self.0, libc::EPOLL_CTL_ADD, fd, &raw mut event) == 0 }
    }

    /// Stop watching a descriptor. Has no effect if it is not watched.
    pub fn remove(&self, fd: RawFd) {
        // SAFETY: no event is read for a removal.
        unsafe { libc::epoll_ctl(self.0, libc::EPOLL_CTL_DEL, fd, ptr::null_mut()) };
    }

    /// Wait for events, at most `timeout` milliseconds (-1: without limit).
    pub fn wait(&self, out: &mut Vec<Ready>, timeout: i32) {
        const EVENTS: usize = 8;
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS];
        // SAFETY: the kernel writes at most EVENTS entries.
        let count = unsafe { libc::epoll_wait(self.0, events.as_mut_ptr(), EVENTS as c_int, timeout) };
        out.clear();
        for event in &events[..usize::try_from(count).unwrap_or(0)] {
            let broken = (libc::EPOLLERR | libc::EPOLLHUP) as u32;
            out.push(Ready { fd: event.u64 as RawFd, is_broken: event.events & broken != 0 });
        }
    }
}

impl Drop for Epoll {
    fn drop(&mut self) {
        // SAFETY: the descriptor is ours alone.
        unsafe { libc::close(self.0) };
    }
}

/// read(2).
///
/// # Errors
/// Its errno.
pub fn read(fd: RawFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the kernel writes at most the buffer's length.
    checked(unsafe { libc::read(fd, buffer.as_mut_ptr().cast::<c_void>(), buffer.len()) })
}

/// Write one frame with writev(2), without the first `skip` bytes of its header.
///
/// # Errors
/// Its errno; also EINVAL for more parts than writev accepts.
pub fn write_frame(fd: RawFd, frame: Gather<'_>, skip: usize) -> io::Result<()> {
    let mut parts = [const { MaybeUninit::<iovec>::uninit() }; MAX_PARTS];
    if frame.parts.len() >= MAX_PARTS {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    parts[0].write(slice_of(&frame.header[skip..]));
    for (place, part) in parts[1..].iter_mut().zip(frame.parts) {
        place.write(slice_of(part.of(frame.slot)));
    }
    let count = frame.parts.len() + 1;
    // SAFETY: the first `count` entries were just written, and point into slices that are borrowed until the end.
    checked(unsafe { libc::writev(fd, parts.as_ptr().cast::<iovec>(), count as c_int) }).map(|_| ())
}

fn slice_of(bytes: &[u8]) -> iovec {
    // The kernel only reads from it; the pointer is mutable because readv shares the type.
    iovec { iov_base: bytes.as_ptr().cast_mut().cast::<c_void>(), iov_len: bytes.len() }
}

/// The result of one recvmsg.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// The number of bytes in the buffer.
    pub length: usize,
    /// The sender.
    pub from: SocketAddr,
    /// The local address and interface, in the kernel's format.
    pub source: Option<Source>,
    /// The outer type of service.
    pub tos: u8,
    /// The size of the train's datagrams; 0 for a single datagram.
    pub segment_size: usize,
    /// The datagram did not fit and was truncated.
    pub is_truncated: bool,
}

/// recvmsg(2) on a UDP socket.
///
/// # Errors
/// Its errno; EAFNOSUPPORT if the sender's address is not an IP address.
pub fn receive(fd: RawFd, buffer: &mut [u8]) -> io::Result<Received> {
    let mut name = MaybeUninit::<libc::sockaddr_storage>::zeroed();
    let mut control = [0u64; CONTROL_WORDS];
    let mut part = iovec { iov_base: buffer.as_mut_ptr().cast::<c_void>(), iov_len: buffer.len() };
    // SAFETY: a msghdr of zeros is a valid empty one.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_name = name.as_mut_ptr().cast::<c_void>();
    message.msg_namelen = mem::size_of::<libc::sockaddr_storage>() as u32;
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast::<c_void>();
    message.msg_controllen = mem::size_of_val(&control) as _;
    // SAFETY: name, control and part are locals, the buffer is borrowed, and their lengths are in the message.
    let length = checked(unsafe { libc::recvmsg(fd, &raw mut message, 0) })?;
    // SAFETY: zeros are a valid address without family, and the kernel overwrote them.
    let from = parse_address(unsafe { name.assume_init_ref() });
    let from = from.ok_or_else(|| io::Error::from_raw_os_error(libc::EAFNOSUPPORT))?;
    let is_truncated = message.msg_flags & libc::MSG_TRUNC != 0;
    let mut received = Received { length, from, source: None, tos: 0, segment_size: 0, is_truncated };
    // Truncated control messages count as absent; the loop below stays within the length that the kernel wrote.
    // SAFETY: the message and its control buffer are unchanged since recvmsg filled them in.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !header.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR only return headers that lie completely in the buffer.
        let (level, kind, data) = unsafe {
            let head = *header;
            let size = (head.cmsg_len as usize).saturating_sub(libc::CMSG_LEN(0) as usize);
            (head.cmsg_level, head.cmsg_type, std::slice::from_raw_parts(libc::CMSG_DATA(header), size))
        };
        take_control(&mut received, level, kind, data);
        // SAFETY: as above.
        header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
    }
    if received.segment_size >= length {
        received.segment_size = 0;
    }
    Ok(received)
}

/// Record a control message. One of an unexpected size counts as absent.
fn take_control(received: &mut Received, level: c_int, kind: c_int, data: &[u8]) {
    let int = || data.try_into().map_or(0, i32::from_ne_bytes);
    match (level, kind) {
        (libc::SOL_UDP, UDP_GRO) => received.segment_size = usize::try_from(int()).unwrap_or(0),
        (libc::IPPROTO_IP, libc::IP_PKTINFO) if data.len() == SOURCE_V4 => received.source = Source::new(data),
        (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) if data.len() == SOURCE_V6 => received.source = Source::new(data),
        (libc::IPPROTO_IP, libc::IP_TOS) => received.tos = data.first().copied().unwrap_or(0),
        (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => received.tos = int() as u8,
        _ => (),
    }
}

fn parse_address(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let start = ptr::from_ref(name);
    match c_int::from(name.ss_family) {
        libc::AF_INET => {
            // SAFETY: the storage is large enough and aligned for every family, and the family was checked.
            let v4 = unsafe { *start.cast::<libc::sockaddr_in>() };
            let host = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
            Some(SocketAddr::V4(SocketAddrV4::new(host, u16::from_be(v4.sin_port))))
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let v6 = unsafe { *start.cast::<libc::sockaddr_in6>() };
            let host = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            let port = u16::from_be(v6.sin6_port);
            Some(SocketAddr::V6(SocketAddrV6::new(host, port, v6.sin6_flowinfo, v6.sin6_scope_id)))
        }
        _ => None,
    }
}

enum Name {
    V4(libc::sockaddr_in),
    V6(libc::sockaddr_in6),
}

fn emit_address(to: &SocketAddr) -> Name {
    match to {
        SocketAddr::V4(to) => Name::V4(libc::sockaddr_in {
            sin_family: libc::AF_INET as u16,
            sin_port: to.port().to_be(),
            sin_addr: libc::in_addr { s_addr: u32::from(*to.ip()).to_be() },
            sin_zero: [0; 8],
        }),
        SocketAddr::V6(to) => Name::V6(libc::sockaddr_in6 {
            sin6_family: libc::AF_INET6 as u16,
            sin6_port: to.port().to_be(),
            sin6_flowinfo: to.flowinfo(),
            sin6_addr: libc::in6_addr { s6_addr: to.ip().octets() },
            sin6_scope_id: to.scope_id(),
        }),
    }
}

/// Control messages under construction.
struct Control {
    words: [u64; CONTROL_WORDS],
    length: usize,
}

impl Control {
    fn push(&mut self, level: c_int, kind: c_int, data: &[u8]) {
        // SAFETY: the CMSG_ macros only compute. `push` is called at most three times with at most 20 bytes; the words
        // have room for these and are aligned for a header.
        unsafe {
            let header = self.words.as_mut_ptr().cast::<u8>().add(self.length).cast::<libc::cmsghdr>();
            (*header).cmsg_level = level;
            (*header).cmsg_type = kind;
            (*header).cmsg_len = libc::CMSG_LEN(data.len() as u32) as _;
            ptr::copy_nonoverlapping(data.as_ptr(), libc::CMSG_DATA(header), data.len());
            self.length += libc::CMSG_SPACE(data.len() as u32) as usize;
        }
    }

    /// Pin the source address, but not the interface, which routing chooses. A link-local IPv6 address is the
    /// exception: it is meaningless without its interface (see `wyrmhole.net.sticky`).
    fn push_source(&mut self, source: &Source, is_v6: bool) {
        let bytes = source.as_bytes();
        if !is_v6 && bytes.len() == SOURCE_V4 {
            let mut pinned = [0; SOURCE_V4];
            pinned[4..8].copy_from_slice(&bytes[4..8]);
            pinned[8..].copy_from_slice(&bytes[4..8]);
            self.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &pinned);
        } else if is_v6 && bytes.len() == SOURCE_V6 {
            let mut pinned = [0; SOURCE_V6];
            pinned.copy_from_slice(bytes);
            if !(bytes[0] == 0xFE && bytes[1] & 0xC0 == 0x80) {
                pinned[16..].fill(0);
            }
            self.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &pinned);
        }
    }
}

/// Send one datagram (`segment_size` 0) or a train with sendmsg(2). A source of the other family is ignored.
///
/// # Errors
/// Its errno, if nothing was sent.
pub fn send(
    fd: RawFd,
    to: &SocketAddr,
    source: Option<&Source>,
    data: &[u8],
    segment_size: usize,
    tos: u8,
) -> io::Result<()> {
    let mut name = emit_address(to);
    let is_v6 = to.is_ipv6();
    let mut control = Control { words: [0; CONTROL_WORDS], length: 0 };
    if segment_size > 0 {
        control.push(libc::SOL_UDP, UDP_SEGMENT, &(segment_size as u16).to_ne_bytes());
    }
    if let Some(source) = source {
        control.push_source(source, is_v6);
    }
    if tos > 0 {
        let (level, kind) =
            if is_v6 { (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) } else { (libc::IPPROTO_IP, libc::IP_TOS) };
        control.push(level, kind, &i32::from(tos).to_ne_bytes());
    }
    let mut part = slice_of(data);
    // SAFETY: a msghdr of zeros is a valid empty one.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    (message.msg_name, message.msg_namelen) = match &mut name {
        Name::V4(v4) => (ptr::from_mut(v4).cast::<c_void>(), mem::size_of::<libc::sockaddr_in>() as u32),
        Name::V6(v6) => (ptr::from_mut(v6).cast::<c_void>(), mem::size_of::<libc::sockaddr_in6>() as u32),
    };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    if control.length > 0 {
        message.msg_control = control.words.as_mut_ptr().cast::<c_void>();
        message.msg_controllen = control.length as _;
    }
    // SAFETY: name, control and part are locals and the data is borrowed; their lengths are in the message.
    checked(unsafe { libc::sendmsg(fd, &raw const message, 0) }).map(|_| ())
}

/// Let another ready thread run on this processor.
pub fn give_way() {
    // SAFETY: takes no pointers.
    unsafe { libc::sched_yield() };
}

/// Wait until the socket has room, at most this many milliseconds.
pub fn wait_writable(fd: RawFd, milliseconds: i32) {
    let mut poll = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
    // SAFETY: one entry, a local.
    unsafe { libc::poll(&raw mut poll, 1, milliseconds) };
}

/// The MTU of the route to an address, found by connecting a temporary socket. `None` if the kernel does not return it.
#[must_use]
pub fn path_mtu(to: &SocketAddr, like: RawFd) -> Option<usize> {
    let family = if to.is_ipv6() { libc::AF_INET6 } else { libc::AF_INET };
    let (level, option) = if to.is_ipv6() { (libc::IPPROTO_IPV6, 24) } else { (libc::IPPROTO_IP, 14) };
    // SAFETY: takes no pointers.
    let probe = unsafe { libc::socket(family, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if probe < 0 {
        return None;
    }
    let mark = get_option(like, libc::SOL_SOCKET, libc::SO_MARK).unwrap_or(0);
    let name = emit_address(to);
    let (address, length) = match &name {
        Name::V4(v4) => (ptr::from_ref(v4).cast::<libc::sockaddr>(), mem::size_of::<libc::sockaddr_in>()),
        Name::V6(v6) => (ptr::from_ref(v6).cast::<libc::sockaddr>(), mem::size_of::<libc::sockaddr_in6>()),
    };
    // SAFETY: the mark and the name are locals, with their sizes.
    let connected = unsafe {
        if mark != 0 {
            let value = ptr::from_ref(&mark).cast::<c_void>();
            libc::setsockopt(probe, libc::SOL_SOCKET, libc::SO_MARK, value, mem::size_of::<c_int>() as u32);
        }
        libc::connect(probe, address, length as u32) == 0
    };
    let mtu = connected.then(|| get_option(probe, level, option)).flatten();
    // SAFETY: the descriptor is ours alone.
    unsafe { libc::close(probe) };
    usize::try_from(mtu?).ok()
}

fn get_option(fd: RawFd, level: c_int, option: c_int) -> Option<c_int> {
    let mut value: c_int = 0;
    let mut length = mem::size_of::<c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes at most the four bytes of the local.
    let result =
        unsafe { libc::getsockopt(fd, level, option, ptr::from_mut(&mut value).cast::<c_void>(), &raw mut length) };
    (result == 0).then_some(value)
}

//! System calls as safe functions. Errors are errno values.

use std::io;
use std::mem;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::ptr;

use libc::{c_int, c_void};

/// The most descriptors in one message (`SCM_MAX_FD`).
pub const MAX_DESCRIPTORS: usize = 253;
/// The size of one control message with that many descriptors.
const CONTROL_WORDS: usize = (16 + MAX_DESCRIPTORS * 4).div_ceil(8) + 1;

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

fn checked(result: c_int) -> Result<c_int, i32> {
    if result < 0 { Err(errno()) } else { Ok(result) }
}

/// Enters a new user and a new network namespace.
pub fn unshare() -> Result<(), i32> {
    // SAFETY: the call takes no pointers.
    checked(unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET) }).map(|_| ())
}

/// Enters existing namespaces and closes their descriptors.
pub fn enter(user: RawFd, network: RawFd) -> Result<(), i32> {
    // SAFETY: the calls take no pointers; the descriptors were inherited for this and are not used elsewhere.
    unsafe {
        checked(libc::setns(user, libc::CLONE_NEWUSER))?;
        checked(libc::setns(network, libc::CLONE_NEWNET))?;
        libc::close(user);
        libc::close(network);
    }
    Ok(())
}

/// Opens the device of the TUN driver.
pub fn open_tun() -> Result<OwnedFd, i32> {
    let flags = libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC;
    // SAFETY: the path is a C string; the descriptor is new and has no other owner.
    unsafe { checked(libc::open(c"/dev/net/tun".as_ptr(), flags)).map(|fd| OwnedFd::from_raw_fd(fd)) }
}

/// Makes a socket in this namespace.
pub fn socket(family: c_int, kind: c_int, protocol: c_int) -> Result<OwnedFd, i32> {
    // SAFETY: the call takes no pointers; the descriptor is new and has no other owner.
    unsafe { checked(libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol)).map(|fd| OwnedFd::from_raw_fd(fd)) }
}

/// Receives one message and returns its length, or 0 if the other end is closed or broken.
pub fn receive(channel: RawFd, buffer: &mut [u8]) -> usize {
    loop {
        // SAFETY: the kernel writes at most the buffer's length.
        let length = unsafe { libc::recv(channel, buffer.as_mut_ptr().cast::<c_void>(), buffer.len(), 0) };
        if length < 0 && errno() == libc::EINTR {
            continue;
        }
        return usize::try_from(length).unwrap_or(0);
    }
}

/// Sends one message with descriptors.
pub fn send(channel: RawFd, data: &[u8], descriptors: &[RawFd]) -> Result<(), i32> {
    let mut control = [0u64; CONTROL_WORDS];
    let mut part = libc::iovec { iov_base: data.as_ptr().cast_mut().cast::<c_void>(), iov_len: data.len() };
    // SAFETY: a zeroed msghdr is a valid empty message.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    if !descriptors.is_empty() {
        let bytes = mem::size_of_val(descriptors) as u32;
        message.msg_control = control.as_mut_ptr().cast::<c_void>();
        // SAFETY: the macros only compute addresses; the buffer has room for MAX_DESCRIPTORS and is aligned for a header.
        unsafe {
            message.msg_controllen = libc::CMSG_SPACE(bytes) as _;
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(bytes) as _;
            ptr::copy_nonoverlapping(descriptors.as_ptr().cast::<u8>(), libc::CMSG_DATA(header), bytes as usize);
        }
    }
    // SAFETY: `part` and `control` are locals, the data is borrowed, and the message has their lengths.
    let sent = unsafe { libc::sendmsg(channel, &raw const message, libc::MSG_NOSIGNAL) };
    if sent < 0 { Err(errno()) } else { Ok(()) }
}

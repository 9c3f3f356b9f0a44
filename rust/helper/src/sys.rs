//! System calls as safe functions; errors are errno.

use std::io;
use std::mem;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::ptr;

use libc::{c_int, c_void};

/// `SCM_MAX_FD`.
pub const MAX_DESCRIPTORS: usize = 253;
/// Room for one control message with that many.
const CONTROL_WORDS: usize = (16 + MAX_DESCRIPTORS * 4).div_ceil(8) + 1;

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

fn checked(result: c_int) -> Result<c_int, i32> {
    if result < 0 { Err(errno()) } else { Ok(result) }
}

/// Into a new user and network namespace.
pub fn unshare() -> Result<(), i32> {
    // SAFETY: takes no pointers.
    checked(unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET) }).map(|_| ())
}

/// Into existing ones; their descriptors are closed.
pub fn enter(user: RawFd, network: RawFd) -> Result<(), i32> {
    // SAFETY: takes no pointers; the descriptors were inherited for this and are used nowhere else.
    unsafe {
        checked(libc::setns(user, libc::CLONE_NEWUSER))?;
        checked(libc::setns(network, libc::CLONE_NEWNET))?;
        libc::close(user);
        libc::close(network);
    }
    Ok(())
}

/// The TUN driver's device.
pub fn open_tun() -> Result<OwnedFd, i32> {
    let flags = libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC;
    // SAFETY: a C string; the descriptor is new and owned by nobody else.
    unsafe { checked(libc::open(c"/dev/net/tun".as_ptr(), flags)).map(|fd| OwnedFd::from_raw_fd(fd)) }
}

/// A socket of this namespace.
pub fn socket(family: c_int, kind: c_int, protocol: c_int) -> Result<OwnedFd, i32> {
    // SAFETY: takes no pointers; the descriptor is new and owned by nobody else.
    unsafe { checked(libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol)).map(|fd| OwnedFd::from_raw_fd(fd)) }
}

/// One message; 0 when the other end is closed or broken.
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

/// One message, with descriptors.
pub fn send(channel: RawFd, data: &[u8], descriptors: &[RawFd]) -> Result<(), i32> {
    let mut control = [0u64; CONTROL_WORDS];
    let mut part = libc::iovec { iov_base: data.as_ptr().cast_mut().cast::<c_void>(), iov_len: data.len() };
    // SAFETY: a msghdr of zeros is a valid empty one.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    if !descriptors.is_empty() {
        let bytes = mem::size_of_val(descriptors) as u32;
        message.msg_control = control.as_mut_ptr().cast::<c_void>();
        // SAFETY: the macros only compute; the words have room for MAX_DESCRIPTORS and are aligned for a header.
        unsafe {
            message.msg_controllen = libc::CMSG_SPACE(bytes) as _;
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(bytes) as _;
            ptr::copy_nonoverlapping(descriptors.as_ptr().cast::<u8>(), libc::CMSG_DATA(header), bytes as usize);
        }
    }
    // SAFETY: part and control are locals and the data is borrowed; their lengths are in the message.
    let sent = unsafe { libc::sendmsg(channel, &raw const message, libc::MSG_NOSIGNAL) };
    if sent < 0 { Err(errno()) } else { Ok(()) }
}

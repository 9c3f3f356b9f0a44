//! A TUN queue of the kernel: frames with a virtio header, and super-packets in both directions.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use wyrmhole_core::edges::Gather;
use wyrmhole_core::virtio::{self, GSO_ECN, GSO_NONE, GSO_UDP_L4};

use super::sys;

/// The result of a read.
pub enum Read {
    /// A frame of this many bytes.
    Frame(usize),
    /// No frame is waiting, or the interface is down.
    Nothing,
    /// The interface is gone.
    Gone,
}

/// One queue, through our own duplicate of its descriptor.
pub struct KernelTun {
    fd: OwnedFd,
    /// The queue was opened with IFF_VNET_HDR. Otherwise headers are all zero and are not passed to the kernel.
    has_header: bool,
    tso: AtomicBool,
    uso: AtomicBool,
}

impl KernelTun {
    /// Use the queue that `lent` refers to now. `tso` and `uso` are the offloads that the kernel accepted.
    ///
    /// # Errors
    /// See `sys::duplicate`.
    pub fn new(lent: RawFd, has_header: bool, tso: bool, uso: bool) -> io::Result<Self> {
        Ok(Self { fd: sys::duplicate(lent)?, has_header, tso: tso.into(), uso: uso.into() })
    }

    /// The descriptor to poll.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Whether TCP and UDP super-packets are accepted.
    #[must_use]
    pub fn offloads(&self) -> (bool, bool) {
        (self.tso.load(Ordering::Relaxed), self.uso.load(Ordering::Relaxed))
    }

    /// Read one frame.
    pub fn read(&self, buffer: &mut [u8]) -> Read {
        let skip = if self.has_header { 0 } else { virtio::VIRTIO_HEADER_SIZE };
        match sys::read(self.fd(), &mut buffer[skip..]) {
            Ok(0) => Read::Nothing,
            Ok(length) => {
                buffer[..skip].fill(0);
                Read::Frame(length + skip)
            }
            Err(error) if is_gone(&error) => Read::Gone,
            Err(_) => Read::Nothing,
        }
    }

    /// Write one frame. Returns false if it was lost, or if it was a super-packet that was refused; a refusal switches
    /// that offload off permanently.
    pub fn write(&self, frame: Gather<'_>) -> bool {
        let gso_type = frame.header[1];
        if !self.has_header && gso_type != GSO_NONE {
            return false;
        }
        let skip = if self.has_header { 0 } else { virtio::VIRTIO_HEADER_SIZE };
        match sys::write_frame(self.fd(), frame, skip) {
            Ok(()) => true,
            Err(error) => {
                if error.raw_os_error() == Some(libc::EINVAL) && gso_type != GSO_NONE {
                    let offload = if gso_type & !GSO_ECN == GSO_UDP_L4 { &self.uso } else { &self.tso };
                    offload.store(false, Ordering::Relaxed);
                }
                false
            }
        }
    }
}

/// Whether this error of a read means that the interface was deleted; EFAULT occurs if that happens during the read.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADFD | libc::EBADF | libc::ENODEV | libc::EFAULT))
}

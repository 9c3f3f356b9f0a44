//! UDP sockets of the kernel, with trains in both directions. `wyrmhole_core::sending` has the remedies for failed
//! sends.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use wyrmhole_core::edges::SendOutcome;
use wyrmhole_core::peer::Source;
use wyrmhole_core::sending::{MAX_SEGMENTS, MAX_TRAIN_BYTES, Message, RawSocket, RetryingSender, SendError};
use wyrmhole_core::train::TrainLimits;

use super::sys;

const WAIT_MILLISECONDS: i32 = 1;

/// The socket of one family, through our own duplicate of its descriptor.
pub struct RawUdp {
    own: OwnedFd,
    /// The owner's number for the socket.
    lent: RawFd,
    /// The errno of the latest failure.
    failure: AtomicI32,
}

impl RawSocket for RawUdp {
    fn attempt(&self, message: Message<'_>, data: &[u8], segment_size: usize) -> Result<(), SendError> {
        let sent = sys::send(self.own.as_raw_fd(), message.to, message.source, data, segment_size, message.tos);
        sent.inspect_err(|error| {
            self.failure.store(error.raw_os_error().unwrap_or(libc::EIO), Ordering::Relaxed);
        })
        .map_err(|error| match error.raw_os_error() {
            Some(libc::EAGAIN) => SendError::NoRoom,
            Some(libc::ECONNREFUSED) => SendError::Refused,
            Some(libc::EMSGSIZE) => SendError::TooLong,
            Some(libc::EINVAL) => SendError::Invalid,
            Some(libc::EIO) => SendError::Device,
            Some(
                libc::EADDRNOTAVAIL
                | libc::ENETUNREACH
                | libc::EHOSTUNREACH
                | libc::ENODEV
                | libc::ENXIO
                | libc::ENETDOWN
                | libc::EACCES,
            ) => SendError::Source,
            _ => SendError::Other,
        })
    }

    fn wait_for_room(&self) {
        sys::wait_writable(self.own.as_raw_fd(), WAIT_MILLISECONDS);
    }

    fn path_mtu(&self, to: &SocketAddr) -> Option<usize> {
        sys::path_mtu(to, self.own.as_raw_fd())
    }
}

type KernelSocket = RetryingSender<RawUdp>;

/// The sockets of both families; either may be missing.
#[derive(Clone, Default)]
pub struct KernelBind {
    v4: Option<Arc<KernelSocket>>,
    v6: Option<Arc<KernelSocket>>,
}

impl KernelBind {
    /// Use these sockets: (descriptor, is IPv6, may send trains).
    ///
    /// # Errors
    /// See `sys::duplicate`.
    pub fn new(sockets: &[(RawFd, bool, bool)]) -> io::Result<Self> {
        let mut bind = Self::default();
        for (lent, is_v6, gso) in sockets {
            let raw = RawUdp { own: sys::duplicate(*lent)?, lent: *lent, failure: AtomicI32::new(0) };
            let socket = Some(Arc::new(RetryingSender::new(raw, *gso)));
            if *is_v6 { bind.v6 = socket } else { bind.v4 = socket }
        }
        Ok(bind)
    }

    /// The descriptors to poll.
    pub fn fds(&self) -> impl Iterator<Item = RawFd> {
        self.sockets().map(|socket| socket.raw().own.as_raw_fd())
    }

    /// The owner's number for this duplicate of ours.
    #[must_use]
    pub fn lent(&self, own: RawFd) -> Option<RawFd> {
        self.sockets().map(|socket| socket.raw()).find(|raw| raw.own.as_raw_fd() == own).map(|raw| raw.lent)
    }

    /// The limits within which a train can be sent with one call.
    #[must_use]
    pub fn limits(&self) -> TrainLimits {
        TrainLimits { segments: MAX_SEGMENTS, bytes: MAX_TRAIN_BYTES }
    }

    /// Send; see `wyrmhole_core::edges::Edges::send`.
    pub fn send(
        &self,
        to: &SocketAddr,
        source: Option<&Source>,
        data: &[u8],
        segment_size: usize,
        tos: u8,
    ) -> SendOutcome {
        let socket = if to.is_ipv6() { &self.v6 } else { &self.v4 };
        match socket {
            Some(socket) => socket.send(Message { to, source, tos }, data, segment_size),
            None => SendOutcome { source_rejected: false, dropped: true },
        }
    }

    /// The errno of the latest failure of the socket that sends to this address.
    #[must_use]
    pub fn last_error(&self, to: &SocketAddr) -> i32 {
        let socket = if to.is_ipv6() { &self.v6 } else { &self.v4 };
        socket.as_ref().map_or(libc::EAFNOSUPPORT, |socket| socket.raw().failure.load(Ordering::Relaxed))
    }

    /// Forget path MTUs, because routes changed.
    pub fn forget_paths(&self) {
        self.sockets().for_each(|socket| socket.forget_paths());
    }

    fn sockets(&self) -> impl Iterator<Item = &Arc<KernelSocket>> {
        [&self.v4, &self.v6].into_iter().flatten()
    }
}

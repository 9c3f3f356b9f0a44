//! UDP sockets of the kernel: trains whole in both directions, and what is done when a send fails.
//!
//! The remedies are those of `wyrmhole.net.udp_socket`, in the same order. `sendmsg` is all or nothing, so after an
//! error the whole message is still unsent, and each remedy may send it again without making duplicates:
//!
//! - EAGAIN: wait for room, 10 ms at most for all of one send, then drop.
//! - ECONNREFUSED: the answer to an earlier datagram, told late; once more.
//! - EINVAL, EADDRNOTAVAIL, ENETUNREACH and others with a pinned source: once more without; if that works, the source
//!   was to blame, and the caller is told.
//! - EIO with a train: the device below cannot segment or checksum. No more trains on this socket.
//! - EMSGSIZE with a train: its datagrams exceed the path MTU. Single datagrams get through, as IP fragments;
//!   remembered for that destination, for a thousand trains.
//! - EINVAL with a train: more than 64 datagrams on an older kernel (the limit is lowered), or the same as EMSGSIZE on
//!   an older kernel (the path MTU tells), or a kernel that refuses trains: single datagrams, and if these pass, no
//!   more trains.
//! - Anything else: dropped.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use wyrmhole_core::edges::SendOutcome;
use wyrmhole_core::peer::Source;
use wyrmhole_core::train::TrainLimits;

use super::sys;

/// 65,535 less IPv6, UDP and tagged Ethernet headers: a longer one the kernel cuts up right away.
pub const MAX_TRAIN_BYTES: usize = 65_469;
/// Since Linux 6.9; before, 64.
const MAX_SEGMENTS: usize = 128;
const OLD_MAX_SEGMENTS: usize = 64;
const WAIT_MILLISECONDS: i32 = 1;
const WAITS: u32 = 10;
const SEND_ATTEMPTS: u32 = 12;
const OVERSIZED_TRAINS: u32 = 1000;
const OVERSIZED_LIMIT: usize = 1024;

/// Destinations whose path is narrower than the trains: size, and trains until it is tried again.
type Oversized = HashMap<SocketAddr, (usize, u32)>;

/// One family's socket; the descriptor is lent. Workers and the control thread share it.
pub struct KernelSocket {
    fd: RawFd,
    gso: AtomicBool,
    max_segments: AtomicUsize,
    oversized: Mutex<Oversized>,
    has_oversized: AtomicBool,
    fallbacks: AtomicUsize,
}

/// A message on its way, and how long it may still be waited for.
#[derive(Clone, Copy)]
struct Message<'a> {
    to: &'a SocketAddr,
    source: Option<&'a Source>,
    tos: u8,
}

impl KernelSocket {
    /// `gso`: whether trains may be sent.
    #[must_use]
    pub fn new(fd: RawFd, gso: bool) -> Self {
        Self {
            fd,
            gso: AtomicBool::new(gso),
            max_segments: AtomicUsize::new(MAX_SEGMENTS),
            oversized: Mutex::default(),
            has_oversized: AtomicBool::new(false),
            fallbacks: AtomicUsize::new(0),
        }
    }

    /// The path may have changed: narrow ones are found out again.
    pub fn forget_paths(&self) {
        self.lock_oversized().clear();
        self.has_oversized.store(false, Ordering::Relaxed);
    }

    /// Whether trains are still sent.
    #[must_use]
    pub fn sends_trains(&self) -> bool {
        self.gso.load(Ordering::Relaxed)
    }

    fn send(&self, message: Message<'_>, data: &[u8], segment: usize) -> SendOutcome {
        let segment = if data.len() > segment { segment } else { 0 };
        if segment > 0 {
            let fits = data.len() <= MAX_TRAIN_BYTES
                && data.len().div_ceil(segment) <= self.max_segments.load(Ordering::Relaxed)
                && self.sends_trains();
            if !fits || self.is_oversized(message.to, segment) {
                return self.train(message, data, segment, &mut WAITS.clone());
            }
        }
        match self.attempt(message, data, segment) {
            Ok(()) => SendOutcome::default(),
            Err(error) => self.settle(&error, message, data, segment, &mut WAITS.clone()),
        }
    }

    fn attempt(&self, message: Message<'_>, data: &[u8], segment: usize) -> io::Result<()> {
        sys::send(self.fd, message.to, message.source, data, segment, message.tos)
    }

    /// In trains within the limits, or as single datagrams.
    fn train(&self, message: Message<'_>, data: &[u8], segment: usize, waits: &mut u32) -> SendOutcome {
        let is_whole = self.sends_trains() && !self.is_oversized(message.to, segment);
        let most = self.max_segments.load(Ordering::Relaxed).min(MAX_TRAIN_BYTES / segment).max(1);
        self.pieces(message, data, segment, if is_whole { most } else { 1 }, waits)
    }

    fn pieces(
        &self,
        mut message: Message<'_>,
        data: &[u8],
        segment: usize,
        count: usize,
        waits: &mut u32,
    ) -> SendOutcome {
        let mut outcome = SendOutcome::default();
        for piece in data.chunks(segment * count) {
            let segment = if piece.len() > segment { segment } else { 0 };
            if let Err(error) = self.attempt(message, piece, segment) {
                let settled = self.settle(&error, message, piece, segment, waits);
                outcome.dropped |= settled.dropped;
                outcome.source_rejected |= settled.source_rejected;
                if outcome.source_rejected {
                    message.source = None;
                }
            }
        }
        outcome
    }

    /// The remedies, in order, for a message whose last attempt failed.
    fn settle(
        &self,
        error: &io::Error,
        message: Message<'_>,
        data: &[u8],
        segment: usize,
        waits: &mut u32,
    ) -> SendOutcome {
        let mut number = error.raw_os_error().unwrap_or(libc::EIO);
        for _ in 0..SEND_ATTEMPTS {
            let is_passing = number == libc::ECONNREFUSED || number == libc::EAGAIN && self.wait(waits);
            if !is_passing {
                break;
            }
            match self.attempt(message, data, segment) {
                Ok(()) => return SendOutcome::default(),
                Err(error) => number = error.raw_os_error().unwrap_or(libc::EIO),
            }
        }
        if message.source.is_some() && is_source_error(number) {
            let unpinned = Message { source: None, ..message };
            if self.attempt(unpinned, data, segment).is_ok() {
                return SendOutcome { source_rejected: true, dropped: false };
            }
        }
        if segment > 0 && matches!(number, libc::EIO | libc::EMSGSIZE | libc::EINVAL) {
            return self.give_up_train(number, message, data, segment, waits);
        }
        SendOutcome { source_rejected: false, dropped: true }
    }

    fn give_up_train(
        &self,
        number: i32,
        message: Message<'_>,
        data: &[u8],
        segment: usize,
        waits: &mut u32,
    ) -> SendOutcome {
        let segments = data.len().div_ceil(segment);
        let is_old_limit = number == libc::EINVAL && segments > OLD_MAX_SEGMENTS;
        if is_old_limit && self.max_segments.swap(OLD_MAX_SEGMENTS, Ordering::Relaxed) > OLD_MAX_SEGMENTS {
            return self.train(message, data, segment, waits);
        }
        if number == libc::EIO {
            self.turn_gso_off();
        } else if number == libc::EMSGSIZE || self.exceeds_path(message.to, segment) {
            self.remember_oversized(*message.to, segment);
        } else {
            let outcome = self.pieces(message, data, segment, 1, waits);
            if !outcome.dropped {
                self.turn_gso_off();
            }
            return outcome;
        }
        self.pieces(message, data, segment, 1, waits)
    }

    fn turn_gso_off(&self) {
        self.gso.store(false, Ordering::Relaxed);
        self.fallbacks.fetch_add(1, Ordering::Relaxed);
    }

    fn wait(&self, waits: &mut u32) -> bool {
        let Some(left) = waits.checked_sub(1) else { return false };
        *waits = left;
        sys::wait_writable(self.fd, WAIT_MILLISECONDS);
        true
    }

    fn exceeds_path(&self, to: &SocketAddr, segment: usize) -> bool {
        let headers = if to.is_ipv6() { 48 } else { 28 };
        sys::path_mtu(to, self.fd).is_some_and(|mtu| segment + headers > mtu)
    }

    fn is_oversized(&self, to: &SocketAddr, segment: usize) -> bool {
        if !self.has_oversized.load(Ordering::Relaxed) {
            return false;
        }
        let mut oversized = self.lock_oversized();
        match oversized.get_mut(to) {
            Some((size, left)) if segment >= *size => {
                if let Some(less) = left.checked_sub(1) {
                    *left = less;
                    return true;
                }
                oversized.remove(to);
                false
            }
            _ => false,
        }
    }

    fn remember_oversized(&self, to: SocketAddr, segment: usize) {
        let mut oversized = self.lock_oversized();
        if oversized.len() >= OVERSIZED_LIMIT {
            oversized.clear();
        }
        oversized.insert(to, (segment, OVERSIZED_TRAINS));
        self.has_oversized.store(true, Ordering::Relaxed);
    }

    fn lock_oversized(&self) -> MutexGuard<'_, Oversized> {
        self.oversized.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_source_error(number: i32) -> bool {
    matches!(
        number,
        libc::EINVAL
            | libc::EADDRNOTAVAIL
            | libc::ENETUNREACH
            | libc::EHOSTUNREACH
            | libc::ENODEV
            | libc::ENXIO
            | libc::ENETDOWN
            | libc::EACCES
    )
}

/// Both families, either may be missing.
#[derive(Clone, Default)]
pub struct KernelBind {
    v4: Option<Arc<KernelSocket>>,
    v6: Option<Arc<KernelSocket>>,
}

impl KernelBind {
    /// From (descriptor, is IPv6, may send trains).
    #[must_use]
    pub fn new(sockets: &[(RawFd, bool, bool)]) -> Self {
        let mut bind = Self::default();
        for (fd, is_v6, gso) in sockets {
            let socket = Some(Arc::new(KernelSocket::new(*fd, *gso)));
            if *is_v6 { bind.v6 = socket } else { bind.v4 = socket }
        }
        bind
    }

    /// The descriptors, for a poller.
    pub fn fds(&self) -> impl Iterator<Item = RawFd> {
        self.sockets().map(|socket| socket.fd)
    }

    /// How long a train may be so that it leaves in one call.
    #[must_use]
    pub fn limits(&self) -> TrainLimits {
        TrainLimits { segments: MAX_SEGMENTS, bytes: MAX_TRAIN_BYTES }
    }

    /// See `wyrmhole_core::edges::Edges::send`.
    pub fn send(&self, to: &SocketAddr, source: Option<&Source>, data: &[u8], segment: usize, tos: u8) -> SendOutcome {
        let socket = if to.is_ipv6() { &self.v6 } else { &self.v4 };
        match socket {
            Some(socket) => socket.send(Message { to, source, tos }, data, segment),
            None => SendOutcome { source_rejected: false, dropped: true },
        }
    }

    /// Routes changed.
    pub fn forget_paths(&self) {
        self.sockets().for_each(|socket| socket.forget_paths());
    }

    /// Whether any socket gave up sending trains.
    #[must_use]
    pub fn sends_trains(&self) -> bool {
        self.sockets().all(|socket| socket.sends_trains())
    }

    fn sockets(&self) -> impl Iterator<Item = &Arc<KernelSocket>> {
        [&self.v4, &self.v6].into_iter().flatten()
    }
}

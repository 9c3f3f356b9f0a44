//! Twin: wyrmhole/net/udp_socket.py.
//!
//! The remedies for a failed send. `sendmsg` sends all or nothing: after an error the whole message is unsent, and each
//! remedy may send it again without duplicates. The remedies, and their order, are those of the twin:
//!
//! - No room: wait, at most 10 ms per send in total, then drop.
//! - Refused: a late error for an earlier datagram; send again.
//! - An error that a pinned source can cause: send again without the source. If that works, the source is invalid, and
//!   the caller learns it from the outcome.
//! - EIO with a train: the device below cannot segment or checksum. No more trains on this socket.
//! - EMSGSIZE with a train: its datagrams exceed the path MTU. Single datagrams get through, as IP fragments. This is
//!   remembered for that destination, for a thousand trains.
//! - EINVAL with a train has three causes. More than 64 datagrams on an older kernel: lower the limit. Datagrams that
//!   exceed the path MTU, again on an older kernel: like EMSGSIZE. A kernel that refuses trains: send single datagrams,
//!   and if these pass, no more trains.
//! - Any other error: drop.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::edges::SendOutcome;
use crate::peer::Source;

/// 65,535 less IPv6, UDP and tagged Ethernet headers: the kernel segments a longer train at once.
pub const MAX_TRAIN_BYTES: usize = 65_469;
/// The most datagrams of a train since Linux 6.9; before, it was 64.
pub const MAX_SEGMENTS: usize = 128;
const OLD_MAX_SEGMENTS: usize = 64;
const WAITS: u32 = 10;
const SEND_ATTEMPTS: u32 = 12;
const OVERSIZED_TRAINS: u32 = 1000;
const OVERSIZED_LIMIT: usize = 1024;

/// Destinations whose path MTU is exceeded: the segment size, and the number of trains until it is tried again.
type Oversized = HashMap<SocketAddr, (usize, u32)>;

/// The errors of a send, grouped by remedy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// EAGAIN: no room now.
    NoRoom,
    /// ECONNREFUSED: an error for an earlier datagram.
    Refused,
    /// EMSGSIZE.
    TooLong,
    /// EINVAL, which a source can also cause.
    Invalid,
    /// EIO.
    Device,
    /// Another error that a source can cause.
    Source,
    /// An error without remedy.
    Other,
}

/// The parameters of a message.
#[derive(Clone, Copy)]
#[allow(missing_docs)]
pub struct Message<'a> {
    pub to: &'a SocketAddr,
    pub source: Option<&'a Source>,
    pub tos: u8,
}

/// A socket without remedies: the kernel's, or a fake in tests.
pub trait RawSocket {
    /// Send one datagram (`segment_size` 0) or a train.
    ///
    /// # Errors
    /// If nothing was sent.
    fn attempt(&self, message: Message<'_>, data: &[u8], segment_size: usize) -> Result<(), SendError>;

    /// Wait for room, at most 1 ms.
    fn wait_for_room(&self);

    /// The MTU of the route to an address, if known.
    fn path_mtu(&self, to: &SocketAddr) -> Option<usize>;
}

/// A socket with remedies, shared by workers and the control thread.
pub struct RetryingSender<S> {
    raw: S,
    gso: AtomicBool,
    max_segments: AtomicUsize,
    oversized: Mutex<Oversized>,
    has_oversized: AtomicBool,
}

impl<S: RawSocket> RetryingSender<S> {
    /// Add remedies to a socket. `gso` tells whether trains may be sent.
    #[must_use]
    pub fn new(raw: S, gso: bool) -> Self {
        Self {
            raw,
            gso: AtomicBool::new(gso),
            max_segments: AtomicUsize::new(MAX_SEGMENTS),
            oversized: Mutex::default(),
            has_oversized: AtomicBool::new(false),
        }
    }

    /// Forget path MTUs, because routes may have changed.
    pub fn forget_paths(&self) {
        self.lock_oversized().clear();
        self.has_oversized.store(false, Ordering::Relaxed);
    }

    /// Whether trains are still sent.
    #[must_use]
    pub fn sends_trains(&self) -> bool {
        self.gso.load(Ordering::Relaxed)
    }

    /// The socket without remedies.
    pub fn raw(&self) -> &S {
        &self.raw
    }

    /// Send a datagram or a train, with all remedies.
    pub fn send(&self, message: Message<'_>, data: &[u8], segment_size: usize) -> SendOutcome {
        let segment_size = if data.len() > segment_size { segment_size } else { 0 };
        if segment_size > 0 {
            if !self.sends_trains() || self.is_oversized(message.to, segment_size) {
                return self.pieces(message, data, segment_size, 1, &mut { WAITS });
            }
            let segments = data.len().div_ceil(segment_size);
            if data.len() > MAX_TRAIN_BYTES || segments > self.max_segments.load(Ordering::Relaxed) {
                return self.trains(message, data, segment_size, &mut { WAITS });
            }
        }
        match self.raw.attempt(message, data, segment_size) {
            Ok(()) => SendOutcome::default(),
            Err(error) => self.settle(error, message, data, segment_size, &mut { WAITS }),
        }
    }

    /// Send in trains that are within the limits.
    fn trains(&self, message: Message<'_>, data: &[u8], segment_size: usize, waits: &mut u32) -> SendOutcome {
        let most = self.max_segments.load(Ordering::Relaxed).min(MAX_TRAIN_BYTES / segment_size).max(1);
        self.pieces(message, data, segment_size, most, waits)
    }

    fn pieces(
        &self,
        mut message: Message<'_>,
        data: &[u8],
        segment_size: usize,
        count: usize,
        waits: &mut u32,
    ) -> SendOutcome {
        let mut outcome = SendOutcome::default();
        for piece in data.chunks(segment_size * count) {
            let segment_size = if piece.len() > segment_size { segment_size } else { 0 };
            if let Err(error) = self.raw.attempt(message, piece, segment_size) {
                let settled = self.settle(error, message, piece, segment_size, waits);
                outcome.dropped |= settled.dropped;
                outcome.source_rejected |= settled.source_rejected;
                if outcome.source_rejected {
                    message.source = None;
                }
            }
        }
        outcome
    }

    /// Apply the remedies, in order, to a message whose last attempt failed.
    fn settle(
        &self,
        mut error: SendError,
        message: Message<'_>,
        data: &[u8],
        segment_size: usize,
        waits: &mut u32,
    ) -> SendOutcome {
        for _ in 0..SEND_ATTEMPTS {
            let is_transient = error == SendError::Refused || error == SendError::NoRoom && self.wait(waits);
            if !is_transient {
                break;
            }
            match self.raw.attempt(message, data, segment_size) {
                Ok(()) => return SendOutcome::default(),
                Err(other) => error = other,
            }
        }
        if message.source.is_some() && matches!(error, SendError::Source | SendError::Invalid) {
            let unpinned = Message { source: None, ..message };
            if self.raw.attempt(unpinned, data, segment_size).is_ok() {
                return SendOutcome { source_rejected: true, dropped: false };
            }
        }
        if segment_size > 0 && matches!(error, SendError::Device | SendError::TooLong | SendError::Invalid) {
            return self.give_up_train(error, message, data, segment_size, waits);
        }
        SendOutcome { source_rejected: false, dropped: true }
    }

    fn give_up_train(
        &self,
        error: SendError,
        message: Message<'_>,
        data: &[u8],
        segment_size: usize,
        waits: &mut u32,
    ) -> SendOutcome {
        if error == SendError::Invalid && data.len().div_ceil(segment_size) > OLD_MAX_SEGMENTS {
            self.max_segments.store(OLD_MAX_SEGMENTS, Ordering::Relaxed);
            return self.trains(message, data, segment_size, waits);
        }
        if error == SendError::Device {
            self.turn_gso_off();
        } else if error == SendError::TooLong || self.exceeds_path(message.to, segment_size) {
            self.remember_oversized(*message.to, segment_size);
        } else {
            let outcome = self.pieces(message, data, segment_size, 1, waits);
            if !outcome.dropped {
                self.turn_gso_off();
            }
            return outcome;
        }
        self.pieces(message, data, segment_size, 1, waits)
    }

    fn turn_gso_off(&self) {
        self.gso.store(false, Ordering::Relaxed);
    }

    fn wait(&self, waits: &mut u32) -> bool {
        let Some(left) = waits.checked_sub(1) else { return false };
        *waits = left;
        self.raw.wait_for_room();
        true
    }

    fn exceeds_path(&self, to: &SocketAddr, segment_size: usize) -> bool {
        let headers = if to.is_ipv6() { 48 } else { 28 };
        self.raw.path_mtu(to).is_some_and(|mtu| segment_size + headers > mtu)
    }

    fn is_oversized(&self, to: &SocketAddr, segment_size: usize) -> bool {
        if !self.has_oversized.load(Ordering::Relaxed) {
            return false;
        }
        let mut oversized = self.lock_oversized();
        match oversized.get_mut(to) {
            Some((size, left)) if segment_size >= *size => {
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

    fn remember_oversized(&self, to: SocketAddr, segment_size: usize) {
        let mut oversized = self.lock_oversized();
        if oversized.len() >= OVERSIZED_LIMIT {
            oversized.clear();
        }
        oversized.insert(to, (segment_size, OVERSIZED_TRAINS));
        self.has_oversized.store(true, Ordering::Relaxed);
    }

    fn lock_oversized(&self) -> MutexGuard<'_, Oversized> {
        self.oversized.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::{Cell, RefCell};

    /// The calls that a fake kernel received, and the datagrams that it sent.
    #[derive(Default)]
    struct Seen {
        sent: RefCell<Vec<Vec<u8>>>,
        attempts: Cell<usize>,
        waits: Cell<usize>,
        mtu: Cell<Option<usize>>,
    }

    /// A kernel that fails according to a function of earlier calls, the message, its length and its segment size.
    struct Fake<F>(F, Seen);

    impl<F: Fn(&Seen, Message<'_>, usize, usize) -> Option<SendError>> RawSocket for Fake<F> {
        fn attempt(&self, message: Message<'_>, data: &[u8], segment_size: usize) -> Result<(), SendError> {
            let Self(fails, seen) = self;
            seen.attempts.set(seen.attempts.get() + 1);
            if let Some(error) = fails(seen, message, data.len(), segment_size) {
                return Err(error);
            }
            let size = if segment_size == 0 { data.len() } else { segment_size };
            seen.sent.borrow_mut().extend(data.chunks(size).map(<[u8]>::to_vec));
            Ok(())
        }
        fn wait_for_room(&self) {
            self.1.waits.set(self.1.waits.get() + 1);
        }
        fn path_mtu(&self, _: &SocketAddr) -> Option<usize> {
            self.1.mtu.get()
        }
    }

    fn socket<F: Fn(&Seen, Message<'_>, usize, usize) -> Option<SendError>>(fails: F) -> RetryingSender<Fake<F>> {
        let seen = Seen::default();
        seen.mtu.set(Some(1500));
        RetryingSender::new(Fake(fails, seen), true)
    }

    const TO: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9);

    fn train() -> (Vec<u8>, Vec<Vec<u8>>) {
        let data: Vec<u8> = (0..100u8).flat_map(|number| [number; 10]).chain([7; 4]).collect();
        let datagrams = data.chunks(10).map(<[u8]>::to_vec).collect();
        (data, datagrams)
    }

    fn send<S: RawSocket>(socket: &RetryingSender<S>, source: Option<&Source>, data: &[u8]) -> SendOutcome {
        socket.send(Message { to: &TO, source, tos: 0 }, data, 10)
    }

    #[test]
    fn a_device_that_cannot_segment_ends_trains_without_loss() {
        let socket = socket(|_, _, _, segment_size| (segment_size > 0).then_some(SendError::Device));
        let (data, datagrams) = train();
        assert_eq!(send(&socket, None, &data), SendOutcome::default());
        assert_eq!(*socket.raw().1.sent.borrow(), datagrams);
        assert!(!socket.sends_trains());
    }

    #[test]
    fn an_older_kernel_gets_trains_of_64() {
        let socket = socket(|_, _, length, segment_size| {
            (segment_size > 0 && length.div_ceil(segment_size) > 64).then_some(SendError::Invalid)
        });
        let (data, datagrams) = train();
        assert_eq!(send(&socket, None, &data), SendOutcome::default());
        assert_eq!(*socket.raw().1.sent.borrow(), datagrams);
        assert!(socket.sends_trains(), "only the limit was exceeded");
        let before = socket.raw().1.attempts.get();
        send(&socket, None, &data);
        assert_eq!(socket.raw().1.attempts.get() - before, 2, "64 and the rest, without another failure");
    }

    #[test]
    fn one_datagram_is_never_sent_as_a_train() {
        let segments = RefCell::new(Vec::new());
        let socket = socket(|_, _, length, segment_size| {
            segments.borrow_mut().push((length, segment_size));
            None
        });
        send(&socket, None, &[0; 10]);
        send(&socket, None, &[0; 7]);
        send(&socket, None, &[0; 1290]);
        assert_eq!(*segments.borrow(), [(10, 0), (7, 0), (1280, 10), (10, 0)]);
    }

    #[test]
    fn a_kernel_without_gso_gets_single_datagrams() {
        let seen = Seen::default();
        let socket = RetryingSender::new(
            Fake(|_: &Seen, _: Message<'_>, _, segment_size| (segment_size > 0).then_some(SendError::Other), seen),
            false,
        );
        let (data, datagrams) = train();
        assert_eq!(send(&socket, None, &data), SendOutcome::default());
        assert_eq!(*socket.raw().1.sent.borrow(), datagrams);
    }

    #[test]
    fn a_narrow_path_gets_single_datagrams_until_routes_change() {
        let socket = socket(|_, _, _, segment_size| (segment_size > 0).then_some(SendError::TooLong));
        let (data, datagrams) = train();
        assert_eq!(send(&socket, None, &data), SendOutcome::default());
        assert_eq!(*socket.raw().1.sent.borrow(), datagrams);
        assert!(socket.sends_trains());
        let before = socket.raw().1.attempts.get();
        send(&socket, None, &data);
        assert_eq!(socket.raw().1.attempts.get() - before, datagrams.len(), "no train was tried");
        socket.forget_paths();
        send(&socket, None, &data);
        assert_eq!(socket.raw().1.attempts.get() - before, 2 * datagrams.len() + 1, "a train was tried again");
    }

    #[test]
    fn a_narrow_path_is_tried_again_after_a_thousand_trains() {
        let tried = Cell::new(0);
        let socket = socket(|_, _, _, segment_size| {
            tried.set(tried.get() + usize::from(segment_size > 0));
            (segment_size > 0).then_some(SendError::TooLong)
        });
        let data = train().0;
        for _ in 0..=OVERSIZED_TRAINS {
            send(&socket, None, &data);
        }
        assert_eq!(tried.get(), 1);
        send(&socket, None, &data);
        assert_eq!(tried.get(), 2);
    }

    #[test]
    fn a_limit_that_another_thread_lowered_is_applied() {
        let socket = socket(|_, _, length, segment_size| {
            (segment_size > 0 && length.div_ceil(segment_size) > 64).then_some(SendError::Invalid)
        });
        let (data, datagrams) = train();
        socket.max_segments.store(OLD_MAX_SEGMENTS, Ordering::Relaxed);
        let message = Message { to: &TO, source: None, tos: 0 };
        assert_eq!(socket.settle(SendError::Invalid, message, &data, 10, &mut { WAITS }), SendOutcome::default());
        assert_eq!(*socket.raw().1.sent.borrow(), datagrams);
        assert!(socket.sends_trains(), "the train was too long, but the socket can send trains");
    }

    #[test]
    fn a_kernel_that_refuses_trains_as_invalid_is_distinguished_from_a_narrow_path() {
        let socket = socket(|_, _, _, segment_size| (segment_size > 0).then_some(SendError::Invalid));
        let (data, datagrams) = train();
        socket.raw().1.mtu.set(Some(20));
        send(&socket, None, &data);
        assert!(socket.sends_trains(), "10 bytes and the headers exceed the path");
        socket.forget_paths();
        socket.raw().1.mtu.set(None);
        socket.raw().1.sent.borrow_mut().clear();
        assert_eq!(send(&socket, None, &data), SendOutcome::default());
        assert_eq!(*socket.raw().1.sent.borrow(), datagrams);
        assert!(!socket.sends_trains());
    }

    #[test]
    fn the_wait_for_room_is_limited_for_the_whole_message() {
        let socket = socket(|seen, _, _, _| (seen.waits.get() < 3).then_some(SendError::NoRoom));
        let (data, datagrams) = train();
        assert_eq!(send(&socket, None, &data), SendOutcome::default());
        assert_eq!(*socket.raw().1.sent.borrow(), datagrams);
        let full = self::socket(|_, _, _, _| Some(SendError::NoRoom));
        assert!(send(&full, None, &data).dropped);
        assert_eq!(full.raw().1.waits.get(), WAITS as usize);
    }

    #[test]
    fn a_late_refusal_does_not_drop_the_message() {
        let socket = socket(|seen, _, _, _| (seen.attempts.get() == 1).then_some(SendError::Refused));
        let (data, datagrams) = train();
        assert_eq!(send(&socket, None, &data), SendOutcome::default());
        assert_eq!(*socket.raw().1.sent.borrow(), datagrams);
    }

    #[test]
    fn a_rejected_source_is_left_out_and_reported() {
        let socket = socket(|_, message, _, _| message.source.map(|_| SendError::Source));
        let (data, datagrams) = train();
        let source = Source::new(&[1; 12]);
        let outcome = send(&socket, source.as_ref(), &data);
        assert_eq!(outcome, SendOutcome { source_rejected: true, dropped: false });
        assert_eq!(*socket.raw().1.sent.borrow(), datagrams);
    }

    #[test]
    fn an_error_without_remedy_drops_at_once() {
        let socket = socket(|_, _, _, _| Some(SendError::Other));
        assert!(send(&socket, None, &train().0).dropped);
        assert_eq!(socket.raw().1.attempts.get(), 1);
    }
}

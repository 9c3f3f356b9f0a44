//! Twin: wyrmhole/net/udp_socket.py.
//!
//! What is done when a send fails. `sendmsg` is all or nothing, so after an error the whole message is still unsent, and
//! each remedy may send it again without making duplicates. The same, in the same order, as in the twin:
//!
//! - No room: wait, 10 ms at most for all of one send, then drop.
//! - Refused: the answer to an earlier datagram, told late; once more.
//! - An error that a pinned source can cause: once more without; if that works, the source was to blame, and the caller
//!   is told.
//! - EIO with a train: the device below cannot segment or checksum. No more trains on this socket.
//! - EMSGSIZE with a train: its datagrams exceed the path MTU. Single datagrams get through, as IP fragments;
//!   remembered for that destination, for a thousand trains.
//! - EINVAL with a train: more than 64 datagrams on an older kernel (the limit is lowered), or the same as EMSGSIZE on
//!   an older kernel (the path MTU tells), or a kernel that refuses trains: single datagrams, and if these pass, no
//!   more trains.
//! - Anything else: dropped.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::edges::SendOutcome;
use crate::peer::Source;

/// 65,535 less IPv6, UDP and tagged Ethernet headers: a longer one the kernel cuts up right away.
pub const MAX_TRAIN_BYTES: usize = 65_469;
/// Datagrams of a train since Linux 6.9; before, 64.
pub const MAX_SEGMENTS: usize = 128;
const OLD_MAX_SEGMENTS: usize = 64;
const WAITS: u32 = 10;
const SEND_ATTEMPTS: u32 = 12;
const OVERSIZED_TRAINS: u32 = 1000;
const OVERSIZED_LIMIT: usize = 1024;

/// Destinations whose path is narrower than the trains: size, and trains until it is tried again.
type Oversized = HashMap<SocketAddr, (usize, u32)>;

/// Why a send failed, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// EAGAIN: no room now.
    NoRoom,
    /// ECONNREFUSED: about an earlier datagram.
    Refused,
    /// EMSGSIZE.
    TooLong,
    /// EINVAL, which a source can cause too.
    Invalid,
    /// EIO.
    Device,
    /// Another error that a source can cause.
    Source,
    /// No remedy.
    Other,
}

/// A message on its way.
#[derive(Clone, Copy)]
#[allow(missing_docs)]
pub struct Message<'a> {
    pub to: &'a SocketAddr,
    pub source: Option<&'a Source>,
    pub tos: u8,
}

/// A socket as the kernel has it.
pub trait RawSocket {
    /// Send one datagram (`segment_size` 0) or a train.
    ///
    /// # Errors
    /// Nothing was sent.
    fn attempt(&self, message: Message<'_>, data: &[u8], segment_size: usize) -> Result<(), SendError>;

    /// Wait a little for room.
    fn wait_for_room(&self);

    /// The MTU of the route to an address; None: not told.
    fn path_mtu(&self, to: &SocketAddr) -> Option<usize>;
}

/// A socket with remedies; workers and the control thread share it.
pub struct RetryingSender<S> {
    raw: S,
    gso: AtomicBool,
    max_segments: AtomicUsize,
    oversized: Mutex<Oversized>,
    has_oversized: AtomicBool,
}

impl<S: RawSocket> RetryingSender<S> {
    /// `gso`: whether trains may be sent.
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

    /// The socket itself.
    pub fn raw(&self) -> &S {
        &self.raw
    }

    /// Send, whatever it takes.
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

    /// In trains within the limits.
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

    /// The remedies, in order, for a message whose last attempt failed.
    fn settle(
        &self,
        mut error: SendError,
        message: Message<'_>,
        data: &[u8],
        segment_size: usize,
        waits: &mut u32,
    ) -> SendOutcome {
        for _ in 0..SEND_ATTEMPTS {
            let is_passing = error == SendError::Refused || error == SendError::NoRoom && self.wait(waits);
            if !is_passing {
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

    /// What a kernel was asked, and what it sent.
    #[derive(Default)]
    struct Seen {
        sent: RefCell<Vec<Vec<u8>>>,
        attempts: Cell<usize>,
        waits: Cell<usize>,
        mtu: Cell<Option<usize>>,
    }

    /// A kernel that fails as told: by what it saw, the message, its length and segment size.
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
    fn a_device_that_cannot_segment_ends_trains_and_loses_none() {
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
        assert!(socket.sends_trains(), "the limit was to blame, not the trains");
        let before = socket.raw().1.attempts.get();
        send(&socket, None, &data);
        assert_eq!(socket.raw().1.attempts.get() - before, 2, "64 and the rest, without asking again");
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
    fn a_kernel_without_the_option_never_gets_it() {
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
    fn a_narrow_path_gets_fragments_and_is_remembered_for_a_while() {
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
    fn who_is_late_to_learn_of_the_older_limit_keeps_to_it() {
        let socket = socket(|_, _, length, segment_size| {
            (segment_size > 0 && length.div_ceil(segment_size) > 64).then_some(SendError::Invalid)
        });
        let (data, datagrams) = train();
        socket.max_segments.store(OLD_MAX_SEGMENTS, Ordering::Relaxed);
        let message = Message { to: &TO, source: None, tos: 0 };
        assert_eq!(socket.settle(SendError::Invalid, message, &data, 10, &mut { WAITS }), SendOutcome::default());
        assert_eq!(*socket.raw().1.sent.borrow(), datagrams);
        assert!(socket.sends_trains(), "another thread's train was too long, not this socket unable");
    }

    #[test]
    fn a_kernel_that_refuses_trains_as_invalid_is_told_from_a_narrow_path() {
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
    fn a_full_socket_is_waited_for_a_little_and_once_for_all_of_a_message() {
        let socket = socket(|seen, _, _, _| (seen.waits.get() < 3).then_some(SendError::NoRoom));
        let (data, datagrams) = train();
        assert_eq!(send(&socket, None, &data), SendOutcome::default());
        assert_eq!(*socket.raw().1.sent.borrow(), datagrams);
        let full = self::socket(|_, _, _, _| Some(SendError::NoRoom));
        assert!(send(&full, None, &data).dropped);
        assert_eq!(full.raw().1.waits.get(), WAITS as usize);
    }

    #[test]
    fn a_late_refusal_is_no_reason_to_drop() {
        let socket = socket(|seen, _, _, _| (seen.attempts.get() == 1).then_some(SendError::Refused));
        let (data, datagrams) = train();
        assert_eq!(send(&socket, None, &data), SendOutcome::default());
        assert_eq!(*socket.raw().1.sent.borrow(), datagrams);
    }

    #[test]
    fn a_source_that_went_away_is_left_out_and_told() {
        let socket = socket(|_, message, _, _| message.source.map(|_| SendError::Source));
        let (data, datagrams) = train();
        let source = Source::new(&[1; 12]);
        let outcome = send(&socket, source.as_ref(), &data);
        assert_eq!(outcome, SendOutcome { source_rejected: true, dropped: false });
        assert_eq!(*socket.raw().1.sent.borrow(), datagrams);
    }

    #[test]
    fn what_has_no_remedy_is_dropped_at_once() {
        let socket = socket(|_, _, _, _| Some(SendError::Other));
        assert!(send(&socket, None, &train().0).dropped);
        assert_eq!(socket.raw().1.attempts.get(), 1);
    }
}

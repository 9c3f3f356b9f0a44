//! Twin: wyrmhole/datapath/keypair.py.
//!
//! A session's keys, and the three places a peer has for them (whitepaper 6.3).
//!
//! previous still opens what was under way when the key changed; current seals and opens; next is a responder's key
//! that waits for its first packet, which proves that the other side has it too (5.4.5).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::aead::{Aead, TransportCipher};
use crate::peer::EnginePeer;
use crate::replay::ReplayWindow;

/// What the control thread installs; see `wyrmhole.protocol.data_plane.KeypairParams`. Times are boottime nanoseconds.
#[derive(Clone, Copy)]
#[allow(missing_docs)]
pub struct KeypairParams {
    pub local_index: u32,
    pub remote_index: u32,
    pub is_initiator: bool,
    pub rekey_send_at: u64,
    pub rekey_receive_at: u64,
    pub reject_at: u64,
    pub send_until: u64,
    pub rekey_after_messages: u64,
    pub reject_after_messages: u64,
}

/// One session. Counters are taken while the peer's state is locked; sealing and opening need no lock.
pub struct Keypair {
    /// Whose it is.
    pub peer: Arc<EnginePeer>,
    /// Indices, times and numbers of messages.
    pub params: KeypairParams,
    /// Seals.
    pub send: Box<dyn TransportCipher>,
    /// Opens.
    pub receive: Box<dyn TransportCipher>,
    /// What was received.
    pub window: Mutex<ReplayWindow>,
    /// The next nonce.
    send_counter: AtomicU64,
    /// Nothing more is sent under it (the static key changed).
    sending_expired: AtomicBool,
    /// It fell out of its place: a worker that still has it must not use it.
    retired: AtomicBool,
    rekey_asked: AtomicBool,
}

impl Keypair {
    /// A fresh session.
    pub fn new(
        peer: Arc<EnginePeer>,
        params: KeypairParams,
        aead: &dyn Aead,
        send: &[u8; 32],
        receive: &[u8; 32],
    ) -> Self {
        Self {
            peer,
            params,
            send: aead.key(send),
            receive: aead.key(receive),
            window: Mutex::default(),
            send_counter: AtomicU64::new(0),
            sending_expired: AtomicBool::new(false),
            retired: AtomicBool::new(false),
            rekey_asked: AtomicBool::new(false),
        }
    }

    /// Whether a packet may leave under it at this time.
    pub fn can_send(&self, now: u64) -> bool {
        now < self.params.send_until.min(self.params.reject_at)
            && self.sent() < self.params.reject_after_messages
            && !self.sending_expired.load(Ordering::Relaxed)
    }

    /// Nonces given out so far.
    pub fn sent(&self) -> u64 {
        self.send_counter.load(Ordering::Relaxed)
    }

    /// Take up to `count` nonces; returns the first and how many. The peer's state is locked, so nobody else takes any.
    pub fn take_nonces(&self, count: usize) -> (u64, usize) {
        let first = self.sent();
        let left = self.params.reject_after_messages.saturating_sub(first);
        let taken = left.min(count as u64);
        self.send_counter.fetch_add(taken, Ordering::Relaxed);
        (first, taken as usize)
    }

    /// Whether a message that was just sent under it, a keepalive included, asks for another key.
    pub fn wants_rekey(&self, now: u64) -> bool {
        now >= self.params.rekey_send_at || self.sent() > self.params.rekey_after_messages
    }

    /// True for the first caller since `expect_rekey`.
    pub fn ask_rekey(&self) -> bool {
        !self.rekey_asked.swap(true, Ordering::Relaxed)
    }

    /// The question was not passed on, or not acted on: it may be asked again.
    pub fn expect_rekey(&self) {
        self.rekey_asked.store(false, Ordering::Relaxed);
    }

    /// Nothing more is sent under it.
    pub fn expire_sending(&self) {
        self.sending_expired.store(true, Ordering::Relaxed);
    }

    /// Whether it still has a place.
    pub fn is_live(&self) -> bool {
        !self.retired.load(Ordering::Acquire)
    }
}

/// previous, current and next. What the methods return fell out: retired, to be taken from the index table.
#[derive(Default)]
#[allow(missing_docs)]
pub struct Keypairs {
    pub previous: Option<Arc<Keypair>>,
    pub current: Option<Arc<Keypair>>,
    pub next: Option<Arc<Keypair>>,
}

/// Keypairs that lost their place, at most three.
pub type Dropped = [Option<Arc<Keypair>>; 3];

impl Keypairs {
    /// Whether a packet may leave at this time.
    #[must_use]
    pub fn can_send(&self, now: u64) -> bool {
        self.current.as_ref().is_some_and(|keypair| keypair.can_send(now))
    }

    /// It becomes current; a next one, which is newer than the present current, becomes previous.
    pub fn install_initiator(&mut self, keypair: Arc<Keypair>) -> Dropped {
        let mut dropped = [self.previous.take(), None, None];
        if self.next.is_some() {
            dropped[1] = self.current.take();
            self.previous = self.next.take();
        } else {
            self.previous = self.current.take();
        }
        self.current = Some(keypair);
        retire(dropped)
    }

    /// It becomes next, until its first packet.
    pub fn install_responder(&mut self, keypair: Arc<Keypair>) -> Dropped {
        retire([self.next.replace(keypair), self.previous.take(), None])
    }

    /// The first authenticated packet under next arrived.
    pub fn confirm(&mut self) -> Dropped {
        let dropped = self.previous.take();
        self.previous = self.current.take();
        self.current = self.next.take();
        retire([dropped, None, None])
    }

    /// All three.
    pub fn clear(&mut self) -> Dropped {
        retire([self.previous.take(), self.current.take(), self.next.take()])
    }

    /// Nothing more is sent under current or next.
    pub fn expire_sending(&self) {
        for keypair in [&self.current, &self.next].into_iter().flatten() {
            keypair.expire_sending();
        }
    }
}

fn retire(dropped: Dropped) -> Dropped {
    for keypair in dropped.iter().flatten() {
        keypair.retired.store(true, Ordering::Release);
    }
    dropped
}

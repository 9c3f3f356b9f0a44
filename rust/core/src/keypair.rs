//! Twin: wyrmhole/datapath/keypair.py.
//!
//! A session's keypair, and the three slots that a peer has for keypairs (whitepaper 6.3).
//!
//! `previous` still opens packets that were in flight when the key changed. `current` seals and opens. `next` is a
//! responder's keypair until its first packet arrives, which proves that the initiator has it too (5.4.5).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::aead::{Aead, TransportCipher};
use crate::peer::EnginePeer;
use crate::replay::ReplayWindow;

/// The indices and limits of a session; see `wyrmhole.protocol.data_plane.KeypairParams`. Times are boottime
/// nanoseconds.
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

/// One session. Nonces are taken while the peer's state is locked; sealing and opening need no lock.
pub struct Keypair {
    /// The peer that has this session.
    pub peer: Arc<EnginePeer>,
    /// Indices, deadlines and message limits.
    pub params: KeypairParams,
    /// The cipher that seals.
    pub send: Box<dyn TransportCipher>,
    /// The cipher that opens.
    pub receive: Box<dyn TransportCipher>,
    /// The counters received.
    pub window: Mutex<ReplayWindow>,
    /// The next nonce.
    send_counter: AtomicU64,
    /// Nothing more is sent with this keypair, because the static key changed.
    sending_expired: AtomicBool,
    /// The keypair was dropped from its slot; a worker that still holds it must not use it.
    retired: AtomicBool,
    rekey_asked: AtomicBool,
}

impl Keypair {
    /// Create a session.
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

    /// Whether a packet may be sent with it at this time.
    pub fn can_send(&self, now: u64) -> bool {
        now < self.params.send_until.min(self.params.reject_at)
            && self.sent() < self.params.reject_after_messages
            && !self.sending_expired.load(Ordering::Relaxed)
    }

    /// The number of nonces taken so far.
    pub fn sent(&self) -> u64 {
        self.send_counter.load(Ordering::Relaxed)
    }

    /// Take up to `count` nonces. Returns the first nonce and their number. The peer's state is locked, so no other
    /// thread takes nonces.
    pub fn take_nonces(&self, count: usize) -> (u64, usize) {
        let first = self.sent();
        let left = self.params.reject_after_messages.saturating_sub(first);
        let taken = left.min(count as u64);
        self.send_counter.fetch_add(taken, Ordering::Relaxed);
        (first, taken as usize)
    }

    /// Whether to ask for another keypair, after a message was sent with this one, keepalives included.
    pub fn wants_rekey(&self, now: u64) -> bool {
        now >= self.params.rekey_send_at || self.sent() > self.params.rekey_after_messages
    }

    /// Mark the keypair as to be renewed. Returns true for the first call, and the first after `expect_rekey`.
    pub fn ask_rekey(&self) -> bool {
        !self.rekey_asked.swap(true, Ordering::Relaxed)
    }

    /// Allow `ask_rekey` again, because the request was not queued or not acted on.
    pub fn expect_rekey(&self) {
        self.rekey_asked.store(false, Ordering::Relaxed);
    }

    /// Send nothing more with it.
    pub fn expire_sending(&self) {
        self.sending_expired.store(true, Ordering::Relaxed);
    }

    /// Whether it is still in a slot.
    pub fn is_live(&self) -> bool {
        !self.retired.load(Ordering::Acquire)
    }
}

/// previous, current and next of one peer. The methods return the keypairs that they dropped, for the caller to remove
/// from the index table.
#[derive(Default)]
#[allow(missing_docs)]
pub struct Keypairs {
    pub previous: Option<Arc<Keypair>>,
    pub current: Option<Arc<Keypair>>,
    pub next: Option<Arc<Keypair>>,
}

/// Keypairs dropped from their slots, at most three.
pub type Dropped = [Option<Arc<Keypair>>; 3];

impl Keypairs {
    /// Whether a packet may be sent at this time.
    #[must_use]
    pub fn can_send(&self, now: u64) -> bool {
        self.current.as_ref().is_some_and(|keypair| keypair.can_send(now))
    }

    /// Make the keypair current. A `next`, which is newer than the old current, becomes previous.
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

    /// Make the keypair `next`, until its first packet arrives.
    pub fn install_responder(&mut self, keypair: Arc<Keypair>) -> Dropped {
        retire([self.next.replace(keypair), self.previous.take(), None])
    }

    /// Make `next` current, after its first authenticated packet.
    pub fn confirm(&mut self) -> Dropped {
        let dropped = self.previous.take();
        self.previous = self.current.take();
        self.current = self.next.take();
        retire([dropped, None, None])
    }

    /// Drop all three.
    pub fn clear(&mut self) -> Dropped {
        retire([self.previous.take(), self.current.take(), self.next.take()])
    }

    /// Send nothing more with current and next, because the static key changed.
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

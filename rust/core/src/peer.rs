//! Twin: wyrmhole/datapath/peer.py.
//!
//! One peer on the packet path: where it is, its keys, what waits for a key, and the marks the timers work by.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::drops::{DropReason, Drops};
use crate::keypair::Keypairs;
use crate::train_health::TrainHealth;

/// The local address and interface a datagram came to: the bytes of a PKTINFO control message, opaque here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    length: u8,
    bytes: [u8; Source::MAX],
}

impl Source {
    /// IPv6's has 20 bytes.
    pub const MAX: usize = 23;

    /// None: longer than any control message of that kind.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let mut source = Self { length: bytes.len() as u8, bytes: [0; Self::MAX] };
        source.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(source)
    }

    /// The bytes as they came.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

/// When things last happened (boottime nanoseconds, 0: nothing pending); see `wyrmhole.protocol.data_plane.Marks`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Marks {
    pub data_sent_since: u64,
    pub data_received_since: u64,
    pub last_data_received: u64,
    pub last_traversal: u64,
}

/// What is locked once for a batch of packets, never while they are sealed, opened or sent.
#[derive(Default)]
pub struct PeerState {
    /// None: not known yet.
    pub endpoint: Option<SocketAddr>,
    /// The sticky source address.
    pub source: Option<Source>,
    /// previous, current, next.
    pub keypairs: Keypairs,
    /// Packets that wait for a key, oldest first.
    pub staged: VecDeque<Box<[u8]>>,
    /// A thread is sending what was staged: later packets queue up behind it, so that none overtakes.
    pub flushing: bool,
    /// It left the tables: whoever still holds it keeps nothing for it.
    pub removed: bool,
    /// See [`Marks`].
    pub marks: Marks,
    /// Whether trains reach it.
    pub health: TrainHealth,
    /// `Tables::paths` when something authenticated last came from the present endpoint; 0: not yet.
    pub proven_path: u64,
    /// `Active` was said and nobody released it.
    pub active_reported: bool,
    /// `KeyWanted` was said.
    pub key_wanted_reported: bool,
    /// A `Roamed` waits in the queue; it reads the endpoint when it is taken.
    pub roamed_reported: bool,
}

impl PeerState {
    /// Where it is from here on. Another endpoint or source is another flow, which has to be proven again.
    pub fn set_endpoint(&mut self, endpoint: Option<SocketAddr>, source: Option<Source>) {
        if self.endpoint != endpoint || self.source != source {
            self.proven_path = 0;
        }
        (self.endpoint, self.source) = (endpoint, source);
    }

    /// Another source address is another flow.
    pub fn forget_source(&mut self) {
        if self.source.take().is_some() {
            self.proven_path = 0;
        }
    }
}

/// See the module. Shared by the tables, by keypairs and by batches under way.
pub struct EnginePeer {
    /// Its number in the device, never reused.
    pub id: u64,
    state: Mutex<PeerState>,
    tx_bytes: AtomicU64,
    rx_bytes: AtomicU64,
    /// Its public key, once the responder knows it.
    pub identity: OnceLock<[u8; 32]>,
    /// Made with the first drop: most peers have none.
    drops: OnceLock<Box<Drops>>,
}

impl EnginePeer {
    /// A peer without endpoint or keys.
    #[must_use]
    pub fn new(id: u64) -> Self {
        Self {
            id,
            state: Mutex::default(),
            tx_bytes: AtomicU64::new(0),
            rx_bytes: AtomicU64::new(0),
            identity: OnceLock::new(),
            drops: OnceLock::new(),
        }
    }

    /// The state, locked. A thread that panicked while it held the lock left nothing half done that matters.
    pub fn lock(&self) -> MutexGuard<'_, PeerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of authenticated messages that left.
    pub fn add_sent(&self, bytes: usize) {
        self.tx_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes of authenticated messages that came.
    pub fn add_received(&self, bytes: usize) {
        self.rx_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Packets to or from it died.
    pub fn add_drops(&self, reason: DropReason, count: usize) {
        self.drops.get_or_init(Box::default).add(reason, count);
    }

    /// The causes that occurred, with their names.
    pub fn drops(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.drops.get().into_iter().flat_map(|drops| drops.list())
    }

    /// (sent, received), as `wg show` counts.
    #[must_use]
    pub fn counters(&self) -> (u64, u64) {
        (self.tx_bytes.load(Ordering::Relaxed), self.rx_bytes.load(Ordering::Relaxed))
    }
}

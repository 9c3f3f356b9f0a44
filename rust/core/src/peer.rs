//! Twin: wyrmhole/datapath/peer.py.
//!
//! One peer on the packet path: its endpoint, its keypairs, its staged packets, and the marks of its timers.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::drops::{DropReason, Drops};
use crate::keypair::Keypairs;
use crate::train_health::TrainHealth;

/// The local address and interface at which a datagram arrived: the bytes of a PKTINFO control message, opaque here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    length: u8,
    bytes: [u8; Source::MAX],
}

impl Source {
    /// The most bytes kept; the longest control message of this kind, that of IPv6, has 20.
    pub const MAX: usize = 23;

    /// Copy the bytes of a control message. `None` if they are longer than any message of this kind.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let mut source = Self { length: bytes.len() as u8, bytes: [0; Self::MAX] };
        source.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(source)
    }

    /// The bytes of the control message.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

/// Timestamps for the timers (boottime nanoseconds, 0: nothing pending); see `wyrmhole.protocol.data_plane.Marks`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Marks {
    pub data_sent_since: u64,
    pub data_received_since: u64,
    pub last_data_received: u64,
    pub last_traversal: u64,
}

/// The locked part of a peer. It is locked once per batch of packets, and never while they are sealed, opened or sent.
#[derive(Default)]
pub struct PeerState {
    /// The outer address and port, if known.
    pub endpoint: Option<SocketAddr>,
    /// The sticky source address.
    pub source: Option<Source>,
    /// previous, current, next.
    pub keypairs: Keypairs,
    /// Packets that wait for a keypair, oldest first.
    pub staged: VecDeque<Box<[u8]>>,
    /// A thread is sending the staged packets: later packets are staged behind them, so that none overtakes.
    pub flushing: bool,
    /// The peer was removed from the tables: threads that still hold it must store nothing in it.
    pub removed: bool,
    /// See [`Marks`].
    pub marks: Marks,
    /// Whether trains reach the peer.
    pub health: TrainHealth,
    /// The value of `Tables::paths` when the last authenticated message came from the current endpoint; 0: none has
    /// come yet.
    pub proven_path: u64,
    /// `Active` was reported and not released.
    pub active_reported: bool,
    /// `KeyWanted` was reported.
    pub key_wanted_reported: bool,
    /// A `Roamed` is queued; the endpoint is read when it is taken.
    pub roamed_reported: bool,
}

impl PeerState {
    /// Set the endpoint and source. If they change, datagrams belong to another flow, which must be proven again.
    pub fn set_endpoint(&mut self, endpoint: Option<SocketAddr>, source: Option<Source>) {
        if self.endpoint != endpoint || self.source != source {
            self.proven_path = 0;
        }
        (self.endpoint, self.source) = (endpoint, source);
    }

    /// Forget the source address. Datagrams from another source belong to another flow.
    pub fn forget_source(&mut self) {
        if self.source.take().is_some() {
            self.proven_path = 0;
        }
    }
}

/// One peer on the packet path. Shared by the tables, by keypairs and by batches in progress.
pub struct EnginePeer {
    /// The peer's number in the device, never reused.
    pub id: u64,
    state: Mutex<PeerState>,
    tx_bytes: AtomicU64,
    rx_bytes: AtomicU64,
    /// The public key, once the responder knows it.
    pub identity: OnceLock<[u8; 32]>,
    /// Created at the first drop: most peers have none.
    drops: OnceLock<Box<Drops>>,
}

impl EnginePeer {
    /// Create a peer without endpoint and keypairs.
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

    /// Lock the state. Poisoning is ignored: a panic under the lock leaves no inconsistency that matters.
    pub fn lock(&self) -> MutexGuard<'_, PeerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Count bytes of authenticated messages that were sent.
    pub fn add_sent(&self, bytes: usize) {
        self.tx_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Count bytes of authenticated messages that were received.
    pub fn add_received(&self, bytes: usize) {
        self.rx_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Count dropped packets that came from the peer or were sent to it.
    pub fn add_drops(&self, reason: DropReason, count: usize) {
        self.drops.get_or_init(Box::default).add(reason, count);
    }

    /// The drop reasons that occurred, by name, with their counts.
    pub fn drops(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.drops.get().into_iter().flat_map(|drops| drops.list())
    }

    /// The bytes (sent, received), counted like in `wg show`.
    #[must_use]
    pub fn counters(&self) -> (u64, u64) {
        (self.tx_bytes.load(Ordering::Relaxed), self.rx_bytes.load(Ordering::Relaxed))
    }
}

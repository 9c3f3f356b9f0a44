//! Twin: wyrmhole/datapath/train.py.
//!
//! The memory that datagrams are sealed into: a few trains, each for one peer at a time.
//!
//! A train is equal datagrams back to back in one buffer, the last one maybe shorter: the shape that UDP segmentation
//! offload sends.

use std::sync::Arc;

use crate::messages::TRANSPORT_OVERHEAD;
use crate::peer::EnginePeer;

/// A single datagram may be longer than a train: whether it can be sent is the socket's to say.
const WIRE_BYTES: usize = 65_535 + 15 + TRANSPORT_OVERHEAD;

/// How long a train may get.
#[derive(Clone, Copy, Debug)]
pub struct TrainLimits {
    /// Datagrams.
    pub segments: usize,
    /// Bytes.
    pub bytes: usize,
}

impl Default for TrainLimits {
    /// What every kernel takes: `UDP_MAX_SEGMENTS` before Linux 6.9, and a UDP datagram over IPv4.
    fn default() -> Self {
        Self { segments: 64, bytes: 65_507 }
    }
}

/// Datagrams for one peer that leave together.
pub struct Train {
    /// None: empty.
    pub peer: Option<Arc<EnginePeer>>,
    /// Of all but the last.
    pub size: usize,
    /// Datagrams.
    pub count: usize,
    /// Bytes.
    pub length: usize,
    /// The outer type of service.
    pub tos: u8,
    closed: bool,
    wire: Box<[u8]>,
}

impl Train {
    /// Empty; the memory becomes real when it is written to.
    #[must_use]
    pub fn new() -> Self {
        let wire = vec![0; WIRE_BYTES].into_boxed_slice();
        Self { peer: None, size: 0, count: 0, length: 0, tos: 0, closed: false, wire }
    }

    /// Start over for a peer.
    pub fn begin(&mut self, peer: &Arc<EnginePeer>, size: usize, tos: u8) {
        self.peer = Some(Arc::clone(peer));
        (self.size, self.tos) = (size, tos);
        (self.count, self.length, self.closed) = (0, 0, false);
    }

    /// Whether it holds datagrams for this peer.
    #[must_use]
    pub fn is_for(&self, peer: &Arc<EnginePeer>) -> bool {
        self.peer.as_ref().is_some_and(|it| Arc::ptr_eq(it, peer))
    }

    /// Whether one more datagram of this size may join.
    #[must_use]
    pub fn takes(&self, size: usize, tos: u8, limits: TrainLimits) -> bool {
        size <= self.size
            && !self.closed
            && tos == self.tos
            && self.count < limits.segments
            && self.length + size <= limits.bytes
    }

    /// Room for one more datagram. A shorter one is the last.
    pub fn room(&mut self, size: usize) -> &mut [u8] {
        let at = self.length;
        self.count += 1;
        self.length += size;
        self.closed = size < self.size;
        &mut self.wire[at..at + size]
    }

    /// What was laid down so far.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.wire[..self.length]
    }

    /// The size for segmentation; 0 for a single datagram.
    #[must_use]
    pub fn segment_size(&self) -> usize {
        if self.count > 1 { self.size } else { 0 }
    }
}

impl Default for Train {
    fn default() -> Self {
        Self::new()
    }
}

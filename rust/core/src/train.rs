//! Twin: wyrmhole/datapath/train.py.
//!
//! Trains: the buffers into which datagrams are sealed, each for one peer at a time.
//!
//! A train is a GSO batch: datagrams of equal size, back to back in one buffer; the last one may be shorter. UDP
//! segmentation offload sends this layout with one call.

use std::sync::Arc;

use crate::ip::MAX_PACKET_SIZE;
use crate::messages::TRANSPORT_OVERHEAD;
use crate::peer::EnginePeer;

/// A single datagram may be longer than a train; the socket refuses it if it cannot be sent.
const WIRE_BYTES: usize = MAX_PACKET_SIZE + 15 + TRANSPORT_OVERHEAD;

/// The limits of a train.
#[derive(Clone, Copy, Debug)]
pub struct TrainLimits {
    /// The most datagrams.
    pub segments: usize,
    /// The most bytes.
    pub bytes: usize,
}

impl Default for TrainLimits {
    /// The limits that every kernel accepts: `UDP_MAX_SEGMENTS` before Linux 6.9, and a UDP datagram over IPv4.
    fn default() -> Self {
        Self { segments: 64, bytes: 65_507 }
    }
}

/// Datagrams for one peer that are sent together.
pub struct Train {
    /// The peer; `None` if the train is empty.
    pub peer: Option<Arc<EnginePeer>>,
    /// The size of all datagrams but the last.
    pub size: usize,
    /// The number of datagrams.
    pub count: usize,
    /// The number of bytes.
    pub length: usize,
    /// The outer type of service.
    pub tos: u8,
    closed: bool,
    wire: Box<[u8]>,
}

impl Train {
    /// Create an empty train. The kernel provides the memory only when it is first written.
    #[must_use]
    pub fn new() -> Self {
        let wire = vec![0; WIRE_BYTES].into_boxed_slice();
        Self { peer: None, size: 0, count: 0, length: 0, tos: 0, closed: false, wire }
    }

    /// Begin a new train for a peer.
    pub fn begin(&mut self, peer: &Arc<EnginePeer>, size: usize, tos: u8) {
        self.peer = Some(Arc::clone(peer));
        (self.size, self.tos) = (size, tos);
        (self.count, self.length, self.closed) = (0, 0, false);
    }

    /// Whether the train has datagrams for this peer.
    #[must_use]
    pub fn is_for(&self, peer: &Arc<EnginePeer>) -> bool {
        self.peer.as_ref().is_some_and(|own| Arc::ptr_eq(own, peer))
    }

    /// Whether one more datagram of this size fits.
    #[must_use]
    pub fn takes(&self, size: usize, tos: u8, limits: TrainLimits) -> bool {
        size <= self.size
            && !self.closed
            && tos == self.tos
            && self.count < limits.segments
            && self.length + size <= limits.bytes
    }

    /// Add one datagram, and return the room to write it to. A datagram shorter than the others is the last.
    pub fn room(&mut self, size: usize) -> &mut [u8] {
        let at = self.length;
        self.count += 1;
        self.length += size;
        self.closed = size < self.size;
        &mut self.wire[at..at + size]
    }

    /// The datagrams.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.wire[..self.length]
    }

    /// The segment size for the kernel; 0 for a single datagram.
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

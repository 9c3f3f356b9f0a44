//! Twin: wyrmhole/net/bind.py.
//!
//! What the two steps need from outside: a bind and a TUN. Called without any lock held.

use std::net::SocketAddr;

use crate::peer::Source;
use crate::tables::Tables;

/// What became of a send; see `wyrmhole.net.bind.SendOutcome`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SendOutcome {
    /// The pinned source address no longer works; sent without it.
    pub source_rejected: bool,
    /// Some or all datagrams were not sent.
    pub dropped: bool,
}

/// A piece of the receive slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Offset in the slot.
    pub at: u32,
    /// Bytes.
    pub length: u32,
}

impl Part {
    /// The bytes themselves.
    #[must_use]
    pub fn of(self, slot: &[u8]) -> &[u8] {
        &slot[self.at as usize..(self.at + self.length) as usize]
    }
}

/// One frame for the TUN: a virtio header, maybe with rewritten packet headers, then pieces of the slot.
#[derive(Clone, Copy)]
#[allow(missing_docs)]
pub struct Gather<'a> {
    pub header: &'a [u8],
    pub slot: &'a [u8],
    pub parts: &'a [Part],
}

/// What the two steps work with: the tables, the edges of one thread, and the time (boottime nanoseconds).
#[allow(missing_docs)]
pub struct Turn<'a, E> {
    pub tables: &'a Tables,
    pub edges: &'a mut E,
    pub now: u64,
}

/// A bind and a TUN.
pub trait Edges {
    /// Whether there is a bind.
    fn is_bound(&self) -> bool;

    /// Send one datagram (`segment_size` 0) or a train of equal ones, the last maybe shorter. Never loses a train for an
    /// offload that is refused.
    fn send(
        &mut self,
        to: &SocketAddr,
        source: Option<&Source>,
        data: &[u8],
        segment_size: usize,
        tos: u8,
    ) -> SendOutcome;

    /// Write one frame. False: it was lost, or refused as a super-packet.
    fn write(&mut self, frame: Gather<'_>) -> bool;

    /// Which super-packets the TUN takes now: TCP, UDP. May shrink after a refused write.
    fn offloads(&self) -> (bool, bool);
}

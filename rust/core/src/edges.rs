//! Twin: wyrmhole/net/bind.py.
//!
//! The edges that the two steps need: a bind and a TUN. Their methods are called without any lock held.

use std::net::SocketAddr;

use crate::peer::Source;
use crate::tables::Tables;

/// The outcome of a send; see `wyrmhole.net.bind.SendOutcome`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SendOutcome {
    /// The pinned source address no longer works; the datagrams were sent without it.
    pub source_rejected: bool,
    /// Some or all datagrams were not sent.
    pub dropped: bool,
}

/// A piece of the receive slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The offset in the slot.
    pub at: u32,
    /// The number of bytes.
    pub length: u32,
}

impl Part {
    /// The bytes of this piece.
    #[must_use]
    pub fn of(self, slot: &[u8]) -> &[u8] {
        &slot[self.at as usize..(self.at + self.length) as usize]
    }
}

/// One frame for the TUN: a virtio header, possibly with rewritten packet headers, then pieces of the slot.
#[derive(Clone, Copy)]
#[allow(missing_docs)]
pub struct Gather<'a> {
    pub header: &'a [u8],
    pub slot: &'a [u8],
    pub parts: &'a [Part],
}

/// The context of one turn: the tables, the edges of one thread, and the time (boottime nanoseconds).
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

    /// Send one datagram (`segment_size` 0), or a train of datagrams of equal size, of which the last may be shorter.
    /// If an offload is refused, the train is sent in another way.
    fn send(
        &mut self,
        to: &SocketAddr,
        source: Option<&Source>,
        data: &[u8],
        segment_size: usize,
        tos: u8,
    ) -> SendOutcome;

    /// Write one frame. Returns false if it was lost, or refused as a super-packet.
    fn write(&mut self, frame: Gather<'_>) -> bool;

    /// Whether the TUN accepts TCP and UDP super-packets. This may change after a refused write.
    fn offloads(&self) -> (bool, bool);
}

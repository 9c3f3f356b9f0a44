//! Twin: wyrmhole/datapath/reports.py.
//!
//! What goes up to the control thread: said once until answered, drained in batches, bounded.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::drops::DropReason;
use crate::gate::Queue;
use crate::handshake_queues::{HandshakeDatagram, HandshakeQueues};
use crate::ip::Address;
use crate::peer::EnginePeer;

/// A few for each of 65,536 peers is all there can be; this bound is against a control thread that stopped.
pub const MAX_REPORTS: usize = 1 << 16;

/// See `wyrmhole.protocol.data_plane` for each one's meaning.
#[allow(missing_docs)]
pub enum Report {
    KeyWanted(u64, Option<u32>),
    KeyConfirmed(u64, u32),
    KeypairsDropped(u64, [Option<u32>; 3]),
    /// Reads the endpoint when it is taken: many changes are one report.
    Roamed(Arc<EnginePeer>),
    Active(u64),
    TrainsLost(u64),
    /// The TUN's descriptor says that the interface is gone or broken; the control thread asks what it is.
    TunBroken,
    /// A UDP socket (its descriptor) gives nothing but errors.
    SocketBroken(i32),
    /// A message was dropped: cause, sender, the peer if it proved that it was one, its address inside.
    Refused(DropReason, SocketAddr, Option<u64>, Option<Address>),
    /// An initiation of an unknown public key: the key, and the sender.
    Stranger([u8; 32], SocketAddr),
    /// The engine answered the peer's initiation: sender, the session's index, when.
    Answered(u64, SocketAddr, u32, u64),
    /// The system refused a handshake message to the peer, with this errno.
    SendFailed(u64, i32),
    /// Every worker carried out its orders up to the question of this number; beyond the limit of a call.
    Applied(u64),
    /// The data path stopped for good.
    Failed(String),
}

#[derive(Default)]
struct Queues {
    reports: VecDeque<Report>,
    handshakes: HandshakeQueues,
    applied: Option<u64>,
}

impl Queues {
    fn has_some(&self) -> bool {
        self.applied.is_some() || !(self.reports.is_empty() && self.handshakes.is_empty())
    }
}

/// All queues. Whoever adds something later calls `must_announce` once and wakes the control thread if told to.
#[derive(Default)]
pub struct Reports {
    queues: Mutex<Queues>,
    has_some: AtomicBool,
    announced: AtomicBool,
}

impl Reports {
    /// False: the queue is full, so it was not said.
    pub fn push(&self, report: Report) -> bool {
        let mut queues = self.lock();
        if queues.reports.len() >= MAX_REPORTS {
            return false;
        }
        queues.reports.push_back(report);
        self.has_some.store(true, Ordering::SeqCst);
        true
    }

    /// All workers answered the question of this number, and so all former ones. Never refused: it takes no place.
    pub fn push_applied(&self, number: u64) {
        let mut queues = self.lock();
        queues.applied = queues.applied.max(Some(number));
        self.has_some.store(true, Ordering::SeqCst);
    }

    /// See `HandshakeQueues::push`.
    ///
    /// # Errors
    /// Why it is dropped.
    pub fn push_handshake(&self, queue: Queue, handshake: HandshakeDatagram, now: u64) -> Result<(), DropReason> {
        let mut queues = self.lock();
        queues.handshakes.push(queue, handshake, now)?;
        self.has_some.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Oldest first, handshakes last: they are the work that a flood can make much of.
    pub fn take(&self, limit: usize) -> (Vec<Report>, Vec<HandshakeDatagram>) {
        // The flag falls first: what is queued after that is announced again, what before is taken here.
        self.announced.store(false, Ordering::SeqCst);
        let mut queues = self.lock();
        let count = queues.reports.len().min(limit);
        let mut reports: Vec<Report> = queues.reports.drain(..count).collect();
        let left = limit - reports.len();
        let handshakes = (0..left).map_while(|_| queues.handshakes.pop()).collect();
        reports.extend(queues.applied.take().map(Report::Applied));
        self.has_some.store(queues.has_some(), Ordering::SeqCst);
        (reports, handshakes)
    }

    /// True once when there is something that the control thread was not told of.
    pub fn must_announce(&self) -> bool {
        self.has_some.load(Ordering::SeqCst) && !self.announced.swap(true, Ordering::SeqCst)
    }

    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

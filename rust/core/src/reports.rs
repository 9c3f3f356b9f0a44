//! Twin: wyrmhole/datapath/reports.py.
//!
//! Reports to the control thread: each made once until it is answered, taken in batches, bounded.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::drops::DropReason;
use crate::gate::Queue;
use crate::handshake_queues::{HandshakeDatagram, HandshakeQueues};
use crate::ip::Address;
use crate::peer::EnginePeer;

/// The bound takes effect only if the control thread stops: every kind of report is made once per peer until it is
/// answered.
pub const MAX_REPORTS: usize = 1 << 16;

/// A report; `wyrmhole.protocol.data_plane` has the meaning of each.
#[allow(missing_docs)]
pub enum Report {
    KeyWanted(u64, Option<u32>),
    KeyConfirmed(u64, u32),
    KeypairsDropped(u64, [Option<u32>; 3]),
    /// The endpoint is read when the report is taken: many changes are one report.
    Roamed(Arc<EnginePeer>),
    Active(u64),
    TrainsLost(u64),
    /// The TUN's descriptor reports an error; the control thread finds out whether the interface is gone.
    TunBroken,
    /// A UDP socket, given by its descriptor, returns nothing but errors.
    SocketBroken(i32),
    /// A message was dropped: reason, sender, the peer if it was authenticated, the inner source address.
    Refused(DropReason, SocketAddr, Option<u64>, Option<Address>),
    /// An initiation had an unknown public key: the key, and the sender.
    Stranger([u8; 32], SocketAddr),
    /// The engine answered the peer's initiation: peer, sender, the session's index, the time, our identity.
    Answered(u64, SocketAddr, u32, u64, u64),
    /// The kernel refused to send a handshake message to the peer, with this errno.
    SendFailed(u64, i32),
    /// Every worker has carried out its orders up to the question with this number. Not counted in the limit of `take`.
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

/// All queues. A thread that has added reports calls `must_announce` once, and wakes the control thread if that returns
/// true.
#[derive(Default)]
pub struct Reports {
    queues: Mutex<Queues>,
    has_some: AtomicBool,
    announced: AtomicBool,
}

impl Reports {
    /// Queue a report. Returns false if the queue is full.
    pub fn push(&self, report: Report) -> bool {
        let mut queues = self.lock();
        if queues.reports.len() >= MAX_REPORTS {
            return false;
        }
        queues.reports.push_back(report);
        self.has_some.store(true, Ordering::SeqCst);
        true
    }

    /// Record that all workers answered the question with this number, and so all earlier ones. Never refused, because
    /// only the greatest number is kept.
    pub fn push_applied(&self, number: u64) {
        let mut queues = self.lock();
        queues.applied = queues.applied.max(Some(number));
        self.has_some.store(true, Ordering::SeqCst);
    }

    /// Queue a handshake message; see `HandshakeQueues::push`.
    ///
    /// # Errors
    /// The reason for dropping the message.
    pub fn push_handshake(&self, queue: Queue, handshake: HandshakeDatagram, now: u64) -> Result<(), DropReason> {
        let mut queues = self.lock();
        queues.handshakes.push(queue, handshake, now)?;
        self.has_some.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Take up to `limit` reports, oldest first. Handshake messages come last, because a flood can make many of them.
    pub fn take(&self, limit: usize) -> (Vec<Report>, Vec<HandshakeDatagram>) {
        // The flag is cleared first: a report queued later is announced again, an earlier one is taken here.
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

    /// Whether to wake the control thread: true once while there are reports that it was not woken for.
    pub fn must_announce(&self) -> bool {
        self.has_some.load(Ordering::SeqCst) && !self.announced.swap(true, Ordering::SeqCst)
    }

    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

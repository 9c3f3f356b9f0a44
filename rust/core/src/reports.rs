//! Twin: wyrmhole/datapath/reports.py.
//!
//! What goes up to the control thread: said once until answered, drained in batches, bounded.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::constants::{MAX_QUEUED_HANDSHAKES, UNDER_LOAD_HOLD, UNDER_LOAD_QUEUE_DEPTH};
use crate::drops::DropReason;
use crate::gate::Queue;
use crate::ip::Address;
use crate::peer::{EnginePeer, Source};
use crate::quiet_sources::QuietSources;

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
    /// The system refused a handshake message to the peer, with this errno.
    SendFailed(u64, i32),
    /// Every worker carried out its orders up to the question of this number; beyond the limit of a call.
    Applied(u64),
    /// The data path stopped for good.
    Failed(String),
}

/// A message of type 1, 2 or 3 that passed the gate.
pub struct HandshakeDatagram {
    /// The message.
    pub data: Box<[u8]>,
    /// Whence it came.
    pub from: SocketAddr,
    /// Where it arrived.
    pub source: Option<Source>,
    /// How many messages of types 1 and 2 waited behind it when it was taken; replies to us do not count as load.
    pub queue_depth: usize,
}

#[derive(Default)]
struct Queues {
    reports: VecDeque<Report>,
    replies: VecDeque<HandshakeDatagram>,
    proven: VecDeque<HandshakeDatagram>,
    others: VecDeque<HandshakeDatagram>,
    applied: Option<u64>,
    quiet_sources: QuietSources,
    selects_until: u64,
}

impl Queues {
    fn has_some(&self) -> bool {
        self.applied.is_some()
            || !(self.reports.is_empty() && self.replies.is_empty() && self.proven.is_empty() && self.others.is_empty())
    }

    fn waiting(&mut self, queue: Queue) -> &mut VecDeque<HandshakeDatagram> {
        match queue {
            Queue::Replies => &mut self.replies,
            Queue::Proven => &mut self.proven,
            Queue::Others => &mut self.others,
        }
    }

    fn is_refused_under_load(&mut self, from: SocketAddr, now: u64) -> bool {
        if self.others.len() >= UNDER_LOAD_QUEUE_DEPTH {
            self.selects_until = now + UNDER_LOAD_HOLD;
        }
        now < self.selects_until && !self.quiet_sources.was_quiet(from, now)
    }

    /// Up to so many, those that proved more first.
    fn take_handshakes(&mut self, limit: usize) -> Vec<HandshakeDatagram> {
        let mut taken = Vec::new();
        for queue in [Queue::Replies, Queue::Proven, Queue::Others] {
            while taken.len() < limit {
                let Some(mut handshake) = self.waiting(queue).pop_front() else { break };
                handshake.queue_depth = self.proven.len() + self.others.len();
                taken.push(handshake);
            }
        }
        taken
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

    /// Under load, a message that has proved nothing about its source is taken only if the source was quiet: a flood
    /// would leave an honest peer no place. Replies need no bound: there are nine for each initiation.
    ///
    /// # Errors
    /// Why it is dropped.
    pub fn push_handshake(&self, queue: Queue, handshake: HandshakeDatagram, now: u64) -> Result<(), DropReason> {
        let mut queues = self.lock();
        if queue == Queue::Others && queues.is_refused_under_load(handshake.from, now) {
            return Err(DropReason::RateLimited);
        }
        let waiting = queues.waiting(queue);
        if queue != Queue::Replies && waiting.len() >= MAX_QUEUED_HANDSHAKES {
            return Err(DropReason::HandshakeQueueFull);
        }
        waiting.push_back(handshake);
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
        let handshakes = queues.take_handshakes(limit - reports.len());
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

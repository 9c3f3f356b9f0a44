//! No twin: in Python these queues are part of wyrmhole/datapath/tables.py.
//!
//! Handshake messages that passed the gate and wait to be worked on. Both users are bounded by them: the reports, for
//! what the control thread works on, and [`Initiations`], for what the engine answers itself.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::constants::{MAX_QUEUED_HANDSHAKES, UNDER_LOAD_HOLD, UNDER_LOAD_QUEUE_DEPTH};
use crate::drops::DropReason;
use crate::gate::Queue;
use crate::peer::Source;
use crate::quiet_sources::QuietSources;

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

/// Replies first, then what has proved where it comes from, then the rest.
#[derive(Default)]
pub struct HandshakeQueues {
    replies: VecDeque<HandshakeDatagram>,
    proven: VecDeque<HandshakeDatagram>,
    others: VecDeque<HandshakeDatagram>,
    quiet_sources: QuietSources,
    selects_until: u64,
}

impl HandshakeQueues {
    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.replies.is_empty() && self.proven.is_empty() && self.others.is_empty()
    }

    /// Under load, a message that has proved nothing about its source is taken only if the source was quiet: a flood
    /// would leave an honest peer no place. Replies need no bound: there are nine for each initiation.
    ///
    /// # Errors
    /// Why it is dropped.
    pub fn push(&mut self, queue: Queue, handshake: HandshakeDatagram, now: u64) -> Result<(), DropReason> {
        if queue == Queue::Others && self.is_refused_under_load(handshake.from, now) {
            return Err(DropReason::RateLimited);
        }
        let waiting = self.waiting(queue);
        if queue != Queue::Replies && waiting.len() >= MAX_QUEUED_HANDSHAKES {
            return Err(DropReason::HandshakeQueueFull);
        }
        waiting.push_back(handshake);
        Ok(())
    }

    /// The next message to work on.
    pub fn pop(&mut self) -> Option<HandshakeDatagram> {
        let queues = [Queue::Replies, Queue::Proven, Queue::Others];
        let mut handshake = queues.into_iter().find_map(|queue| self.waiting(queue).pop_front())?;
        handshake.queue_depth = self.proven.len() + self.others.len();
        Some(handshake)
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
}

#[derive(Default)]
struct Waiting {
    queues: HandshakeQueues,
    /// Threads that sleep in `take`.
    sleepers: usize,
    is_closed: bool,
}

/// Initiations for the threads that answer them.
#[derive(Default)]
pub struct Initiations {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
}

impl Initiations {
    /// See `HandshakeQueues::push`.
    ///
    /// # Errors
    /// Why it is dropped.
    pub fn push(&self, queue: Queue, initiation: HandshakeDatagram, now: u64) -> Result<(), DropReason> {
        let mut waiting = self.lock();
        waiting.queues.push(queue, initiation, now)?;
        // Waking costs a system call, which a worker in the middle of a flood saves while the threads are busy.
        let has_sleeper = waiting.sleepers > 0;
        drop(waiting);
        if has_sleeper {
            self.arrived.notify_one();
        }
        Ok(())
    }

    /// Wait for the next one. None: no more come.
    pub fn take(&self) -> Option<HandshakeDatagram> {
        let mut waiting = self.lock();
        loop {
            if waiting.is_closed {
                return None;
            }
            if let Some(initiation) = waiting.queues.pop() {
                return Some(initiation);
            }
            waiting.sleepers += 1;
            waiting = self.arrived.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            waiting.sleepers -= 1;
        }
    }

    /// The next one, if one waits.
    pub fn try_take(&self) -> Option<HandshakeDatagram> {
        self.lock().queues.pop()
    }

    /// Nobody works on them any more; what waits is dropped.
    pub fn close(&self) {
        let mut waiting = self.lock();
        waiting.is_closed = true;
        waiting.queues = HandshakeQueues::default();
        drop(waiting);
        self.arrived.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

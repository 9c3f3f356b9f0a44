//! No twin: in Python these queues are part of wyrmhole/datapath/reports.py.
//!
//! The bounded queues of handshake messages that passed the gate. The reports have one set of queues, for messages that
//! the control thread processes; [`Initiations`] has another, for those that the engine answers.

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
    /// The sender.
    pub from: SocketAddr,
    /// The local address and interface.
    pub source: Option<Source>,
    /// The number of messages of types 1 and 2 behind this one when it was taken; replies to us do not count as load.
    pub queue_depth: usize,
}

/// The three queues in order of priority: replies to us, messages that proved their source, all others.
#[derive(Default)]
pub struct HandshakeQueues {
    replies: VecDeque<HandshakeDatagram>,
    proven: VecDeque<HandshakeDatagram>,
    others: VecDeque<HandshakeDatagram>,
    quiet_sources: QuietSources,
    selects_until: u64,
}

impl HandshakeQueues {
    /// Whether no message waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.replies.is_empty() && self.proven.is_empty() && self.others.is_empty()
    }

    /// Queue a message. Under load, a message that has not proved its source is accepted only if the source was quiet:
    /// otherwise a flood would leave no room for an honest peer. Replies need no bound: there are at most nine for each
    /// initiation.
    ///
    /// # Errors
    /// The reason for dropping the message.
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

    /// Take the next message.
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
    /// Queue an initiation; see `HandshakeQueues::push`.
    ///
    /// # Errors
    /// The reason for dropping the message.
    pub fn push(&self, queue: Queue, initiation: HandshakeDatagram, now: u64) -> Result<(), DropReason> {
        let mut waiting = self.lock();
        waiting.queues.push(queue, initiation, now)?;
        // Waking costs a system call. During a flood the threads are busy, and the worker saves it.
        let has_sleeper = waiting.sleepers > 0;
        drop(waiting);
        if has_sleeper {
            self.arrived.notify_one();
        }
        Ok(())
    }

    /// Wait for the next initiation. `None` after `close`.
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

    /// Take the next initiation, if there is one.
    pub fn try_take(&self) -> Option<HandshakeDatagram> {
        self.lock().queues.pop()
    }

    /// Drop all initiations and end the threads that wait for them.
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

//! The threads that answer initiations.
//!
//! They are separate from the workers, so that Diffie-Hellman never delays a packet: the kernel runs them when the
//! workers leave the processor free. They sleep while there are no initiations. Responses are sent through the first
//! worker's sockets, like everything that the control thread sends.

use std::net::SocketAddr;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, PoisonError, RwLock};

use wyrmhole_core::drops::DropReason;
use wyrmhole_core::edges::{Edges, Gather, SendOutcome, Turn};
use wyrmhole_core::handshake_queues::HandshakeDatagram;
use wyrmhole_core::outbound::{HANDSHAKE_TOS, transmit};
use wyrmhole_core::peer::{EnginePeer, Source};
use wyrmhole_core::reports::Report;
use wyrmhole_core::responder::Answer;
use wyrmhole_core::tables::Tables;

use crate::io::stack;
use crate::io::sys::{self, EventFd};
use crate::worker::{BindEdge, Clock};

/// The sockets through which answers are sent. The read lock is held while a datagram is sent, so that after replacing
/// the sockets the caller knows that the former ones are no longer in use. No other lock is held then, and no worker
/// takes this one.
pub type SharedBind = RwLock<Option<BindEdge>>;

/// The state of one answering thread.
pub struct Answering {
    tables: Arc<Tables>,
    clock: Clock,
    bind: Arc<SharedBind>,
    notify: Arc<EventFd>,
}

/// A bind without a TUN.
struct BindOnly<'a>(&'a BindEdge);

impl Edges for BindOnly<'_> {
    fn is_bound(&self) -> bool {
        true
    }

    fn send(&mut self, to: &SocketAddr, source: Option<&Source>, data: &[u8], size: usize, tos: u8) -> SendOutcome {
        match self.0 {
            BindEdge::Kernel(bind) => bind.send(to, source, data, size, tos),
            BindEdge::Foreign(bind) => bind.send(to, source, data, size, tos),
        }
    }

    fn write(&mut self, _: Gather<'_>) -> bool {
        false
    }

    fn offloads(&self) -> (bool, bool) {
        (false, false)
    }
}

impl Answering {
    /// Create the state of a thread. `notify` wakes the control thread.
    pub fn new(tables: Arc<Tables>, clock: Clock, bind: Arc<SharedBind>, notify: Arc<EventFd>) -> Self {
        Self { tables, clock, bind, notify }
    }

    /// Answer until the queue is closed.
    pub fn run(&self) {
        while let Some(initiation) = self.tables.initiations.take() {
            self.process(&initiation);
        }
    }

    /// Answer the waiting initiations, as if `more` others waited too.
    pub fn turn(&self, more: usize) {
        while let Some(mut initiation) = self.tables.initiations.try_take() {
            initiation.queue_depth += more;
            self.process(&initiation);
        }
    }

    /// Process one initiation. A message that causes a panic must not end the thread.
    fn process(&self, initiation: &HandshakeDatagram) {
        let answer = || stack::with_wiped_stack(|| self.answer(initiation));
        if panic::catch_unwind(AssertUnwindSafe(answer)).is_err() {
            self.tables.drops.one(DropReason::InternalError);
        }
        if self.tables.reports.must_announce() {
            self.notify.ring();
        }
    }

    fn answer(&self, initiation: &HandshakeDatagram) {
        let now = self.clock.now();
        let answer = self.tables.responder.answer(&self.tables, initiation, now, &sys::random);
        let bind = self.bind.read().unwrap_or_else(PoisonError::into_inner);
        let (Some(answer), Some(bind)) = (answer, bind.as_ref()) else { return };
        match answer {
            Answer::CookieReply(reply) => {
                BindOnly(bind).send(&initiation.from, initiation.source.as_ref(), &reply, 0, 0);
            }
            Answer::Response(peer, response) => self.respond(bind, &peer, &response, initiation.from, now),
        }
    }

    fn respond(&self, bind: &BindEdge, peer: &EnginePeer, response: &[u8], to: SocketAddr, now: u64) {
        let mut turn = Turn { tables: &self.tables, edges: &mut BindOnly(bind), now };
        if !transmit(&mut turn, peer, response, 0, HANDSHAKE_TOS) {
            if let Some(error) = bind.last_error(&to) {
                self.tables.report(Report::SendFailed(peer.id, error));
            }
        }
        self.tables.note_sent(&mut peer.lock(), now);
    }
}

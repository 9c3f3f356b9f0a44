//! Idle workers help a worker that has a backlog.
//!
//! Only the worker that owns a socket and a TUN queue reads them. While it keeps up, it does everything itself. If its
//! socket is still readable after a full turn and another worker is idle, it posts the trains that it receives, and wakes
//! a worker that sleeps. Any worker decrypts them (`core/sharing.rs`); they are delivered in the order of arrival, through
//! the edges of the owner.

use std::net::SocketAddr;
use std::sync::Arc;

use wyrmhole_core::edges::{Edges, Gather, SendOutcome};
use wyrmhole_core::inbound::{Arrival, Inbound};
use wyrmhole_core::outbound::Outbound;
use wyrmhole_core::peer::Source;
use wyrmhole_core::sharing::Lane;
use wyrmhole_core::tables::Tables;
use wyrmhole_core::tickets::Crew;

use crate::io::sys::EventFd;
use crate::io::tun::KernelTun;
use crate::io::udp::KernelBind;

/// A train has at most 65,535 bytes.
pub const SLOT_BYTES: usize = 1 << 16;
/// Buffers for each worker: one that it decrypts, one that waits for it, and one that waits for its delivery.
const TRAINS_PER_MEMBER: usize = 3;
/// Buffers of one lane at most: 2 MiB.
const MAX_TRAINS: usize = 32;
/// Bytes. Decrypting a shorter train takes less time than handing it over.
const SHORTEST: usize = 8 << 10;
/// Turns after a backlog in which trains are still shared. Sharing empties the socket, which must not end it at once.
const SHARING_TURNS: usize = 16;
/// Trains that a worker delivers for another one before it returns to its own descriptors.
const DELIVERIES: usize = 16;

/// An owner's edges, for the worker that delivers.
#[derive(Clone)]
pub struct OwnerEdges {
    /// Its queue.
    pub tun: Arc<KernelTun>,
    /// Its sockets.
    pub bind: KernelBind,
}

impl Edges for OwnerEdges {
    fn is_bound(&self) -> bool {
        true
    }

    fn send(&mut self, to: &SocketAddr, source: Option<&Source>, data: &[u8], size: usize, tos: u8) -> SendOutcome {
        self.bind.send(to, source, data, size, tos)
    }

    fn write(&mut self, frame: Gather<'_>) -> bool {
        self.tun.write(frame)
    }

    fn offloads(&self) -> (bool, bool) {
        self.tun.offloads()
    }
}

/// Nanoseconds for which a worker spins after it helped: the next train arrives sooner than a sleeping worker wakes up.
const LOOK: u64 = 50_000;

/// What all workers of an engine share.
pub struct Team {
    crew: Crew,
    lanes: Vec<Lane<OwnerEdges>>,
    bells: Vec<Arc<EventFd>>,
}

impl Team {
    /// One worker for each of these wake-up descriptors.
    pub fn new(bells: Vec<Arc<EventFd>>) -> Self {
        let limit = (TRAINS_PER_MEMBER * bells.len()).min(MAX_TRAINS);
        let lanes = bells.iter().map(|_| Lane::new(limit, SLOT_BYTES)).collect();
        Self { crew: Crew::new(bells.len()), lanes, bells }
    }
}

/// The tables and the steps that a member works with.
#[allow(missing_docs)]
pub struct Hands<'a> {
    pub tables: &'a Tables,
    pub inbound: &'a mut Inbound,
    pub outbound: &'a mut Outbound,
}

/// One worker's place in the team.
pub struct Member {
    team: Arc<Team>,
    number: usize,
    /// Turns for which trains are still shared.
    sharing: usize,
    /// It helped since the last `look`, so more is likely to come.
    has_helped: bool,
}

impl Member {
    /// Worker number `number`.
    pub fn new(team: Arc<Team>, number: usize) -> Self {
        Self { team, number, sharing: 0, has_helped: false }
    }

    fn lane(&self) -> &Lane<OwnerEdges> {
        &self.team.lanes[self.number]
    }

    /// A turn begins without a sleep before it. `is_backlog`: the turn before received as much as a turn may.
    pub fn begin_turn(&mut self, is_backlog: bool) {
        self.sharing = if is_backlog { SHARING_TURNS } else { self.sharing.saturating_sub(1) };
    }

    /// Whether there is a buffer for the next datagram, in case it is shared. The owner opens trains itself until there
    /// is. False: other workers have them all.
    pub fn has_room(&self, hands: &mut Hands<'_>) -> bool {
        while !self.lane().has_room() {
            let has_opened = self.lane().open_one(hands.tables);
            self.deliver(self.number, hands);
            if !has_opened && !self.lane().has_room() {
                return false;
            }
        }
        true
    }

    /// Whether the owner handles what it received itself: no earlier train is shared, and none is to be.
    pub fn is_direct(&self) -> bool {
        (self.sharing == 0 || !self.team.crew.has_idle(self.number)) && self.lane().is_idle()
    }

    /// Share what the owner received into `slot`, which is another buffer afterwards.
    pub fn pass_on(
        &self,
        hands: &mut Hands<'_>,
        slot: &mut Box<[u8]>,
        length: usize,
        came: (Arrival, u64, OwnerEdges),
    ) {
        let is_shared = self.sharing > 0 && came.0.segment_size > 0 && length >= SHORTEST;
        self.lane().pass_on(hands.tables, slot, length, came, is_shared);
        if is_shared {
            if let Some(helper) = self.team.crew.call(self.number) {
                self.team.bells[helper].ring();
            }
        }
        self.deliver(self.number, hands);
    }

    /// Open one train and deliver what is due, of this worker if there is any, otherwise of another one. False: there is
    /// no shared train.
    pub fn help(&mut self, hands: &mut Hands<'_>) -> bool {
        let count = self.team.lanes.len();
        let offer =
            (self.number..self.number + count).map(|at| at % count).find(|at| self.team.lanes[*at].has_offers());
        let Some(owner) = offer else { return false };
        self.has_helped = true;
        self.team.crew.work(self.number);
        self.team.lanes[owner].open_one(hands.tables);
        self.deliver(owner, hands);
        true
    }

    /// The worker begins to spin. Returns for how many nanoseconds at least.
    pub fn look(&mut self) -> u64 {
        self.team.crew.look(self.number);
        if std::mem::take(&mut self.has_helped) { LOOK } else { 0 }
    }

    /// The worker is busy.
    pub fn work(&self) {
        self.team.crew.work(self.number);
    }

    /// The worker is about to sleep, so it keeps up. False: there is a shared train after all.
    pub fn may_sleep(&mut self) -> bool {
        self.sharing = 0;
        self.team.crew.sleep(self.number);
        !self.team.lanes.iter().any(Lane::has_offers)
    }

    /// Deliver everything that uses this worker's edges.
    pub fn finish(&self, hands: &mut Hands<'_>) {
        self.lane().finish(hands.tables, hands.inbound, hands.outbound);
    }

    fn deliver(&self, owner: usize, hands: &mut Hands<'_>) {
        let most = if owner == self.number { usize::MAX } else { DELIVERIES };
        if self.team.lanes[owner].deliver(hands.tables, hands.inbound, hands.outbound, most) {
            self.team.bells[owner].ring();
        }
    }
}

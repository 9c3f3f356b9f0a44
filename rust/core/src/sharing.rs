//! No twin: the portable engine has one thread, so nobody can help it.
//!
//! Trains from one worker's sockets that several workers decrypt.
//!
//! A worker that keeps up shares nothing. A worker with a backlog posts its trains, each in its own buffer, and any
//! thread decrypts them: this is more than half of the work, and the only part that needs no order. The replay window,
//! marks, endpoint, confirmation, drops and writing to the TUN happen at delivery, in the order of arrival. Each train
//! carries the owner's edges for this.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::drops::DropReason;
use crate::edges::{Edges, Turn};
use crate::inbound::{Arrival, Inbound, Opening};
use crate::outbound::Outbound;
use crate::tables::Tables;
use crate::tickets::{Taken, Tickets};

/// A train in its own buffer, with everything that its delivery needs.
pub struct Batch<E> {
    slot: Box<[u8]>,
    length: usize,
    opening: Opening,
    came: Option<(Arrival, u64, E)>,
}

impl<E: Edges> Batch<E> {
    fn new(bytes: usize) -> Box<Self> {
        let slot = vec![0; bytes].into_boxed_slice();
        Box::new(Self { slot, length: 0, opening: Opening::new(), came: None })
    }

    fn open(&mut self, tables: &Tables) {
        if let Some((arrival, now, _)) = &self.came {
            self.opening.open(tables, &mut self.slot[..self.length], arrival.segment_size, *now);
        }
    }

    fn deliver(&mut self, tables: &Tables, inbound: &mut Inbound, outbound: &mut Outbound) {
        if let Some((arrival, now, edges)) = &mut self.came {
            let mut turn = Turn { tables, edges, now: *now };
            inbound.deliver_opened(&mut turn, outbound, &mut self.slot[..self.length], &self.opening, arrival);
        }
    }

    /// An unused buffer holds no keys and no edges.
    fn clear(&mut self) {
        self.opening.clear();
        self.came = None;
    }
}

/// The shared trains of one worker, the owner.
pub struct Lane<E> {
    tickets: Tickets<Box<Batch<E>>>,
    bytes: usize,
}

impl<E: Edges> Lane<E> {
    /// Use at most `limit` buffers of so many bytes. Each is allocated when it is first needed.
    #[must_use]
    pub fn new(limit: usize, bytes: usize) -> Self {
        Self { tickets: Tickets::new(limit), bytes }
    }

    /// Whether everything was delivered, so that the owner may handle the next train directly.
    pub fn is_idle(&self) -> bool {
        self.tickets.is_idle()
    }

    /// Whether the owner may pass on another train.
    pub fn has_room(&self) -> bool {
        self.tickets.has_spare()
    }

    /// Whether there may be a train to open or to deliver; see `Tickets::has_offers`.
    pub fn has_offers(&self) -> bool {
        self.tickets.has_offers()
    }

    /// Add what the owner received. `slot` is another buffer afterwards. With `is_shared`, any thread opens the train;
    /// otherwise this call does. False: there is no room.
    pub fn pass_on(
        &self,
        tables: &Tables,
        slot: &mut Box<[u8]>,
        length: usize,
        came: (Arrival, u64, E),
        is_shared: bool,
    ) -> bool {
        let Some(mut batch) = self.tickets.spare(|| Batch::new(self.bytes)) else { return false };
        std::mem::swap(slot, &mut batch.slot);
        (batch.length, batch.came) = (length, Some(came));
        if is_shared {
            self.tickets.post(batch);
        } else {
            open(self.tickets.draw(batch), tables);
        }
        true
    }

    /// Open the oldest train that no thread has taken. False: there is none.
    pub fn open_one(&self, tables: &Tables) -> bool {
        self.tickets.take().map(|taken| open(taken, tables)).is_some()
    }

    /// Deliver the trains that are due, at most `most`. True: there may be more, which another thread has to deliver.
    pub fn deliver(&self, tables: &Tables, inbound: &mut Inbound, outbound: &mut Outbound, most: usize) -> bool {
        for _ in 0..most {
            let Some(mut delivery) = self.tickets.deliver() else { return false };
            // A lost train was counted by the thread that panicked.
            let Some(batch) = &mut *delivery else { continue };
            if catch_unwind(AssertUnwindSafe(|| batch.deliver(tables, inbound, outbound))).is_err() {
                tables.drops.one(DropReason::InternalError);
                inbound.reset();
                outbound.reset();
            }
            batch.clear();
        }
        self.tickets.has_offers()
    }

    /// Open and deliver everything, and wait for the threads that help. The owner calls this before it gives up its
    /// edges.
    pub fn finish(&self, tables: &Tables, inbound: &mut Inbound, outbound: &mut Outbound) {
        while self.open_one(tables) {}
        self.deliver(tables, inbound, outbound, usize::MAX);
        while !self.tickets.wait_idle() {
            self.deliver(tables, inbound, outbound, usize::MAX);
        }
    }
}

/// If opening panics, only this train is lost.
fn open<E: Edges>(mut taken: Taken<'_, Box<Batch<E>>>, tables: &Tables) {
    let opened = catch_unwind(AssertUnwindSafe(|| taken.work().map(|batch| batch.open(tables))));
    if opened.is_ok() {
        taken.finish();
    } else {
        tables.drops.one(DropReason::InternalError);
    }
}

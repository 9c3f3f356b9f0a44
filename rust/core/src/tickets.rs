//! No twin: the portable engine has one thread, so nobody can help it.
//!
//! Let several threads work, and deliver the results in the order in which the work arrived.
//!
//! The owner numbers its work with tickets. Any thread may take a ticket, and tickets are finished in any order, but
//! delivered one at a time in the order of their numbers. The thread that finishes the first undelivered ticket delivers
//! it and every finished ticket behind it. Progress never depends on a thread that sleeps: the owner can take back what
//! nobody has taken.
//!
//! Locks and atomics come from `super::sync`, because `core/tests/tickets_model.rs` includes this file over a `sync` of
//! its own, which tries every interleaving.

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};

use super::sync::{AtomicUsize, Condvar, Mutex, MutexGuard, Ordering, PoisonError, fence};

/// The state of a ticket.
enum Place<T> {
    /// No thread has taken it.
    Waiting(T),
    /// A thread has it.
    UnderWay,
    /// It may be delivered. None: the thread that worked on it panicked.
    Finished(Option<T>),
}

struct Row<T> {
    /// The number of the first ticket in `places`.
    head: u64,
    /// In the order of delivery.
    places: VecDeque<Place<T>>,
    spare: Vec<T>,
    /// How many buffers exist: spare, in `places`, or held by a thread.
    made: usize,
    is_delivering: bool,
    /// The owner waits in `wait_idle`.
    is_awaited: bool,
}

impl<T> Row<T> {
    fn is_due(&self) -> bool {
        !self.is_delivering && matches!(self.places.front(), Some(Place::Finished(_)))
    }
}

/// See the module. `T` is a buffer with the work in it, one of a limited number.
pub struct Tickets<T> {
    row: Mutex<Row<T>>,
    changed: Condvar,
    /// The number of waiting tickets, plus one if the head is due and no thread delivers. Read without the lock.
    offers: AtomicUsize,
    limit: usize,
}

impl<T> Tickets<T> {
    /// Use at most `limit` buffers.
    pub fn new(limit: usize) -> Self {
        let row = Row {
            head: 0,
            places: VecDeque::with_capacity(limit),
            spare: Vec::with_capacity(limit),
            made: 0,
            is_delivering: false,
            is_awaited: false,
        };
        Self { row: Mutex::new(row), changed: Condvar::new(), offers: AtomicUsize::new(0), limit }
    }

    /// Whether `spare` returns a buffer. Only the owner takes buffers, so the answer stays true for it.
    pub fn has_spare(&self) -> bool {
        let row = self.lock();
        !row.spare.is_empty() || row.made < self.limit
    }

    /// Take an unused buffer, or make one if there are fewer than the limit. For the owner.
    pub fn spare(&self, make: impl FnOnce() -> T) -> Option<T> {
        let mut row = self.lock();
        if let Some(spare) = row.spare.pop() {
            return Some(spare);
        }
        if row.made == self.limit {
            return None;
        }
        row.made += 1;
        drop(row);
        Some(make())
    }

    /// Issue the next ticket, for any thread to take. For the owner.
    pub fn post(&self, work: T) {
        let mut row = self.lock();
        row.places.push_back(Place::Waiting(work));
        self.offer(&row);
    }

    /// Issue the next ticket and take it. For the owner.
    pub fn draw(&self, work: T) -> Taken<'_, T> {
        let mut row = self.lock();
        let number = row.head + row.places.len() as u64;
        row.places.push_back(Place::UnderWay);
        drop(row);
        Taken { tickets: self, number, work: Some(work) }
    }

    /// Take the oldest ticket that no thread has taken.
    pub fn take(&self) -> Option<Taken<'_, T>> {
        let mut row = self.lock();
        let at = row.places.iter().position(|place| matches!(place, Place::Waiting(_)))?;
        let number = row.head + at as u64;
        let work = match std::mem::replace(&mut row.places[at], Place::UnderWay) {
            Place::Waiting(work) => Some(work),
            Place::UnderWay | Place::Finished(_) => None,
        };
        self.offer(&row);
        drop(row);
        Some(Taken { tickets: self, number, work })
    }

    /// Return the next ticket to deliver, or None if it is not finished or another thread is delivering. A thread that
    /// finished a ticket calls this until it returns None, so the thread that delivers also finds what others finish
    /// meanwhile.
    pub fn deliver(&self) -> Option<Delivery<'_, T>> {
        let mut row = self.lock();
        if !row.is_due() {
            return None;
        }
        let Some(Place::Finished(work)) = row.places.pop_front() else { return None };
        row.head += 1;
        row.is_delivering = true;
        self.offer(&row);
        drop(row);
        Some(Delivery { tickets: self, work })
    }

    /// Whether every ticket was delivered. Only the owner issues tickets, so the answer stays true for it.
    pub fn is_idle(&self) -> bool {
        let row = self.lock();
        row.places.is_empty() && !row.is_delivering
    }

    /// Wait until every ticket was delivered (true), or a finished one is due and no thread delivers (false). The owner
    /// took all waiting tickets before, so it waits only for threads that work on one.
    pub fn wait_idle(&self) -> bool {
        let mut row = self.lock();
        while row.is_delivering || !(row.places.is_empty() || row.is_due()) {
            row.is_awaited = true;
            row = self.changed.wait(row).unwrap_or_else(PoisonError::into_inner);
        }
        row.is_awaited = false;
        row.places.is_empty()
    }

    /// Whether `take` or `deliver` may return something. This is a hint that may be outdated. A thread that called
    /// `Crew::sleep` first misses no ticket, because the poster of a later one wakes it.
    pub fn has_offers(&self) -> bool {
        self.offers.load(Ordering::Relaxed) > 0
    }

    /// The row changed.
    fn offer(&self, row: &Row<T>) {
        let waiting = row.places.iter().filter(|place| matches!(place, Place::Waiting(_))).count();
        self.offers.store(waiting + usize::from(row.is_due()), Ordering::Relaxed);
        if row.is_awaited {
            self.changed.notify_all();
        }
    }

    fn finish(&self, number: u64, work: Option<T>) {
        let mut row = self.lock();
        row.made -= usize::from(work.is_none());
        let at = (number - row.head) as usize;
        row.places[at] = Place::Finished(work);
        self.offer(&row);
    }

    fn end_delivery(&self, work: Option<T>) {
        let mut row = self.lock();
        row.is_delivering = false;
        row.spare.extend(work);
        self.offer(&row);
    }

    fn lock(&self) -> MutexGuard<'_, Row<T>> {
        self.row.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A ticket that a thread has taken. If it is dropped without `finish`, for example by a panic, it counts as finished and
/// lost, so later tickets never wait for it.
pub struct Taken<'a, T> {
    tickets: &'a Tickets<T>,
    number: u64,
    /// None only while it is dropped.
    work: Option<T>,
}

impl<T> Taken<'_, T> {
    /// Return the work.
    pub fn work(&mut self) -> Option<&mut T> {
        self.work.as_mut()
    }

    /// Allow its delivery.
    pub fn finish(mut self) {
        let work = self.work.take();
        self.tickets.finish(self.number, work);
        std::mem::forget(self);
    }
}

impl<T> Drop for Taken<'_, T> {
    fn drop(&mut self) {
        self.work = None;
        self.tickets.finish(self.number, None);
    }
}

/// The ticket that is being delivered; None if it was lost. The next one is delivered after this is dropped.
pub struct Delivery<'a, T> {
    tickets: &'a Tickets<T>,
    work: Option<T>,
}

impl<T> Deref for Delivery<'_, T> {
    type Target = Option<T>;

    fn deref(&self) -> &Option<T> {
        &self.work
    }
}

impl<T> DerefMut for Delivery<'_, T> {
    fn deref_mut(&mut self) -> &mut Option<T> {
        &mut self.work
    }
}

impl<T> Drop for Delivery<'_, T> {
    fn drop(&mut self) {
        self.tickets.end_delivery(self.work.take());
    }
}

const BUSY: usize = 0;
const LOOKING: usize = 1;
const ASLEEP: usize = 2;

/// Which threads are idle, and could help.
pub struct Crew {
    members: Box<[AtomicUsize]>,
}

impl Crew {
    /// All of so many threads are busy.
    pub fn new(members: usize) -> Self {
        Self { members: (0..members).map(|_| AtomicUsize::new(BUSY)).collect() }
    }

    /// The thread is busy.
    pub fn work(&self, member: usize) {
        self.members[member].store(BUSY, Ordering::Relaxed);
    }

    /// The thread spins, and finds tickets without being woken.
    pub fn look(&self, member: usize) {
        self.members[member].store(LOOKING, Ordering::Relaxed);
    }

    /// The thread is about to sleep. It calls `has_offers` once more afterwards: then either it sees a ticket, or the
    /// owner that posts the ticket sees that it sleeps.
    pub fn sleep(&self, member: usize) {
        self.members[member].store(ASLEEP, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Whether another thread is idle.
    pub fn has_idle(&self, but: usize) -> bool {
        self.others(but).any(|(_, state)| state.load(Ordering::Relaxed) != BUSY)
    }

    /// Return the thread to wake after a ticket was posted; None if another thread spins, or all are busy. Each sleep is
    /// returned once.
    pub fn call(&self, but: usize) -> Option<usize> {
        fence(Ordering::SeqCst);
        if self.others(but).any(|(_, state)| state.load(Ordering::Relaxed) == LOOKING) {
            return None;
        }
        let wake = |(member, state): (usize, &AtomicUsize)| {
            let woken = state.compare_exchange(ASLEEP, BUSY, Ordering::Relaxed, Ordering::Relaxed);
            woken.is_ok().then_some(member)
        };
        self.others(but).find_map(wake)
    }

    fn others(&self, but: usize) -> impl Iterator<Item = (usize, &AtomicUsize)> {
        self.members.iter().enumerate().filter(move |(member, _)| *member != but)
    }
}

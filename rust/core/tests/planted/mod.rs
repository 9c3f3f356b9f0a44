//! `tickets.rs` with a planted race: its fences do nothing.

mod sync {
    pub use crate::sync::{AtomicUsize, Condvar, Mutex, MutexGuard, Ordering, PoisonError};

    pub fn fence(_: Ordering) {}
}

#[path = "../../src/tickets.rs"]
#[allow(dead_code, missing_docs)]
pub mod tickets;

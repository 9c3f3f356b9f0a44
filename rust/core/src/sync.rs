//! No twin: the standard library's locks and atomics, under a name that the model of `tickets` replaces.

pub use std::sync::atomic::{AtomicUsize, Ordering, fence};
pub use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

//! Twin: wyrmhole/engine/mailbox.py.
//!
//! Orders for a thread, in their order, and how many of them were carried out.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

struct Orders<T> {
    waiting: VecDeque<T>,
    posted: u64,
    done: u64,
    is_closed: bool,
}

/// Any thread posts and may wait; one thread takes an order, carries it out, and reports that.
pub struct Mailbox<T> {
    orders: Mutex<Orders<T>>,
    changed: Condvar,
}

impl<T> Default for Mailbox<T> {
    fn default() -> Self {
        let orders = Orders { waiting: VecDeque::new(), posted: 0, done: 0, is_closed: false };
        Self { orders: Mutex::new(orders), changed: Condvar::new() }
    }
}

impl<T> Mailbox<T> {
    /// Returns the order's number, for `wait`. An order for a closed mailbox is dropped.
    pub fn post(&self, order: T) -> u64 {
        let mut orders = self.lock();
        orders.posted += 1;
        if !orders.is_closed {
            orders.waiting.push_back(order);
        }
        orders.posted
    }

    /// Until the order of that number was carried out, or nobody will do so any more.
    pub fn wait(&self, number: u64) {
        let waited = self.changed.wait_while(self.lock(), |orders| orders.done < number && !orders.is_closed);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// The next order. `carried_out` is called before the next call.
    pub fn take(&self) -> Option<T> {
        self.lock().waiting.pop_front()
    }

    /// The order that was taken last is done.
    pub fn carried_out(&self) {
        self.lock().done += 1;
        self.changed.notify_all();
    }

    /// Nobody carries out orders any more: what was and will be posted counts as done.
    pub fn close(&self) {
        let mut orders = self.lock();
        orders.is_closed = true;
        let dropped = std::mem::take(&mut orders.waiting);
        drop(orders);
        drop(dropped);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Orders<T>> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

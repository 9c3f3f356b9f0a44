//! Twin: wyrmhole/engine/mailbox.py.
//!
//! A queue of orders for a thread, and a count of those carried out.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

struct Orders<T> {
    waiting: VecDeque<T>,
    posted: u64,
    done: u64,
    is_closed: bool,
}

/// The queue. Any thread may post orders and wait for them; one thread takes an order, carries it out, and confirms it.
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
    /// Queue an order. Returns its number, for `wait`. An order for a closed mailbox is dropped.
    pub fn post(&self, order: T) -> u64 {
        let mut orders = self.lock();
        orders.posted += 1;
        if !orders.is_closed {
            orders.waiting.push_back(order);
        }
        orders.posted
    }

    /// Wait until the order with this number was carried out, or the mailbox was closed.
    pub fn wait(&self, number: u64) {
        let waited = self.changed.wait_while(self.lock(), |orders| orders.done < number && !orders.is_closed);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Take the next order. Call `carried_out` before the next call.
    pub fn take(&self) -> Option<T> {
        self.lock().waiting.pop_front()
    }

    /// Confirm the order that was taken last.
    pub fn carried_out(&self) {
        self.lock().done += 1;
        self.changed.notify_all();
    }

    /// Carry out no more orders: all that were or will be posted count as done.
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

//! Twin: wyrmhole/datapath/refusals.py.
//!
//! Which refusals are reported: none unless asked, then a few a second.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::constants::SECOND;

const INTERVAL: u64 = SECOND / 5;
const BURST: u64 = 5;

/// See the module. Switched off, it costs a refusal one load.
#[derive(Default)]
pub struct Refusals {
    is_on: AtomicBool,
    /// Of strangers, of peers: how far ahead the reports are.
    ahead: Mutex<[u64; 2]>,
}

impl Refusals {
    /// Whether refusals are reported from now on.
    pub fn switch(&self, on: bool) {
        self.is_on.store(on, Ordering::Relaxed);
    }

    /// Whether one more is reported at `now` (ns).
    pub fn allow(&self, is_peer: bool, now: u64) -> bool {
        if !self.is_on.load(Ordering::Relaxed) {
            return false;
        }
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        let ahead = &mut ahead[usize::from(is_peer)];
        let next = now.max(*ahead);
        if next - now > (BURST - 1) * INTERVAL {
            return false;
        }
        *ahead = next + INTERVAL;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(refusals: &Refusals, is_peer: bool, now: u64) -> usize {
        (0..100).filter(|_| refusals.allow(is_peer, now)).count()
    }

    #[test]
    fn five_at_once_and_five_a_second_for_strangers_and_peers_each() {
        let refusals = Refusals::default();
        assert_eq!(allowed(&refusals, false, 1), 0);
        refusals.switch(true);
        assert_eq!(allowed(&refusals, false, 1), 5);
        assert_eq!(allowed(&refusals, true, 1), 5);
        assert_eq!(allowed(&refusals, false, 1 + INTERVAL), 1);
        assert_eq!(allowed(&refusals, false, 1 + 100 * INTERVAL), 5);
        refusals.switch(false);
        assert_eq!(allowed(&refusals, false, u64::MAX / 2), 0);
    }
}

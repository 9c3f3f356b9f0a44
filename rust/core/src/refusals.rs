//! Twin: wyrmhole/datapath/refusals.py.
//!
//! A limit on the refusals that an engine reports: none unless switched on, then a few per second.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::constants::SECOND;

const INTERVAL: u64 = SECOND / 5;
const BURST: u64 = 5;

/// The limits, one for strangers and one for peers. While switched off, a refusal costs one load.
#[derive(Default)]
pub struct Refusals {
    is_on: AtomicBool,
    /// The virtual clocks of strangers and of peers.
    ahead: Mutex<[u64; 2]>,
}

impl Refusals {
    /// Switch reports of refusals on or off.
    pub fn switch(&self, on: bool) {
        self.is_on.store(on, Ordering::Relaxed);
    }

    /// Return whether to report one more refusal at `now` (ns).
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
    fn strangers_and_peers_may_each_have_five_at_once_and_five_per_second() {
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

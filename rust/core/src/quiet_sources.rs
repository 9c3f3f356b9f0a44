//! Twin: wyrmhole/datapath/quiet_sources.py.
//!
//! Quiet sources: tell honest peers from a flood before anything else is proved. The twin gives the reasons.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};

use crate::constants::SECOND;

/// A source is remembered for at least this long and at most twice as long, which is less than Rekey-Timeout.
pub const WINDOW: u64 = 2 * SECOND;
const SLOT_BITS: u32 = 21;
const MASK: u64 = (1 << SLOT_BITS) - 1;

/// The sources of one window. Each window has its own hash, so that two sources rarely share slots twice.
#[derive(Default)]
struct Heard {
    slots: Vec<u8>,
    choice: RandomState,
}

impl Heard {
    fn empty() -> Self {
        Self { slots: vec![0; 1 << SLOT_BITS], choice: RandomState::new() }
    }

    fn slots_of(&self, source: u64) -> [usize; 2] {
        let mixed = self.choice.hash_one(source);
        [(mixed & MASK) as usize, (mixed >> 32 & MASK) as usize]
    }

    fn knows(&self, source: u64) -> bool {
        !self.slots.is_empty() && self.slots_of(source).iter().all(|&slot| self.slots[slot] != 0)
    }

    fn add(&mut self, source: u64) {
        for slot in self.slots_of(source) {
            self.slots[slot] = 1;
        }
    }
}

/// The memory of recent sources: two windows that alternate. Its size is fixed, and nothing is allocated before its
/// first use.
#[derive(Default)]
pub struct QuietSources {
    former: Heard,
    latter: Heard,
    ends: u64,
}

impl QuietSources {
    /// Return whether the source was silent for the window before `now` (ns, not decreasing), and remember it.
    pub fn was_quiet(&mut self, from: SocketAddr, now: u64) -> bool {
        if now >= self.ends {
            let lapsed = now >= self.ends + WINDOW;
            let former = std::mem::replace(&mut self.latter, Heard::empty());
            self.former = if lapsed { Heard::default() } else { former };
            self.ends = now + WINDOW;
        }
        let source = source_of(from.ip());
        let is_known = self.former.knows(source) || self.latter.knows(source);
        self.latter.add(source);
        !is_known
    }
}

/// The number of a source: an IPv4 address, or an IPv6 /64.
pub(crate) fn source_of(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(address) => u64::from(address.to_bits()),
        IpAddr::V6(address) => (address.to_bits() >> 64) as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outer(number: u32) -> SocketAddr {
        (std::net::Ipv4Addr::from_bits(number), 7).into()
    }

    #[test]
    fn a_source_is_quiet_until_its_first_message_and_again_after_the_window() {
        let mut sources = QuietSources::default();
        assert!(sources.was_quiet(outer(1), 5));
        assert!(!sources.was_quiet(outer(1), 5));
        assert!(!sources.was_quiet(outer(1), WINDOW + 6));
        assert!(sources.was_quiet(outer(2), WINDOW + 6));
        assert!(sources.was_quiet(outer(1), 4 * WINDOW));
    }

    #[test]
    fn a_new_source_among_65536_is_nearly_always_accepted() {
        let mut sources = QuietSources::default();
        for number in 0..1 << 16 {
            sources.was_quiet(outer(number), 0);
        }
        let mistaken = (0..2000).filter(|number| !sources.was_quiet(outer(1 << 24 | number), 1)).count();
        assert!(mistaken < 40);
    }

    #[test]
    fn an_ipv6_64_is_one_source() {
        let mut sources = QuietSources::default();
        assert!(sources.was_quiet("[2001:db8::1]:7".parse().unwrap(), 0));
        assert!(!sources.was_quiet("[2001:db8::2]:7".parse().unwrap(), 0));
        assert!(sources.was_quiet("[2001:db8:0:1::1]:7".parse().unwrap(), 0));
    }
}

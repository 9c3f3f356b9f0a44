//! Twin: wyrmhole/datapath/answers.py.
//!
//! The ICMP errors that are returned to the TUN, within a rate limit (RFC 1812 4.3.2.8, RFC 4443 2.4 f).

use crate::ip;

/// Nanoseconds that earn one answer: 100 per second, like the kernel's limit.
const INTERVAL: u64 = 10_000_000;
const BURST: u64 = 10;

/// A token bucket in front of [`ip::unreachable`].
pub struct Answers {
    tokens: u64,
    earned_at: u64,
}

impl Default for Answers {
    fn default() -> Self {
        Self { tokens: BURST, earned_at: 0 }
    }
}

impl Answers {
    /// Make the error for this packet. `None` if such a packet must not be answered or the limit is reached.
    pub fn make(&mut self, packet: &[u8], now: u64) -> Option<Vec<u8>> {
        let earned = now.saturating_sub(self.earned_at) / INTERVAL;
        if earned > 0 {
            self.tokens = BURST.min(self.tokens + earned);
            self.earned_at = now;
        }
        self.tokens = self.tokens.checked_sub(1)?;
        ip::unreachable(packet)
    }
}

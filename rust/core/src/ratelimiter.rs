//! Twin: wyrmhole/protocol/ratelimiter.py.
//!
//! Token buckets for handshake messages, one per source: an IPv4 address or an IPv6 /64 (whitepaper 5.3).

use std::collections::HashMap;
use std::net::IpAddr;

use crate::constants::{LIMITER_BURST, LIMITER_MAX_SOURCES, LIMITER_RATE, SECOND};
use crate::quiet_sources::source_of;

/// The credit, in nanoseconds, that one message costs.
const COST: u64 = SECOND / LIMITER_RATE;
const CAPACITY: u64 = LIMITER_BURST * COST;
/// After this long, the bucket of a quiet source is full again, so forgetting the source changes nothing.
const IDLE: u64 = SECOND;

#[derive(Clone, Copy)]
struct Bucket {
    tokens: u64,
    seen: u64,
}

/// The buckets. Their number is limited: when all belong to busy sources, messages from unknown sources are refused,
/// and known sources are still served.
#[derive(Default)]
pub struct RateLimiter {
    buckets: HashMap<u64, Bucket>,
    swept: u64,
}

impl RateLimiter {
    /// Return whether one more message from the IPv4 address or IPv6 /64 may pass at `now` (ns).
    pub fn allow(&mut self, address: IpAddr, now: u64) -> bool {
        let source = source_of(address);
        if !self.buckets.contains_key(&source) {
            self.make_room(now);
            if self.buckets.len() >= LIMITER_MAX_SOURCES {
                return false;
            }
        }
        let bucket = self.buckets.entry(source).or_insert(Bucket { tokens: CAPACITY, seen: now });
        bucket.tokens = CAPACITY.min(bucket.tokens + now.saturating_sub(bucket.seen));
        bucket.seen = now;
        let allowed = bucket.tokens >= COST;
        if allowed {
            bucket.tokens -= COST;
        }
        allowed
    }

    /// Forget idle sources, at most once per `IDLE`, so that a new source costs little even in a flood.
    fn make_room(&mut self, now: u64) {
        if now.saturating_sub(self.swept) > IDLE {
            self.buckets.retain(|_, bucket| now.saturating_sub(bucket.seen) <= IDLE);
            self.swept = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn outer(number: usize) -> IpAddr {
        Ipv4Addr::from_bits(number as u32).into()
    }

    #[test]
    fn five_messages_pass_at_once_and_then_twenty_per_second() {
        let mut limiter = RateLimiter::default();
        let allowed = |limiter: &mut RateLimiter, now| (0..10).filter(|_| limiter.allow(outer(1), now)).count();
        assert_eq!(allowed(&mut limiter, 10 * SECOND), 5);
        assert_eq!(allowed(&mut limiter, 10 * SECOND + COST), 1);
        assert_eq!(allowed(&mut limiter, 20 * SECOND), 5);
    }

    #[test]
    fn a_full_table_serves_known_sources_and_forgets_them_when_they_are_silent() {
        let mut limiter = RateLimiter::default();
        for number in 0..LIMITER_MAX_SOURCES {
            assert!(limiter.allow(outer(number), 10 * SECOND));
        }
        assert!(!limiter.allow(outer(LIMITER_MAX_SOURCES), 10 * SECOND));
        assert!(limiter.allow(outer(7), 10 * SECOND));
        assert!(limiter.allow(outer(LIMITER_MAX_SOURCES), 12 * SECOND));
        assert_eq!(limiter.buckets.len(), 1);
    }
}

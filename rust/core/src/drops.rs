//! Twin: wyrmhole/protocol/drops.py.
//!
//! Why a packet was dropped, or what was odd about one that was delivered. The names are those of the twin.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// A drop reason; the Python twin has the meaning of each.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        #[allow(missing_docs)]
        pub enum DropReason { $($variant,)* }

        /// The names of the reasons, in the order of the variants.
        pub const NAMES: &[&str] = &[$($name,)*];
    };
}

reasons! {
    MalformedFrame = "malformed_frame",
    NoRoute = "no_route",
    NoEndpoint = "no_endpoint",
    RouteLoop = "route_loop",
    StagingFull = "staging_full",
    StagingCap = "staging_cap",
    HandshakeGaveUp = "handshake_gave_up",
    SendFailed = "send_failed",
    PeerRemoved = "peer_removed",
    TooShort = "too_short",
    UnknownType = "unknown_type",
    WrongLength = "wrong_length",
    BadMac1 = "bad_mac1",
    NoPrivateKey = "no_private_key",
    HandshakeQueueFull = "handshake_queue_full",
    UnexpectedResponse = "unexpected_response",
    UnexpectedCookie = "unexpected_cookie",
    UnknownIndex = "unknown_index",
    KeyExpired = "key_expired",
    MessageLimit = "message_limit",
    BadTag = "bad_tag",
    Replayed = "replayed",
    NotIp = "not_ip",
    BadSource = "bad_source",
    TunWriteFailed = "tun_write_failed",
    ReportQueueFull = "report_queue_full",
    InternalError = "internal_error",
    RateLimited = "rate_limited",
    UnderLoad = "under_load",
    BadHandshake = "bad_handshake",
    UnknownPeer = "unknown_peer",
    ReplayedHandshake = "replayed_handshake",
    HandshakeFlood = "handshake_flood",
}

impl DropReason {
    /// The reason's name in Python.
    #[must_use]
    pub const fn name(self) -> &'static str {
        NAMES[self as usize]
    }
}

/// Counters by drop reason, shared by all threads.
pub struct Drops([AtomicU64; NAMES.len()]);

impl Default for Drops {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; NAMES.len()])
    }
}

impl Drops {
    /// Count one packet.
    pub fn one(&self, reason: DropReason) {
        self.add(reason, 1);
    }

    /// Count several packets.
    pub fn add(&self, reason: DropReason, count: usize) {
        self.0[reason as usize].fetch_add(count as u64, Ordering::Relaxed);
    }

    /// The number of packets so far.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0[reason as usize].load(Ordering::Relaxed)
    }

    /// The reasons that occurred, by name, with their counts.
    pub fn list(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = self.0.iter().map(|count| count.load(Ordering::Relaxed));
        NAMES.iter().copied().zip(counts).filter(|(_, count)| *count > 0)
    }
}

/// What was odd about packets that were delivered nevertheless; see the Python twin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Oddity {
    /// The outer packet met congestion, and the inner one cannot carry the mark.
    EcnUnheeded,
}

const ODDITIES: &[&str] = &["ecn_unheeded"];

/// Counters by oddity, shared by all threads.
#[derive(Default)]
pub struct Oddities([AtomicU64; ODDITIES.len()]);

impl Oddities {
    /// Count one packet.
    pub fn one(&self, oddity: Oddity) {
        self.0[oddity as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// The oddities that occurred, by name, with their counts.
    pub fn list(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = self.0.iter().map(|count| count.load(Ordering::Relaxed));
        ODDITIES.iter().copied().zip(counts).filter(|(_, count)| *count > 0)
    }
}

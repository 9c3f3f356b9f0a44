//! Twin: wyrmhole/protocol/constants.py, which gives the reasons; a test compares the values.

/// Nanoseconds.
pub const SECOND: u64 = 1_000_000_000;
/// For one peer.
pub const MAX_STAGED_PACKETS: usize = 128;
/// For a device.
pub const MAX_STAGED_BYTES: usize = 16 << 20;
/// A peer may hold this fraction of what the device has left.
pub const STAGED_SHARE: usize = 8;
/// Initiations and responses that may wait in each queue.
pub const MAX_QUEUED_HANDSHAKES: usize = 1024;
/// When so many wait, there is load.
pub const UNDER_LOAD_QUEUE_DEPTH: usize = MAX_QUEUED_HANDSHAKES / 8;
/// How long load lasts afterwards.
pub const UNDER_LOAD_HOLD: u64 = SECOND;
/// Initiations of one peer are at least this far apart.
pub const HANDSHAKE_FLOOR: u64 = SECOND / 50;
/// Handshake messages per second from one source.
pub const LIMITER_RATE: u64 = 20;
/// Handshake messages at once from one source.
pub const LIMITER_BURST: u64 = 5;
/// How many sources are remembered.
pub const LIMITER_MAX_SOURCES: usize = 1 << 16;

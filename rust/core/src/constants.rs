//! Twin: wyrmhole/protocol/constants.py, which gives the reasons; a test compares the values.

/// A second in nanoseconds.
pub const SECOND: u64 = 1_000_000_000;
/// The most packets that a peer may stage.
pub const MAX_STAGED_PACKETS: usize = 128;
/// The most bytes that a device may stage.
pub const MAX_STAGED_BYTES: usize = 16 << 20;
/// A peer may stage one part in this many of the bytes that the device has left.
pub const STAGED_SHARE: usize = 8;
/// The most initiations and responses in each queue.
pub const MAX_QUEUED_HANDSHAKES: usize = 1024;
/// The number of waiting messages from which the device is under load.
pub const UNDER_LOAD_QUEUE_DEPTH: usize = MAX_QUEUED_HANDSHAKES / 8;
/// How long the device remains under load afterwards.
pub const UNDER_LOAD_HOLD: u64 = SECOND;
/// The shortest interval between initiations of one peer.
pub const HANDSHAKE_FLOOR: u64 = SECOND / 50;
/// Handshake messages per second from one source.
pub const LIMITER_RATE: u64 = 20;
/// Handshake messages at once from one source.
pub const LIMITER_BURST: u64 = 5;
/// The most sources that are remembered.
pub const LIMITER_MAX_SOURCES: usize = 1 << 16;

//! The targets. They are called by the fuzzer, and by `core/tests/corpus.rs`, which replays the corpus.

pub mod allowed_ips;
pub mod coalesce;
pub mod datagram;
pub mod inner_ip;
pub mod replay;
pub mod virtio_split;

/// A target, which panics if its property does not hold for the input.
pub type Target = fn(&[u8]);

/// All targets by name, which is also the name of their folder in the corpus.
pub const TARGETS: [(&str, Target); 6] = [
    ("allowed_ips", allowed_ips::run),
    ("coalesce", coalesce::run),
    ("datagram", datagram::run),
    ("inner_ip", inner_ip::run),
    ("replay", replay::run),
    ("virtio_split", virtio_split::run),
];

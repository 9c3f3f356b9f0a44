//! What the targets do with an input. The fuzzer calls it, and `core/tests/corpus.rs`, which replays the corpus.

pub mod allowed_ips;
pub mod coalesce;
pub mod datagram;
pub mod inner_ip;
pub mod replay;
pub mod virtio_split;

/// A target: it panics when something is wrong.
pub type Target = fn(&[u8]);

/// Every target by its name, which is that of its folder in the corpus.
pub const TARGETS: [(&str, Target); 6] = [
    ("allowed_ips", allowed_ips::run),
    ("coalesce", coalesce::run),
    ("datagram", datagram::run),
    ("inner_ip", inner_ip::run),
    ("replay", replay::run),
    ("virtio_split", virtio_split::run),
];

//! The packet path of wyrmhole without I/O.
//!
//! Formats ([`messages`], [`ip`], [`virtio`], [`split`], [`coalesce`]) have no state. The state is in [`tables`]:
//! peers, keypairs by receiver index, routes, counters, reports. All workers and the control thread share it. The two
//! steps, [`outbound`] and [`inbound`], turn frames into datagrams and back. They send and write through
//! [`edges::Edges`], which is implemented by the kernel's edges, by tests and by fuzzers.
//!
//! The first line of each file names its twin in the Python package, which reads as the specification. One test suite
//! runs on both. Locks are held for table look-ups and marks, never while sealing, opening, or using an edge.

#![forbid(unsafe_code)]

pub mod aead;
pub mod allowed_ips;
pub mod answers;
pub mod checksum;
pub mod coalesce;
pub mod constants;
pub mod cookie;
pub mod drops;
pub mod edges;
pub mod gate;
pub mod handshake_queues;
pub mod inbound;
pub mod ip;
pub mod keypair;
pub mod mailbox;
pub mod messages;
pub mod noise;
pub mod outbound;
pub mod patience;
pub mod peer;
pub mod primitives;
pub mod quiet_sources;
pub mod ratelimiter;
pub mod refusals;
pub mod replay;
pub mod reports;
pub mod responder;
pub mod sending;
pub mod sharing;
pub mod split;
mod sync;
pub mod tables;
pub mod tickets;
pub mod train;
pub mod train_health;
pub mod virtio;

//! Any train of datagrams, to an engine with a session: no panic, and every datagram is delivered, reported or counted.

use std::net::SocketAddr;

use wyrmhole_core::aead::Ring;
use wyrmhole_core::edges::{Edges, Gather, SendOutcome};
use wyrmhole_core::inbound::{Arrival, Inbound};
use wyrmhole_core::keypair::Limits;
use wyrmhole_core::messages;
use wyrmhole_core::outbound::Outbound;
use wyrmhole_core::peer::Source;
use wyrmhole_core::shared::Shared;

struct Nowhere;

impl Edges for Nowhere {
    fn is_bound(&self) -> bool {
        true
    }
    fn send(&mut self, _: &SocketAddr, _: Option<&Source>, _: &[u8], _: usize, _: u8) -> SendOutcome {
        panic!("nothing is answered by the packet path")
    }
    fn write(&mut self, _: Gather<'_>) -> bool {
        panic!("nothing here has a good tag")
    }
    fn offloads(&self) -> (bool, bool) {
        (true, true)
    }
}

/// Panics when it does not hold.
pub fn run(data: &[u8]) {
    let [tos, segment, rest @ ..] = data else { return };
    let _ = messages::classify(rest);
    let shared = Shared::new(Box::new(Ring));
    shared.set_mac1_key(Some([1; 32]));
    shared.add_peer(1);
    let limits = Limits {
        local_index: 0x0101_0101,
        remote_index: 2,
        is_initiator: false,
        rekey_send_at: u64::MAX,
        rekey_receive_at: u64::MAX,
        reject_at: 100,
        send_until: 100,
        rekey_after_messages: 1 << 60,
        reject_after_messages: u64::MAX - 8192,
    };
    shared.install_keypair(1, limits, &[2; 32], &[3; 32]);
    let from = SocketAddr::from(([192, 0, 2, 1], 51820));
    let arrival = Arrival { from, source: None, tos: *tos, segment: usize::from(*segment) };
    let mut slot = rest.to_vec();
    let (mut inbound, mut outbound) = (Inbound::default(), Outbound::default());
    inbound.receive(&shared, &mut Nowhere, &mut outbound, &mut slot, &arrival, 5);
    let count = match arrival.segment {
        0 => 1,
        _ if rest.is_empty() => 1,
        segment => rest.len().div_ceil(segment),
    };
    let dropped: u64 = shared.drops.list().map(|(_, count)| count).sum();
    let reported = shared.reports.take(usize::MAX).1.len();
    assert_eq!(dropped as usize + reported, count);
}

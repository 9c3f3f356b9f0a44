//! Any train of datagrams to an engine with a session: no panic, and every datagram is delivered, reported or counted.

use std::net::SocketAddr;

use wyrmhole_core::aead::AwsLc;
use wyrmhole_core::edges::{Edges, Gather, SendOutcome, Turn};
use wyrmhole_core::inbound::{Arrival, Inbound};
use wyrmhole_core::keypair::KeypairParams;
use wyrmhole_core::messages;
use wyrmhole_core::outbound::Outbound;
use wyrmhole_core::peer::Source;
use wyrmhole_core::tables::Tables;

struct Nowhere;

impl Edges for Nowhere {
    fn is_bound(&self) -> bool {
        true
    }
    fn send(&mut self, _: &SocketAddr, _: Option<&Source>, _: &[u8], _: usize, _: u8) -> SendOutcome {
        panic!("the packet path answered a datagram")
    }
    fn write(&mut self, _: Gather<'_>) -> bool {
        panic!("a datagram without a valid tag was delivered")
    }
    fn offloads(&self) -> (bool, bool) {
        (true, true)
    }
}

/// Panic if the property does not hold.
pub fn run(data: &[u8]) {
    let [tos, segment_size, rest @ ..] = data else { return };
    let _ = messages::classify(rest);
    let tables = Tables::new(Box::new(AwsLc));
    tables.set_mac1_key(Some([1; 32]));
    tables.add_peer(1);
    let params = KeypairParams {
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
    tables.install_keypair(1, params, &[2; 32], &[3; 32]);
    let from = SocketAddr::from(([192, 0, 2, 1], 51820));
    let arrival = Arrival { from, source: None, tos: *tos, segment_size: usize::from(*segment_size) };
    let mut slot = rest.to_vec();
    let (mut inbound, mut outbound) = (Inbound::default(), Outbound::default());
    let mut turn = Turn { tables: &tables, edges: &mut Nowhere, now: 5 };
    inbound.receive(&mut turn, &mut outbound, &mut slot, &arrival);
    let count = match arrival.segment_size {
        0 => 1,
        _ if rest.is_empty() => 1,
        segment_size => rest.len().div_ceil(segment_size),
    };
    let dropped: u64 = tables.drops.list().map(|(_, count)| count).sum();
    let reported = tables.reports.take(usize::MAX).1.len();
    assert_eq!(dropped as usize + reported, count);
}

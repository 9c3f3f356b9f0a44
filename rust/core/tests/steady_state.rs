//! A packet costs no allocation once a session is up: 10,000 each way, small ones and super-packets, are counted.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::SocketAddr;

use wyrmhole_core::aead::Ring;
use wyrmhole_core::allowed_ips::Prefix;
use wyrmhole_core::drops::NAMES;
use wyrmhole_core::edges::{Edges, Gather, SendOutcome};
use wyrmhole_core::inbound::{Arrival, Inbound};
use wyrmhole_core::ip::Address;
use wyrmhole_core::keypair::Limits;
use wyrmhole_core::outbound::Outbound;
use wyrmhole_core::peer::Source;
use wyrmhole_core::shared::Shared;

struct Counting;

thread_local! {
    /// Of this thread: the harness has others.
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise is the system allocator's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What left, in buffers made before: the latest train, and how many packets were written to the TUN.
struct World {
    wire: Vec<u8>,
    segment: usize,
    sent: usize,
    delivered: usize,
}

impl Edges for World {
    fn is_bound(&self) -> bool {
        true
    }
    fn send(&mut self, _: &SocketAddr, _: Option<&Source>, data: &[u8], segment: usize, _: u8) -> SendOutcome {
        self.wire.extend_from_slice(data);
        self.segment = segment;
        self.sent += if segment == 0 { 1 } else { data.len().div_ceil(segment) };
        SendOutcome::default()
    }
    fn write(&mut self, frame: Gather<'_>) -> bool {
        self.delivered += frame.parts.len();
        true
    }
    fn offloads(&self) -> (bool, bool) {
        (true, true)
    }
}

fn side(index: u32, other: u32, is_initiator: bool) -> Shared {
    let shared = Shared::new(Box::new(Ring));
    shared.set_mac1_key(Some([1; 32]));
    shared.add_peer(1);
    shared.insert_allowed_ip(1, Prefix { address: Address::V4(0x0A00_0000), length: 8 });
    shared.with_peer(1, |_, state| state.endpoint = Some(SocketAddr::from(([192, 0, 2, 1], 51820))));
    let limits = Limits {
        local_index: index,
        remote_index: other,
        is_initiator,
        rekey_send_at: u64::MAX,
        rekey_receive_at: u64::MAX,
        reject_at: u64::MAX,
        send_until: u64::MAX,
        rekey_after_messages: 1 << 60,
        reject_after_messages: u64::MAX - 8192,
    };
    let (send, receive) = if is_initiator { ([2; 32], [3; 32]) } else { ([3; 32], [2; 32]) };
    shared.install_keypair(1, limits, &send, &receive);
    shared
}

/// A virtio header and a UDP packet or super-packet with that much payload.
fn frame(payload: usize, gso_size: u16) -> Vec<u8> {
    let mut frame = vec![0; 10 + 28 + payload];
    if gso_size > 0 {
        frame[0] = 1;
        frame[1] = 5;
        frame[4..6].copy_from_slice(&gso_size.to_ne_bytes());
        frame[6..8].copy_from_slice(&20u16.to_ne_bytes());
        frame[8..10].copy_from_slice(&6u16.to_ne_bytes());
    }
    let length = (28 + payload) as u16;
    frame[10..20].copy_from_slice(&[0x45, 0, (length >> 8) as u8, length as u8, 0, 0, 0x40, 0, 64, 17]);
    frame[22..30].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    frame[30..36].copy_from_slice(&[0, 1, 0, 2, ((8 + payload) >> 8) as u8, (8 + payload) as u8]);
    frame
}

#[test]
fn ten_thousand_packets_each_way_allocate_nothing() {
    let (a, b) = (side(1, 2, true), side(2, 1, false));
    let (mut outbound, mut inbound) = (Outbound::default(), Inbound::default());
    let mut spare = Outbound::default();
    inbound.set_offloads((true, true));
    let mut world = World { wire: Vec::with_capacity(1 << 20), segment: 0, sent: 0, delivered: 0 };
    let arrival = |segment| Arrival { from: SocketAddr::from(([192, 0, 2, 1], 51820)), source: None, tos: 0, segment };
    let frames = [frame(100, 0), frame(20_000, 1000), frame(1380, 0), frame(3000, 1000)];
    let mut scratch = vec![0; 1 << 16];
    let mut slot = vec![0; 1 << 16];
    let mut round = |world: &mut World, outbound: &mut Outbound| {
        for frame in &frames {
            let scratch = &mut scratch[..frame.len()];
            scratch.copy_from_slice(frame);
            outbound.frame(&a, world, scratch, 5);
            outbound.flush(&a, world);
            let slot = &mut slot[..world.wire.len()];
            slot.copy_from_slice(&world.wire);
            world.wire.clear();
            let arrival = arrival(world.segment);
            inbound.receive(&b, world, &mut spare, slot, &arrival, 5);
        }
    };
    round(&mut world, &mut outbound);
    // What the first round says (the peer is active, its key confirmed) is taken as the control thread does.
    drop((a.reports.take(100), b.reports.take(100)));
    (world.sent, world.delivered) = (0, 0);
    let before = ALLOCATIONS.get();
    while world.sent < 10_000 {
        round(&mut world, &mut outbound);
    }
    let during = ALLOCATIONS.get() - before;
    assert_eq!(during, 0, "allocations over {} packets sent and received", world.sent);
    assert_eq!(world.delivered, world.sent);
    for shared in [&a, &b] {
        assert_eq!(shared.drops.list().count(), 0, "of {NAMES:?}");
    }
}

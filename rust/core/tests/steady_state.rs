//! Once a session is up, packets cause no allocation: counted over 10,000 each way, small ones and super-packets.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use wyrmhole_core::aead::AwsLc;
use wyrmhole_core::drops::NAMES;
use wyrmhole_core::edges::{Edges, Gather, SendOutcome};
use wyrmhole_core::inbound::{Arrival, Inbound};
use wyrmhole_core::outbound::Outbound;
use wyrmhole_core::peer::Source;
use wyrmhole_core::sharing::Lane;
use wyrmhole_core::tables::Tables;

use common::{frame, params, turn, without_key};

struct Counting;

thread_local! {
    /// Counted per thread, because the test harness has other threads.
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: all calls are passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller guarantees what the system allocator requires.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Records the last train in a buffer allocated before, and counts packets.
struct World {
    wire: Vec<u8>,
    segment_size: usize,
    sent: usize,
    delivered: usize,
}

impl Edges for World {
    fn is_bound(&self) -> bool {
        true
    }
    fn send(&mut self, _: &SocketAddr, _: Option<&Source>, data: &[u8], segment_size: usize, _: u8) -> SendOutcome {
        self.wire.extend_from_slice(data);
        self.segment_size = segment_size;
        self.sent += if segment_size == 0 { 1 } else { data.len().div_ceil(segment_size) };
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

/// Create tables with a keypair. Two sides with each other's indices can communicate.
fn side(index: u32, other: u32, is_initiator: bool) -> Tables {
    let tables = without_key(Box::new(AwsLc));
    let (send, receive) = if is_initiator { ([2; 32], [3; 32]) } else { ([3; 32], [2; 32]) };
    tables.install_keypair(1, params(index, other, is_initiator), &send, &receive);
    // An authenticated message came back on this path, so trains may be sent.
    tables.with_peer(1, |peer, state| tables.note_received(peer, state, 92, 5));
    tables
}

#[test]
fn ten_thousand_packets_each_way_allocate_nothing() {
    let (a, b) = (side(1, 2, true), side(2, 1, false));
    // An authenticated message came back, so trains are sent.
    a.with_peer(1, |peer, state| a.note_received(peer, state, 32, 5));
    let (mut outbound, mut inbound) = (Outbound::default(), Inbound::default());
    let mut spare = Outbound::default();
    inbound.set_offloads((true, true));
    let mut world = World { wire: Vec::with_capacity(1 << 20), segment_size: 0, sent: 0, delivered: 0 };
    let arrival =
        |segment_size| Arrival { from: SocketAddr::from(([192, 0, 2, 1], 51820)), source: None, tos: 0, segment_size };
    let frames = [frame(100, 0), frame(20_000, 1000), frame(1380, 0), frame(3000, 1000)];
    let mut scratch = vec![0; 1 << 16];
    let mut slot = vec![0; 1 << 16];
    let mut round = |world: &mut World, outbound: &mut Outbound| {
        for frame in &frames {
            let scratch = &mut scratch[..frame.len()];
            scratch.copy_from_slice(frame);
            outbound.frame(&mut turn(&a, world), scratch);
            outbound.flush(&mut turn(&a, world));
            let slot = &mut slot[..world.wire.len()];
            slot.copy_from_slice(&world.wire);
            world.wire.clear();
            let arrival = arrival(world.segment_size);
            inbound.receive(&mut turn(&b, world), &mut spare, slot, &arrival);
        }
    };
    round(&mut world, &mut outbound);
    // Take the reports of the first round (the peer is active, its keypair is confirmed) like the control thread.
    drop((a.reports.take(100), b.reports.take(100)));
    (world.sent, world.delivered) = (0, 0);
    let before = ALLOCATIONS.get();
    while world.sent < 10_000 {
        round(&mut world, &mut outbound);
    }
    let during = ALLOCATIONS.get() - before;
    assert_eq!(during, 0, "allocations over {} packets sent and received", world.sent);
    assert_eq!(world.delivered, world.sent);
    for tables in [&a, &b] {
        assert_eq!(tables.drops.list().count(), 0, "of {NAMES:?}");
    }
}

/// Counts what is written.
#[derive(Clone)]
struct Tun(Arc<AtomicUsize>);

impl Edges for Tun {
    fn is_bound(&self) -> bool {
        true
    }
    fn send(&mut self, _: &SocketAddr, _: Option<&Source>, _: &[u8], _: usize, _: u8) -> SendOutcome {
        SendOutcome::default()
    }
    fn write(&mut self, frame: Gather<'_>) -> bool {
        self.0.fetch_add(frame.parts.len(), Ordering::Relaxed);
        true
    }
    fn offloads(&self) -> (bool, bool) {
        (false, false)
    }
}

#[test]
fn ten_thousand_packets_in_shared_trains_allocate_nothing() {
    let (a, b) = (side(1, 2, true), side(2, 1, false));
    let (mut inbound, mut outbound) = (Inbound::default(), Outbound::default());
    let mut world = World { wire: Vec::with_capacity(1 << 20), segment_size: 0, sent: 0, delivered: 0 };
    let (tun, lane) = (Tun(Arc::default()), Lane::new(3, 1 << 16));
    let frame = frame(20_000, 1000);
    let mut scratch = frame.clone();
    let mut slot = vec![0; 1 << 16].into_boxed_slice();
    let mut round = |world: &mut World| {
        for is_shared in [true, true, false] {
            scratch.copy_from_slice(&frame);
            outbound.frame(&mut turn(&a, world), &mut scratch);
            outbound.flush(&mut turn(&a, world));
            let length = world.wire.len();
            slot[..length].copy_from_slice(&world.wire);
            world.wire.clear();
            let from = SocketAddr::from(([192, 0, 2, 1], 51820));
            let arrival = Arrival { from, source: None, tos: 0, segment_size: world.segment_size };
            assert!(lane.pass_on(&b, &mut slot, length, (arrival, 5, tun.clone()), is_shared));
        }
        while lane.open_one(&b) {}
        assert!(!lane.deliver(&b, &mut inbound, &mut outbound, usize::MAX));
    };
    round(&mut world);
    drop((a.reports.take(100), b.reports.take(100)));
    let (sent, before) = (world.sent, ALLOCATIONS.get());
    while world.sent < sent + 10_000 {
        round(&mut world);
    }
    assert_eq!(ALLOCATIONS.get() - before, 0, "allocations over {} packets", world.sent - sent);
    assert_eq!(tun.0.load(Ordering::Relaxed), world.sent);
}

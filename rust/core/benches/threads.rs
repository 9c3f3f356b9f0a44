//! What a second thread gives one peer: `cargo bench --package wyrmhole-core --bench threads`.
//!
//! Trains come from memory and go nowhere, so nothing but the packet path is measured: one peer, one direction. With two
//! threads, one owns the trains and passes them on as a worker with a backlog does, the other one helps. The best of
//! many short rounds is printed, because whatever else runs on the machine only makes it slower.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use wyrmhole_core::aead::AwsLc;
use wyrmhole_core::allowed_ips::Prefix;
use wyrmhole_core::edges::{Edges, Gather, SendOutcome, Turn};
use wyrmhole_core::inbound::{Arrival, Inbound};
use wyrmhole_core::ip::Address;
use wyrmhole_core::keypair::KeypairParams;
use wyrmhole_core::outbound::Outbound;
use wyrmhole_core::peer::Source;
use wyrmhole_core::sharing::Lane;
use wyrmhole_core::tables::Tables;

const ROUNDS: usize = 500;
const TRAINS: usize = 128;
const SLOT: usize = 1 << 16;
const PAYLOAD: usize = 1392;
const PER_TRAIN: usize = 45;
const HANDSHAKE: usize = 92;

/// Keeps the latest train, and counts bytes.
#[derive(Clone, Default)]
struct Nowhere {
    wire: Vec<u8>,
}

impl Edges for Nowhere {
    fn is_bound(&self) -> bool {
        true
    }
    fn send(&mut self, _: &SocketAddr, _: Option<&Source>, data: &[u8], _: usize, _: u8) -> SendOutcome {
        self.wire = data.to_vec();
        SendOutcome::default()
    }
    fn write(&mut self, frame: Gather<'_>) -> bool {
        !frame.parts.is_empty()
    }
    fn offloads(&self) -> (bool, bool) {
        (true, true)
    }
}

fn side(index: u32, other: u32, is_initiator: bool) -> Tables {
    let tables = Tables::new(Box::new(AwsLc));
    tables.set_mac1_key(Some([1; 32]));
    tables.add_peer(1);
    tables.insert_allowed_ip(1, Prefix { address: Address::V4(0x0A00_0000), length: 8 });
    let params = KeypairParams {
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
    tables.install_keypair(1, params, &send, &receive);
    tables.with_peer(1, |peer, state| {
        state.endpoint = Some(SocketAddr::from(([192, 0, 2, 1], 51820)));
        tables.note_received(peer, state, HANDSHAKE, 5);
    });
    tables
}

/// A UDP super-packet of `PER_TRAIN` datagrams, without checksums.
fn frame() -> Vec<u8> {
    let payload = PAYLOAD * PER_TRAIN;
    let mut frame = vec![0; 10 + 28 + payload];
    frame[0] = 1;
    frame[1] = 5;
    frame[4..6].copy_from_slice(&(PAYLOAD as u16).to_ne_bytes());
    frame[6..8].copy_from_slice(&20u16.to_ne_bytes());
    frame[8..10].copy_from_slice(&6u16.to_ne_bytes());
    let length = (28 + payload) as u16;
    frame[10..20].copy_from_slice(&[0x45, 0, (length >> 8) as u8, length as u8, 0, 0, 0x40, 0, 64, 17]);
    frame[22..30].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    frame[30..36].copy_from_slice(&[0, 1, 0, 2, ((8 + payload) >> 8) as u8, (8 + payload) as u8]);
    frame
}

fn sealed() -> Vec<Vec<u8>> {
    let tables = side(1, 2, true);
    let (mut edges, mut outbound) = (Nowhere::default(), Outbound::default());
    let train = |_| {
        let mut turn = Turn { tables: &tables, edges: &mut edges, now: 5 };
        outbound.frame(&mut turn, &mut frame());
        outbound.flush(&mut turn);
        std::mem::take(&mut edges.wire)
    };
    (0..TRAINS).map(train).collect()
}

fn arrival() -> Arrival {
    let segment_size = 16 + (PAYLOAD + 28).next_multiple_of(16).min(1420) + 16;
    Arrival { from: SocketAddr::from(([192, 0, 2, 1], 51820)), source: None, tos: 0, segment_size }
}

/// As a worker that keeps up.
fn alone(trains: &[Vec<u8>]) -> Duration {
    let tables = side(2, 1, false);
    let (mut inbound, mut outbound, mut edges) = (Inbound::default(), Outbound::default(), Nowhere::default());
    inbound.set_offloads((true, true));
    let mut slot = vec![0; SLOT].into_boxed_slice();
    let begin = Instant::now();
    for train in trains {
        slot[..train.len()].copy_from_slice(train);
        let mut turn = Turn { tables: &tables, edges: &mut edges, now: 5 };
        inbound.receive(&mut turn, &mut outbound, &mut slot[..train.len()], &arrival());
    }
    let span = begin.elapsed();
    check(&tables, trains);
    span
}

/// As a worker with a backlog and its helper.
fn together(trains: &[Vec<u8>]) -> Duration {
    let tables = side(2, 1, false);
    let (lane, is_over) = (Lane::new(6, SLOT), AtomicBool::new(false));
    let (mut span, is_there) = (Duration::ZERO, AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut inbound, mut outbound) = (Inbound::default(), Outbound::default());
            is_there.store(true, Ordering::Relaxed);
            while !is_over.load(Ordering::Relaxed) {
                if lane.has_offers() {
                    lane.open_one(&tables);
                    lane.deliver(&tables, &mut inbound, &mut outbound, 16);
                }
            }
        });
        let (mut inbound, mut outbound) = (Inbound::default(), Outbound::default());
        let mut slot = vec![0; SLOT].into_boxed_slice();
        while !is_there.load(Ordering::Relaxed) {
            thread::yield_now();
        }
        let begin = Instant::now();
        for train in trains {
            while !lane.has_room() {
                if !lane.open_one(&tables) {
                    thread::yield_now();
                }
                lane.deliver(&tables, &mut inbound, &mut outbound, usize::MAX);
            }
            slot[..train.len()].copy_from_slice(train);
            lane.pass_on(&tables, &mut slot, train.len(), (arrival(), 5, Nowhere::default()), true);
            lane.deliver(&tables, &mut inbound, &mut outbound, usize::MAX);
        }
        lane.finish(&tables, &mut inbound, &mut outbound);
        span = begin.elapsed();
        is_over.store(true, Ordering::Relaxed);
    });
    check(&tables, trains);
    span
}

fn check(tables: &Tables, trains: &[Vec<u8>]) {
    // And the handshake.
    let bytes: usize = trains.iter().map(Vec::len).sum::<usize>() + HANDSHAKE;
    let received = tables.peer(1).map_or(0, |peer| peer.counters().1);
    assert_eq!(received, bytes as u64, "something was dropped: {:?}", tables.drops.list().collect::<Vec<_>>());
}

fn main() {
    let trains = sealed();
    let bits: usize = trains.iter().map(|train| train.len() * 8).sum();
    let best = |run: fn(&[Vec<u8>]) -> Duration| (0..ROUNDS).map(|_| run(&trains)).min().unwrap_or_default();
    let (one, two) = (best(alone), best(together));
    for (threads, span) in [(1, one), (2, two)] {
        let each = span.as_secs_f64() / TRAINS as f64 * 1e6;
        let rate = bits as f64 / span.as_secs_f64() / 1e9;
        println!("opening, {threads} thread(s): {each:.1} us per train of {PER_TRAIN} datagrams, {rate:.1} Gb/s");
    }
    println!("opening, 2 threads to 1: {:.2}x", one.as_secs_f64() / two.as_secs_f64());
}

//! Trains of one owner that many threads open: what is delivered is what one thread would deliver, in the same order.

mod common;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use wyrmhole_core::aead::{Aead, AwsLc, TransportCipher};
use wyrmhole_core::edges::{Edges, Gather, SendOutcome};
use wyrmhole_core::inbound::{Arrival, Inbound};
use wyrmhole_core::outbound::Outbound;
use wyrmhole_core::peer::Source;
use wyrmhole_core::sharing::Lane;
use wyrmhole_core::tables::Tables;

use common::{frame, params, turn, without_key};

const SLOT: usize = 1 << 16;
const PAYLOAD: usize = 1000;
const PER_TRAIN: usize = 20;
const WIRE: usize = 16 + (28 + PAYLOAD).next_multiple_of(16) + 16;
/// More trains than a lane has room for, so that each role is taken.
const TRAINS: usize = 400;
/// Where the payload's number begins in a packet.
const NUMBER: usize = 28;

/// Records what is written to the TUN and sent, and counts how many threads are at it at once.
#[derive(Clone, Default)]
struct World {
    written: Arc<Mutex<Vec<u32>>>,
    sent: Arc<Mutex<Vec<u8>>>,
    inside: Arc<AtomicUsize>,
    was_entered_twice: Arc<AtomicBool>,
    panics_at: Option<u32>,
}

impl Edges for World {
    fn is_bound(&self) -> bool {
        true
    }
    fn send(&mut self, _: &SocketAddr, _: Option<&Source>, data: &[u8], _: usize, _: u8) -> SendOutcome {
        self.sent.lock().unwrap().extend_from_slice(data);
        SendOutcome::default()
    }
    fn write(&mut self, frame: Gather<'_>) -> bool {
        if self.inside.fetch_add(1, Ordering::SeqCst) > 0 {
            self.was_entered_twice.store(true, Ordering::SeqCst);
        }
        let packet = frame.parts[0].of(frame.slot);
        let number = u32::from_le_bytes(packet[NUMBER..NUMBER + 4].try_into().unwrap());
        self.written.lock().unwrap().push(number);
        self.inside.fetch_sub(1, Ordering::SeqCst);
        assert_ne!(self.panics_at, Some(number), "planted");
        true
    }
    fn offloads(&self) -> (bool, bool) {
        (false, false)
    }
}

/// A cipher that panics over the packet of one number.
struct Fragile(u64);

struct FragileKey(Box<dyn TransportCipher>, u64);

impl Aead for Fragile {
    fn name(&self) -> &'static str {
        "fragile"
    }
    fn key(&self, key: &[u8; 32]) -> Box<dyn TransportCipher> {
        Box::new(FragileKey(AwsLc.key(key), self.0))
    }
}

impl TransportCipher for FragileKey {
    fn seal(&self, counter: u64, text: &mut [u8]) {
        self.0.seal(counter, text);
    }
    fn open(&self, counter: u64, text: &mut [u8]) -> bool {
        assert_ne!(counter, self.1, "planted");
        self.0.open(counter, text)
    }
}

/// So many trains of numbered packets of one flow, sealed under the keypair with the remote index 2.
fn trains(count: usize) -> Vec<Vec<u8>> {
    let tables = without_key(Box::new(AwsLc));
    tables.install_keypair(1, params(1, 2, true), &[2; 32], &[3; 32]);
    let (mut world, mut outbound) = (World::default(), Outbound::default());
    let mut number = 0u32;
    let mut train = |_| {
        for _ in 0..PER_TRAIN {
            let mut frame = frame(PAYLOAD, 0);
            frame[10 + NUMBER..10 + NUMBER + 4].copy_from_slice(&number.to_le_bytes());
            number += 1;
            outbound.frame(&mut turn(&tables, &mut world), &mut frame);
        }
        outbound.flush(&mut turn(&tables, &mut world));
        let train = std::mem::take(&mut *world.sent.lock().unwrap());
        assert_eq!(train.len(), PER_TRAIN * WIRE);
        train
    };
    (0..count).map(&mut train).collect()
}

fn receiver(aead: Box<dyn Aead>) -> Tables {
    let tables = without_key(aead);
    tables.install_keypair(1, params(2, 1, false), &[3; 32], &[2; 32]);
    tables
}

fn arrival() -> Arrival {
    Arrival { from: SocketAddr::from(([192, 0, 2, 7], 7)), source: None, tos: 0, segment_size: WIRE }
}

/// What the owner does with each train, in turn: most are shared, some it opens itself.
fn own(lane: &Lane<World>, tables: &Tables, world: &World, trains: &[Vec<u8>], between: impl Fn(usize)) {
    let (mut inbound, mut outbound) = (Inbound::default(), Outbound::default());
    let mut slot = vec![0; SLOT].into_boxed_slice();
    for (number, train) in trains.iter().enumerate() {
        between(number);
        while !lane.has_room() {
            lane.open_one(tables);
            lane.deliver(tables, &mut inbound, &mut outbound, usize::MAX);
            thread::yield_now();
        }
        slot[..train.len()].copy_from_slice(train);
        let came = (arrival(), 5, world.clone());
        assert!(lane.pass_on(tables, &mut slot, train.len(), came, number % 7 != 0));
        lane.deliver(tables, &mut inbound, &mut outbound, usize::MAX);
    }
    lane.finish(tables, &mut inbound, &mut outbound);
    assert!(lane.is_idle());
}

/// The owner and `threads - 1` helpers.
fn run(threads: usize, tables: &Tables, world: &World, trains: &[Vec<u8>], between: impl Fn(usize)) {
    let lane = Lane::new(3 * threads, SLOT);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(|| {
                let (mut inbound, mut outbound) = (Inbound::default(), Outbound::default());
                while !is_over.load(Ordering::Relaxed) {
                    if lane.has_offers() {
                        lane.open_one(tables);
                        lane.deliver(tables, &mut inbound, &mut outbound, 4);
                    }
                    thread::yield_now();
                }
            });
        }
        own(&lane, tables, world, trains, between);
        assert!(!lane.has_offers());
        is_over.store(true, Ordering::Relaxed);
    });
    assert!(!world.was_entered_twice.load(Ordering::SeqCst), "two threads deliver at once");
    assert_eq!(Arc::strong_count(&world.written), 1, "a train that was delivered keeps its edges");
}

fn drops(tables: &Tables) -> Vec<(&'static str, u64)> {
    tables.drops.list().collect()
}

fn all() -> Vec<u32> {
    (0..(TRAINS * PER_TRAIN) as u32).collect()
}

#[test]
fn a_flow_stays_in_order_with_any_number_of_threads() {
    let trains = trains(TRAINS);
    for threads in [1, 2, 4, 8, 16] {
        let (tables, world) = (receiver(Box::new(AwsLc)), World::default());
        run(threads, &tables, &world, &trains, |_| ());
        assert!(*world.written.lock().unwrap() == all(), "{threads} threads");
        assert!(drops(&tables).is_empty());
        let received = tables.peer(1).unwrap().counters().1;
        assert_eq!(received, (TRAINS * PER_TRAIN * WIRE) as u64);
    }
}

#[test]
fn replays_and_bad_tags_are_dropped_and_counted_once() {
    let mut trains = trains(TRAINS);
    let last = trains.len() - 1;
    // One datagram of each train is spoiled; then half the trains come again, in which that one is bad again.
    for train in &mut trains {
        train[WIRE - 1] ^= 1;
    }
    let again: Vec<_> = trains[last / 2..].to_vec();
    trains.extend(again.clone());
    for threads in [2, 4, 16] {
        let (tables, world) = (receiver(Box::new(AwsLc)), World::default());
        run(threads, &tables, &world, &trains, |_| ());
        let expected: Vec<_> = all().into_iter().filter(|number| number % PER_TRAIN as u32 != 0).collect();
        assert!(*world.written.lock().unwrap() == expected);
        let counts = drops(&tables);
        assert!(counts.contains(&("bad_tag", trains.len() as u64)), "{counts:?}");
        assert!(counts.contains(&("replayed", (again.len() * (PER_TRAIN - 1)) as u64)), "{counts:?}");
    }
}

#[test]
fn a_train_that_panics_when_opened_is_lost_and_nothing_else() {
    let trains = trains(TRAINS);
    for threads in [1, 2, 8] {
        let victim = (TRAINS / 2 * PER_TRAIN + 3) as u32;
        let (tables, world) = (receiver(Box::new(Fragile(u64::from(victim)))), World::default());
        run(threads, &tables, &world, &trains, |_| ());
        let lost = victim / PER_TRAIN as u32;
        let expected: Vec<_> = all().into_iter().filter(|number| number / PER_TRAIN as u32 != lost).collect();
        assert!(*world.written.lock().unwrap() == expected);
        assert_eq!(drops(&tables), [("internal_error", 1)]);
    }
}

#[test]
fn a_train_that_panics_when_delivered_loses_its_rest_and_nothing_else() {
    let trains = trains(TRAINS);
    for threads in [1, 2, 8] {
        let victim = (TRAINS / 2 * PER_TRAIN + 3) as u32;
        let (tables, world) = (receiver(Box::new(AwsLc)), World { panics_at: Some(victim), ..World::default() });
        run(threads, &tables, &world, &trains, |_| ());
        let rest = victim + 1..(victim / PER_TRAIN as u32 + 1) * PER_TRAIN as u32;
        let expected: Vec<_> = all().into_iter().filter(|number| !rest.contains(number)).collect();
        assert!(*world.written.lock().unwrap() == expected);
        assert_eq!(drops(&tables), [("internal_error", 1)]);
    }
}

#[test]
fn nothing_is_delivered_for_a_peer_that_is_gone() {
    let trains = trains(TRAINS);
    for threads in [1, 2, 8] {
        let (tables, world) = (receiver(Box::new(AwsLc)), World::default());
        let delivered = AtomicUsize::new(0);
        run(threads, &tables, &world, &trains, |number| {
            if number == TRAINS / 2 {
                tables.remove_peer(1);
                delivered.store(world.written.lock().unwrap().len(), Ordering::SeqCst);
            }
        });
        let (written, before) = (world.written.lock().unwrap().len(), delivered.load(Ordering::SeqCst));
        // The train that was delivered at that moment may still be written.
        assert!(written <= before + PER_TRAIN, "{written} {before}");
        let dropped: u64 = drops(&tables).into_iter().map(|(_, count)| count).sum();
        assert_eq!(written as u64 + dropped, (TRAINS * PER_TRAIN) as u64, "{:?}", drops(&tables));
    }
}

#[test]
fn the_first_train_under_a_new_key_sends_what_waited_for_it() {
    let trains = trains(TRAINS);
    let (tables, mut world) = (receiver(Box::new(AwsLc)), World::default());
    let mut outbound = Outbound::default();
    // The key is the responder's: it is used for sending from the peer's first message on.
    outbound.frame(&mut turn(&tables, &mut world), &mut frame(100, 0));
    assert!(world.sent.lock().unwrap().is_empty());
    run(4, &tables, &world, &trains, |_| ());
    assert!(!world.sent.lock().unwrap().is_empty());
    assert!(*world.written.lock().unwrap() == all());
}

//! Staged packets are sent once there is a keypair, in order, whatever other threads do meanwhile.

mod common;

use std::net::SocketAddr;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex};

use wyrmhole_core::aead::{Aead, TransportCipher};
use wyrmhole_core::edges::{Edges, Gather, SendOutcome};
use wyrmhole_core::inbound::{Arrival, Inbound};
use wyrmhole_core::keypair::KeypairParams;
use wyrmhole_core::outbound::Outbound;
use wyrmhole_core::peer::Source;
use wyrmhole_core::reports::Report;
use wyrmhole_core::tables::Tables;

use common::{frame, params, turn, without_key};

const PAYLOAD: usize = 1380;
/// The number of staged packets: enough for several full trains.
const STAGED: u32 = 120;
/// The offset of a packet's number in its frame.
const NUMBER: usize = 38;

type Meanwhile = Box<dyn FnOnce() + Send>;

/// A library that encrypts nothing, so that the test can read the datagrams. The function, if any, is called while a
/// datagram is opened, as if by another thread.
struct Open(Arc<Mutex<Option<Meanwhile>>>);

impl Aead for Open {
    fn name(&self) -> &'static str {
        "none"
    }
    fn key(&self, _: &[u8; 32]) -> Box<dyn TransportCipher> {
        Box::new(Self(Arc::clone(&self.0)))
    }
}

impl TransportCipher for Open {
    fn seal(&self, _: u64, _: &mut [u8]) {}
    fn open(&self, _: u64, _: &mut [u8]) -> bool {
        let meanwhile = self.0.lock().unwrap().take();
        meanwhile.into_iter().for_each(|act| act());
        true
    }
}

/// Records the numbers and nonces of the packets sent. `meanwhile` is called during the first send, as if by another
/// thread.
#[derive(Default)]
struct World<'a> {
    sent: Vec<u32>,
    nonces: Vec<u64>,
    meanwhile: Option<Box<dyn FnOnce() + 'a>>,
}

impl Edges for World<'_> {
    fn is_bound(&self) -> bool {
        true
    }
    fn send(&mut self, _: &SocketAddr, _: Option<&Source>, data: &[u8], segment_size: usize, _: u8) -> SendOutcome {
        if let Some(meanwhile) = self.meanwhile.take() {
            meanwhile();
        }
        for datagram in data.chunks(if segment_size == 0 { data.len() } else { segment_size }) {
            self.nonces.push(u64::from_le_bytes(datagram[8..16].try_into().unwrap()));
            let packet = &datagram[16..];
            self.sent.push(u32::from_be_bytes(packet[NUMBER - 10..NUMBER - 6].try_into().unwrap()));
        }
        SendOutcome::default()
    }
    fn write(&mut self, _: Gather<'_>) -> bool {
        true
    }
    fn offloads(&self) -> (bool, bool) {
        (true, true)
    }
}

fn feed(tables: &Tables, outbound: &mut Outbound, world: &mut World<'_>, numbers: std::ops::Range<u32>) {
    for number in numbers {
        let mut frame = frame(PAYLOAD, 0);
        frame[NUMBER..NUMBER + 4].copy_from_slice(&number.to_be_bytes());
        outbound.frame(&mut turn(tables, world), &mut frame);
    }
    outbound.flush(&mut turn(tables, world));
}

fn with_staged_packets() -> Tables {
    let tables = without_key(Box::new(Open(Arc::default())));
    feed(&tables, &mut Outbound::default(), &mut World::default(), 0..STAGED);
    tables
}

/// Install a keypair and send the staged packets, like the control thread.
fn install(tables: &Tables, world: &mut World<'_>, params: KeypairParams) {
    let peer = tables.install_keypair(1, params, &[2; 32], &[3; 32]).unwrap();
    Outbound::default().send_staged(&mut turn(tables, world), &peer);
}

fn drops(tables: &Tables) -> Vec<(&'static str, u64)> {
    tables.drops.list().collect()
}

#[test]
fn a_packet_that_another_thread_reads_is_sent_after_the_staged_ones() {
    let tables = with_staged_packets();
    let later = || feed(&tables, &mut Outbound::default(), &mut World::default(), STAGED..STAGED + 3);
    let mut world = World { meanwhile: Some(Box::new(later)), ..World::default() };
    install(&tables, &mut world, params(1, 2, true));
    assert_eq!(world.sent, Vec::from_iter(0..STAGED + 3));
    assert_eq!(world.nonces, Vec::from_iter(0..u64::from(STAGED) + 3));
    assert_eq!(drops(&tables), []);
}

#[test]
fn packets_without_a_nonce_wait_for_the_next_keypair_before_later_ones() {
    let tables = with_staged_packets();
    let later = || feed(&tables, &mut Outbound::default(), &mut World::default(), STAGED..STAGED + 3);
    let mut world = World { meanwhile: Some(Box::new(later)), ..World::default() };
    install(&tables, &mut world, KeypairParams { reject_after_messages: 60, ..params(1, 2, true) });
    assert_eq!(world.sent, Vec::from_iter(0..60));
    install(&tables, &mut world, params(3, 4, true));
    assert_eq!(world.sent, Vec::from_iter(0..STAGED + 3));
    assert_eq!(drops(&tables), []);
}

#[test]
fn after_an_abandoned_turn_staged_packets_are_still_sent() {
    let tables = with_staged_packets();
    let mut world = World { meanwhile: Some(Box::new(|| panic!("a bug"))), ..World::default() };
    let quiet = panic::take_hook();
    panic::set_hook(Box::new(|_| ()));
    let abandoned = panic::catch_unwind(AssertUnwindSafe(|| install(&tables, &mut world, params(1, 2, true))));
    panic::set_hook(quiet);
    assert!(abandoned.is_err());
    feed(&tables, &mut Outbound::default(), &mut world, STAGED..STAGED + 3);
    assert_eq!(world.sent.last(), Some(&(STAGED + 2)));
    assert!(world.sent.is_sorted());
}

fn key_wanted(tables: &Tables) -> usize {
    let reports = tables.reports.take(1000).0;
    reports.iter().filter(|report| matches!(report, Report::KeyWanted(..))).count()
}

#[test]
fn packets_staged_although_there_is_a_keypair_ask_for_no_other() {
    let tables = with_staged_packets();
    assert_eq!(key_wanted(&tables), 1);
    let later = || feed(&tables, &mut Outbound::default(), &mut World::default(), STAGED..STAGED + 3);
    let mut world = World { meanwhile: Some(Box::new(later)), ..World::default() };
    install(&tables, &mut world, params(1, 2, true));
    assert_eq!(world.sent, Vec::from_iter(0..STAGED + 3));
    assert_eq!(key_wanted(&tables), 0);
}

/// A socket; during each send, another worker reads as many packets as may be staged.
struct Endless<'a> {
    tables: &'a Tables,
    nonces: Vec<u64>,
    next: u32,
}

impl Edges for Endless<'_> {
    fn is_bound(&self) -> bool {
        true
    }
    fn send(&mut self, _: &SocketAddr, _: Option<&Source>, data: &[u8], segment_size: usize, _: u8) -> SendOutcome {
        let chunks = data.chunks(if segment_size == 0 { data.len() } else { segment_size });
        self.nonces.extend(chunks.map(|datagram| u64::from_le_bytes(datagram[8..16].try_into().unwrap())));
        let mut world = World::default();
        feed(self.tables, &mut Outbound::default(), &mut world, self.next..self.next + 128);
        self.nonces.extend(world.nonces);
        self.next += 128;
        SendOutcome::default()
    }
    fn write(&mut self, _: Gather<'_>) -> bool {
        true
    }
    fn offloads(&self) -> (bool, bool) {
        (true, true)
    }
}

#[test]
fn an_endless_sender_delays_the_control_thread_for_a_few_rounds_only() {
    let tables = with_staged_packets();
    let peer = tables.install_keypair(1, params(1, 2, true), &[2; 32], &[3; 32]).unwrap();
    // Send GSO batches, so that a round needs few calls: each call stages as many packets again.
    tables.with_peer(1, |peer, state| tables.note_received(peer, state, 92, 5));
    let mut world = Endless { tables: &tables, nonces: Vec::new(), next: STAGED };
    Outbound::default().send_staged(&mut turn(&tables, &mut world), &peer);
    assert!(!Outbound::has_staged(&peer));
    assert!(world.nonces.len() < 20 * 128, "{}", world.nonces.len());
    let mut nonces = world.nonces.clone();
    nonces.sort_unstable();
    assert_eq!(nonces, Vec::from_iter(0..nonces.len() as u64), "a nonce was used twice or left out");
}

#[test]
fn staged_packets_of_a_removed_peer_are_counted_as_dropped() {
    let tables = with_staged_packets();
    let mut world = World { meanwhile: Some(Box::new(|| tables.remove_peer(1))), ..World::default() };
    install(&tables, &mut world, params(1, 2, true));
    let gone: u64 = drops(&tables).iter().filter(|(name, _)| *name == "peer_removed").map(|(_, count)| count).sum();
    assert!(gone > 0, "{:?}", drops(&tables));
    assert_eq!(world.sent.len() as u64 + drops(&tables).iter().map(|(_, count)| count).sum::<u64>(), u64::from(STAGED));
    assert_eq!(tables.sizes(), (0, 0, 0));
}

#[test]
fn a_datagram_from_a_removed_peer_restores_none_of_its_state() {
    let meanwhile = Arc::new(Mutex::new(None::<Meanwhile>));
    let tables = Arc::new(without_key(Box::new(Open(Arc::clone(&meanwhile)))));
    let peer = tables.install_keypair(1, params(1, 2, true), &[2; 32], &[3; 32]).unwrap();
    let removing = Arc::clone(&tables);
    *meanwhile.lock().unwrap() = Some(Box::new(move || removing.remove_peer(1)));
    let mut datagram = [&[4, 0, 0, 0, 1, 0, 0, 0], &[0; 8][..], &frame(0, 0)[10..], &[0; 16]].concat();
    let arrival = Arrival { from: SocketAddr::from(([192, 0, 2, 9], 9)), source: None, tos: 0, segment_size: 0 };
    let (mut inbound, mut outbound) = (Inbound::default(), Outbound::default());
    inbound.receive(&mut turn(&tables, &mut World::default()), &mut outbound, &mut datagram, &arrival);
    assert_eq!(drops(&tables), [("peer_removed", 1)]);
    assert_eq!(peer.lock().endpoint, None);
    assert_eq!(tables.reports.take(9).0.len(), 0);
}

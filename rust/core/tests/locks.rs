//! No lock is held while an edge is called: during every send and write, another thread takes each lock.

mod common;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use wyrmhole_core::aead::AwsLc;
use wyrmhole_core::allowed_ips::Prefix;
use wyrmhole_core::checksum::{fold, pseudo_header};
use wyrmhole_core::edges::{Edges, Gather, SendOutcome};
use wyrmhole_core::inbound::{Arrival, Inbound};
use wyrmhole_core::ip::Address;
use wyrmhole_core::outbound::Outbound;
use wyrmhole_core::peer::Source;
use wyrmhole_core::sharing::Lane;
use wyrmhole_core::tables::Tables;

use common::{frame, params, turn, without_key};

const OTHER: u64 = 2;
const INDEX: u32 = 77;
/// The other thread waits this long only if a lock is held.
const PATIENCE: Duration = Duration::from_secs(20);

/// Change the configuration like the control thread. This takes every lock, and those that workers share for writing.
fn reconfigure(tables: &Tables) {
    tables.add_peer(OTHER);
    tables.insert_allowed_ip(OTHER, Prefix { address: Address::V4(0xC0A8_0000), length: 16 });
    tables.install_keypair(OTHER, params(INDEX, 1, true), &[8; 32], &[9; 32]);
    tables.remove_peer(OTHER);
    tables.set_mac1_key(Some([1; 32]));
    let peer = tables.peer(1).unwrap();
    let state = peer.lock();
    for keypair in [&state.keypairs.current, &state.keypairs.next].into_iter().flatten() {
        drop(keypair.window.lock().unwrap());
    }
    drop(state);
    tables.reports.take(usize::MAX);
}

#[derive(Clone)]
struct World {
    tables: Arc<Tables>,
    wire: Vec<u8>,
    calls: Arc<AtomicUsize>,
    lane: Option<Arc<Lane<World>>>,
}

impl World {
    fn new(tables: &Arc<Tables>) -> Self {
        Self { tables: Arc::clone(tables), wire: Vec::new(), calls: Arc::default(), lane: None }
    }

    fn check(&mut self) {
        let (tables, lane) = (Arc::clone(&self.tables), self.lane.clone());
        let (done, waited) = mpsc::channel();
        thread::spawn(move || {
            reconfigure(&tables);
            lane.map(|lane| lane.open_one(&tables));
            done.send(()).unwrap();
        });
        assert!(waited.recv_timeout(PATIENCE).is_ok(), "a lock is held at an edge");
        self.calls.fetch_add(1, Ordering::Relaxed);
    }

    fn take_calls(&self) -> usize {
        self.calls.swap(0, Ordering::Relaxed)
    }
}

impl Edges for World {
    fn is_bound(&self) -> bool {
        true
    }
    fn send(&mut self, _: &SocketAddr, _: Option<&Source>, data: &[u8], _: usize, _: u8) -> SendOutcome {
        self.wire = data.to_vec();
        self.check();
        // A rejected source is forgotten, which takes the peer's lock once more.
        SendOutcome { source_rejected: true, dropped: false }
    }
    fn write(&mut self, frame: Gather<'_>) -> bool {
        self.check();
        // Refuse super-packets, accept single packets.
        frame.parts.len() == 1
    }
    fn offloads(&self) -> (bool, bool) {
        (true, true)
    }
}

/// Receive a handshake message from the peer, and set a source.
fn prove(tables: &Tables) {
    tables.with_peer(1, |peer, state| {
        state.source = Source::new(&[1; 12]);
        tables.note_received(peer, state, 92, 5);
    });
}

#[test]
fn sending_holds_no_lock() {
    let tables = Arc::new(without_key(Box::new(AwsLc)));
    let (mut world, mut outbound) = (World::new(&tables), Outbound::default());
    outbound.frame(&mut turn(&tables, &mut world), &mut frame(100, 0));
    assert_eq!(world.take_calls(), 0, "the packet is staged");
    let peer = tables.install_keypair(1, params(1, 2, true), &[2; 32], &[3; 32]).unwrap();
    outbound.send_staged(&mut turn(&tables, &mut world), &peer);
    assert_eq!(world.take_calls(), 1, "the staged packet");
    prove(&tables);
    outbound.frame(&mut turn(&tables, &mut world), &mut frame(6_400, 100));
    outbound.frame(&mut turn(&tables, &mut world), &mut frame(6_400, 100));
    assert_eq!(world.take_calls(), 1, "a full train");
    outbound.flush(&mut turn(&tables, &mut world));
    assert_eq!(world.take_calls(), 64, "single datagrams, because another source is another path");
    outbound.send_keepalive(&mut turn(&tables, &mut world), &peer);
    outbound.flush(&mut turn(&tables, &mut world));
    assert_eq!(world.take_calls(), 1, "a keepalive");
    let mut stray = frame(100, 0);
    stray[26..30].copy_from_slice(&[198, 51, 100, 1]);
    outbound.frame(&mut turn(&tables, &mut world), &mut stray);
    assert_eq!(world.take_calls(), 1, "an ICMP error");
}

/// A train of three packets that become one super-packet, and its receiver, which has a packet for the sender.
fn train_for_a_new_key() -> (Vec<u8>, Arc<Tables>, World) {
    let (a, b) = (Arc::new(without_key(Box::new(AwsLc))), Arc::new(without_key(Box::new(AwsLc))));
    a.install_keypair(1, params(1, 2, true), &[2; 32], &[3; 32]);
    let (mut world, mut outbound) = (World::new(&a), Outbound::default());
    let mut super_packet = frame(3000, 1000);
    // The kernel leaves the pseudo-header's sum in the checksum field. Only packets with valid checksums are merged.
    let partial = fold(pseudo_header(&super_packet[22..30], 17, 3008));
    super_packet[36..38].copy_from_slice(&partial.to_be_bytes());
    prove(&a);
    outbound.frame(&mut turn(&a, &mut world), &mut super_packet);
    outbound.flush(&mut turn(&a, &mut world));
    let train = world.wire;

    let (mut world, mut outbound) = (World::new(&b), Outbound::default());
    outbound.frame(&mut turn(&b, &mut world), &mut frame(100, 0));
    b.install_keypair(1, params(2, 1, false), &[3; 32], &[2; 32]);
    (train, b, world)
}

fn arrival(train: &[u8]) -> Arrival {
    let from = SocketAddr::from(([192, 0, 2, 7], 7));
    Arrival { from, source: Source::new(&[1; 12]), tos: 0, segment_size: train.len() / 3 }
}

#[test]
fn receiving_holds_no_lock() {
    let (mut train, tables, mut world) = train_for_a_new_key();
    let (mut inbound, mut outbound) = (Inbound::default(), Outbound::default());
    inbound.set_offloads((true, true));
    let arrival = arrival(&train);
    inbound.receive(&mut turn(&tables, &mut world), &mut outbound, &mut train, &arrival);
    assert_eq!(world.take_calls(), 1 + 3 + 1, "a super-packet, its packets, and the staged packet");
    assert_eq!(tables.drops.list().count(), 0);
}

#[test]
fn delivering_a_shared_train_holds_no_lock() {
    let (train, tables, mut world) = train_for_a_new_key();
    let lane = Arc::new(Lane::new(2, train.len()));
    world.lane = Some(Arc::clone(&lane));
    let (mut inbound, mut outbound) = (Inbound::default(), Outbound::default());
    let mut slot = train.clone().into_boxed_slice();
    assert!(lane.pass_on(&tables, &mut slot, train.len(), (arrival(&train), 5, world.clone()), true));
    assert!(lane.open_one(&tables));
    lane.deliver(&tables, &mut inbound, &mut outbound, usize::MAX);
    assert!(lane.is_idle());
    assert_eq!(world.take_calls(), 1 + 3 + 1, "a super-packet, its packets, and the staged packet");
    assert_eq!(tables.drops.list().count(), 0);
}

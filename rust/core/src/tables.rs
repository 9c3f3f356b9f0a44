//! Twin: wyrmhole/datapath/tables.py.
//!
//! The state that all workers and the control thread share: peers, keypairs by receiver index, routes, counters,
//! reports.
//!
//! Locks, in the order in which they may nest: `peers`, `routes`, a peer's state, `indices`, `reports`. A worker locks
//! `routes` and `indices` for reading, for one look-up. The control thread locks them for writing, for one change, so
//! adding one peer to 100,000 costs the same as adding one to ten.
//!
//! Longer than 500 lines because the locks are private to this file: all code that takes one is here.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::aead::Aead;
use crate::allowed_ips::{AllowedIps, Prefix};
use crate::constants::{MAX_STAGED_BYTES, MAX_STAGED_PACKETS, STAGED_SHARE};
use crate::drops::{DropReason, Drops, Oddities};
use crate::gate::Gate;
use crate::handshake_queues::{HandshakeDatagram, Initiations};
use crate::ip::Address;
use crate::keypair::{Dropped, Keypair, KeypairParams};
use crate::messages::MESSAGE_INITIATION;
use crate::peer::{EnginePeer, Marks, PeerState, Source};
use crate::refusals::Refusals;
use crate::reports::{Report, Reports};
use crate::responder::Responder;
use crate::train_health::{PATH_QUIET, TrainHealth};

/// A hash for receiver indices: they are random numbers that we choose, so no attacker can make them collide.
#[derive(Default)]
pub(crate) struct IndexHasher(u64);

impl Hasher for IndexHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0 << 8 | u64::from(*byte);
        }
    }
    fn write_u32(&mut self, index: u32) {
        // The table derives a bucket from the low bits and a tag from the top bits: spread the index over both.
        self.0 = u64::from(index).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

type Indices = HashMap<u32, Arc<Keypair>, BuildHasherDefault<IndexHasher>>;

/// A prefix in 18 bytes: compact, because there is one for each prefix of each peer.
#[derive(Clone, Copy, PartialEq, Eq)]
struct PackedPrefix([u8; 18]);

impl PackedPrefix {
    fn pack(prefix: Prefix) -> Self {
        let mut packed = [0; 18];
        packed[17] = prefix.length;
        match prefix.address {
            Address::V4(number) => {
                packed[16] = 4;
                packed[..4].copy_from_slice(&number.to_be_bytes());
            }
            Address::V6(number) => {
                packed[16] = 6;
                packed[..16].copy_from_slice(&number.to_be_bytes());
            }
        }
        Self(packed)
    }

    fn unpack(self) -> Prefix {
        let mut sixteen = [0; 16];
        sixteen.copy_from_slice(&self.0[..16]);
        let number = u128::from_be_bytes(sixteen);
        let address = if self.0[16] == 4 { Address::V4((number >> 96) as u32) } else { Address::V6(number) };
        Prefix { address, length: self.0[17] }
    }
}

struct Entry {
    peer: Arc<EnginePeer>,
    /// All prefixes of the peer, and possibly some that have moved to another peer.
    prefixes: Vec<PackedPrefix>,
    owned: usize,
}

impl Entry {
    /// Add a prefix. Drop those that have moved to another peer once they outnumber the peer's own.
    fn remember(&mut self, prefix: Prefix, routes: &AllowedIps<Arc<EnginePeer>>) {
        self.owned += 1;
        if self.prefixes.len() > 2 * self.owned + 8 {
            let is_own = |packed: &PackedPrefix| is_owner(routes, packed.unpack(), &self.peer);
            self.prefixes.retain(is_own);
            self.prefixes.sort_unstable_by_key(|packed| packed.0);
            self.prefixes.dedup();
        }
        if self.prefixes.len() == self.prefixes.capacity() {
            let more = if self.prefixes.len() < 4 { 1 } else { self.prefixes.len() };
            self.prefixes.reserve_exact(more);
        }
        self.prefixes.push(PackedPrefix::pack(prefix));
    }
}

fn is_owner(routes: &AllowedIps<Arc<EnginePeer>>, prefix: Prefix, peer: &Arc<EnginePeer>) -> bool {
    routes.exact(prefix).is_some_and(|owner| Arc::ptr_eq(owner, peer))
}

/// The shared state; see the module.
pub struct Tables {
    /// Counters of dropped packets.
    pub drops: Drops,
    /// Counters of odd packets that were delivered nevertheless.
    pub oddities: Oddities,
    /// Report to the control thread.
    pub reports: Reports,
    /// The filter for handshake messages.
    pub gate: Gate,
    /// The limit on reported refusals.
    pub refusals: Refusals,
    /// Answer initiations.
    pub responder: Responder,
    /// Initiations that wait for the responder.
    pub initiations: Initiations,
    aead: Box<dyn Aead>,
    peers: RwLock<HashMap<u64, Entry>>,
    routes: RwLock<AllowedIps<Arc<EnginePeer>>>,
    /// Grows with each change of the routes, so that a worker can tell whether its last look-up is still valid.
    routes_version: AtomicU64,
    indices: RwLock<Indices>,
    has_mac1_key: AtomicBool,
    mtu: AtomicUsize,
    listen_port: AtomicUsize,
    staged_bytes: AtomicUsize,
    retired: AtomicU64,
    doubts_trains: AtomicBool,
    /// Grows when the sockets are replaced: datagrams to every peer then belong to a new flow.
    paths: AtomicU64,
}

impl Tables {
    /// Create empty tables.
    #[must_use]
    pub fn new(aead: Box<dyn Aead>) -> Self {
        Self {
            drops: Drops::default(),
            oddities: Oddities::default(),
            reports: Reports::default(),
            gate: Gate::default(),
            refusals: Refusals::default(),
            responder: Responder::default(),
            initiations: Initiations::default(),
            aead,
            peers: RwLock::default(),
            routes: RwLock::default(),
            routes_version: AtomicU64::new(1),
            indices: RwLock::default(),
            has_mac1_key: AtomicBool::new(false),
            mtu: AtomicUsize::new(1420),
            listen_port: AtomicUsize::new(0),
            staged_bytes: AtomicUsize::new(0),
            retired: AtomicU64::new(0),
            doubts_trains: AtomicBool::new(false),
            paths: AtomicU64::new(1),
        }
    }

    /// The name of the library that seals and opens.
    pub fn aead_name(&self) -> &'static str {
        self.aead.name()
    }

    /// The inner MTU: padding never goes beyond it.
    pub fn mtu(&self) -> usize {
        self.mtu.load(Ordering::Relaxed)
    }

    /// Set the inner MTU.
    pub fn set_mtu(&self, mtu: usize) {
        self.mtu.store(mtu, Ordering::Relaxed);
    }

    /// Our UDP port; 0 if not bound.
    pub fn listen_port(&self) -> u16 {
        self.listen_port.load(Ordering::Relaxed) as u16
    }

    /// Set our UDP port.
    pub fn set_listen_port(&self, port: u16) {
        self.listen_port.store(usize::from(port), Ordering::Relaxed);
    }

    // Drops

    /// Count dropped packets that came from the peer or were sent to it.
    pub fn drop_of(&self, peer: &EnginePeer, reason: DropReason, count: usize) {
        if count > 0 {
            self.drops.add(reason, count);
            peer.add_drops(reason, count);
        }
    }

    /// Count a refused message from an unauthenticated sender, and report it if refusals are to be reported.
    pub fn refuse(&self, reason: DropReason, from: SocketAddr, now: u64) {
        self.drops.one(reason);
        if self.refusals.allow(false, now) {
            self.report(Report::Refused(reason, from, None, None));
        }
    }

    /// Count and report a refused packet from a peer, with its inner source address.
    pub fn refuse_of(&self, peer: &EnginePeer, reason: DropReason, from: SocketAddr, inner: Address, now: u64) {
        self.drop_of(peer, reason, 1);
        if self.refusals.allow(true, now) {
            self.report(Report::Refused(reason, from, Some(peer.id), Some(inner)));
        }
    }

    /// Count and report a refused handshake message from a peer that was authenticated.
    pub fn refuse_handshake_of(&self, peer: &EnginePeer, reason: DropReason, from: SocketAddr, now: u64) {
        self.drop_of(peer, reason, 1);
        if self.refusals.allow(true, now) {
            self.report(Report::Refused(reason, from, Some(peer.id), None));
        }
    }

    /// Count and report an initiation with a static key that is not configured.
    pub fn refuse_stranger(&self, public: [u8; 32], from: SocketAddr, now: u64) {
        self.drops.one(DropReason::UnknownPeer);
        if self.refusals.allow(false, now) {
            self.report(Report::Stranger(public, from));
        }
    }

    // Peers

    /// The peer with this number.
    pub fn peer(&self, id: u64) -> Option<Arc<EnginePeer>> {
        read(&self.peers).get(&id).map(|entry| Arc::clone(&entry.peer))
    }

    /// All peers.
    pub fn all_peers(&self) -> Vec<Arc<EnginePeer>> {
        read(&self.peers).values().map(|entry| Arc::clone(&entry.peer)).collect()
    }

    /// The numbers of peers, route nodes and indices, for tests that look for leaks.
    pub fn sizes(&self) -> (usize, usize, usize) {
        (read(&self.peers).len(), read(&self.routes).nodes(), read(&self.indices).len())
    }

    /// Add a peer without endpoint and keypairs. A peer that has this number already is kept.
    pub fn add_peer(&self, id: u64) {
        let entry = || Entry { peer: Arc::new(EnginePeer::new(id)), prefixes: Vec::new(), owned: 0 };
        let peer = Arc::clone(&write(&self.peers).entry(id).or_insert_with(entry).peer);
        if self.doubts_trains.load(Ordering::Relaxed) {
            peer.lock().health = TrainHealth::new(true);
        }
    }

    /// Remove a peer with its keypairs, routes and staged packets.
    pub fn remove_peer(&self, id: u64) {
        let Some(entry) = write(&self.peers).remove(&id) else { return };
        self.responder.forget(&entry.peer);
        {
            let mut routes = write(&self.routes);
            for prefix in entry.prefixes.iter().map(|packed| packed.unpack()) {
                if is_owner(&routes, prefix, &entry.peer) {
                    routes.remove(prefix);
                }
            }
        }
        self.routes_changed();
        let mut state = entry.peer.lock();
        let staged = self.unstage(&mut state).len();
        self.drops.add(DropReason::PeerRemoved, staged);
        let dropped = state.keypairs.clear();
        state.endpoint = None;
        state.removed = true;
        drop(state);
        self.forget_indices(&dropped);
    }

    // Routes

    /// Make the peer the owner of the prefix, and take it from its former owner.
    pub fn insert_allowed_ip(&self, id: u64, prefix: Prefix) {
        let mut peers = write(&self.peers);
        let Some(peer) = peers.get(&id).map(|entry| Arc::clone(&entry.peer)) else { return };
        let mut routes = write(&self.routes);
        let former = routes.insert(prefix, Arc::clone(&peer));
        if former.as_ref().is_some_and(|former| Arc::ptr_eq(former, &peer)) {
            return;
        }
        if let Some(entry) = former.and_then(|former| peers.get_mut(&former.id)) {
            entry.owned = entry.owned.saturating_sub(1);
        }
        if let Some(entry) = peers.get_mut(&id) {
            entry.remember(prefix, &routes);
        }
        drop(routes);
        self.routes_changed();
    }

    /// Remove exactly this prefix, if this peer owns it.
    pub fn remove_allowed_ip(&self, id: u64, prefix: Prefix) {
        let mut peers = write(&self.peers);
        let Some(entry) = peers.get_mut(&id) else { return };
        let mut routes = write(&self.routes);
        if is_owner(&routes, prefix, &entry.peer) {
            routes.remove(prefix);
            let packed = PackedPrefix::pack(prefix);
            entry.prefixes.retain(|other| *other != packed);
            entry.owned = entry.owned.saturating_sub(1);
        }
        drop(routes);
        self.routes_changed();
    }

    /// The owner of the longest prefix that contains the address.
    pub fn route(&self, address: Address) -> Option<Arc<EnginePeer>> {
        read(&self.routes).lookup(address).cloned()
    }

    /// A number that grows with each change of the routes.
    pub fn routes_version(&self) -> u64 {
        self.routes_version.load(Ordering::Acquire)
    }

    fn routes_changed(&self) {
        self.routes_version.fetch_add(1, Ordering::Release);
    }

    // Keypairs

    /// The live keypair with this receiver index.
    pub fn keypair(&self, index: u32) -> Option<Arc<Keypair>> {
        read(&self.indices).get(&index).filter(|keypair| keypair.is_live()).cloned()
    }

    /// Install a keypair: the initiator's becomes current, the responder's becomes next. Dropped keypairs are reported.
    /// Returns the peer.
    pub fn install_keypair(
        &self,
        id: u64,
        params: KeypairParams,
        send: &[u8; 32],
        receive: &[u8; 32],
    ) -> Option<Arc<EnginePeer>> {
        let peer = self.peer(id)?;
        let keypair = Arc::new(Keypair::new(Arc::clone(&peer), params, &*self.aead, send, receive));
        let mut state = peer.lock();
        if state.removed {
            // Nothing would ever take its keypair away again.
            return None;
        }
        write(&self.indices).insert(params.local_index, Arc::clone(&keypair));
        state.key_wanted_reported = false;
        let dropped = if params.is_initiator {
            state.keypairs.install_initiator(keypair)
        } else {
            state.keypairs.install_responder(keypair)
        };
        self.drop_keypairs(&peer, &dropped);
        drop(state);
        Some(peer)
    }

    /// Drop, wipe and report all keypairs of the peer.
    pub fn forget_keypairs(&self, id: u64) {
        if let Some(peer) = self.peer(id) {
            let mut state = peer.lock();
            let dropped = state.keypairs.clear();
            self.drop_keypairs(&peer, &dropped);
        }
    }

    /// Remove retired keypairs from the index table and report them.
    pub fn drop_keypairs(&self, peer: &EnginePeer, dropped: &Dropped) {
        if dropped.iter().any(Option::is_some) {
            self.forget_indices(dropped);
            let index = |keypair: &Option<Arc<Keypair>>| keypair.as_ref().map(|keypair| keypair.params.local_index);
            self.report(Report::KeypairsDropped(peer.id, [index(&dropped[0]), index(&dropped[1]), index(&dropped[2])]));
        }
    }

    /// The number of keypairs retired so far. When it grows, threads that worked with keys wipe what is left of them.
    pub fn retired(&self) -> u64 {
        self.retired.load(Ordering::Acquire)
    }

    fn forget_indices(&self, dropped: &Dropped) {
        let mut indices = write(&self.indices);
        for keypair in dropped.iter().flatten() {
            self.retired.fetch_add(1, Ordering::Release);
            // The index may already belong to another keypair.
            if indices.get(&keypair.params.local_index).is_some_and(|other| Arc::ptr_eq(other, keypair)) {
                indices.remove(&keypair.params.local_index);
            }
        }
    }

    // Handshakes

    /// Set the BLAKE2s key of mac1 in messages to us. With `None`, there is no private key, and every handshake message
    /// is dropped.
    pub fn set_mac1_key(&self, key: Option<[u8; 32]>) {
        self.has_mac1_key.store(key.is_some(), Ordering::Relaxed);
        self.gate.set_mac1_key(key);
    }

    /// Whether there is a private key.
    pub fn has_private_key(&self) -> bool {
        self.has_mac1_key.load(Ordering::Relaxed)
    }

    /// Queue a message of type 1, 2 or 3 of the right length if it passes the gate: an initiation for the responder, if
    /// that answers, and every other message as a report.
    ///
    /// # Errors
    /// The reason for dropping the message.
    pub fn handshake(
        &self,
        kind: u32,
        data: &[u8],
        from: SocketAddr,
        source: Option<Source>,
        now: u64,
    ) -> Result<(), DropReason> {
        let queue = self.gate.admit(kind, data, from, now)?;
        let handshake = HandshakeDatagram { data: data.into(), from, source, queue_depth: 0 };
        if kind == MESSAGE_INITIATION && self.responder.answers() {
            self.initiations.push(queue, handshake, now)
        } else {
            self.reports.push_handshake(queue, handshake, now)
        }
    }

    /// Draw an unused receiver index and reserve it until `gate.end_initiation`. 0 is never drawn, because other code
    /// uses it for "none".
    pub fn draw_index(&self, random: &dyn Fn(&mut [u8])) -> u32 {
        loop {
            let mut bytes = [0; 4];
            random(&mut bytes);
            let index = u32::from_le_bytes(bytes);
            if index != 0 && self.gate.reserve(index) {
                if !read(&self.indices).contains_key(&index) {
                    return index;
                }
                self.gate.end_initiation(index);
            }
        }
    }

    /// Reserve this index for an initiation of the control thread. Returns false if it is in use.
    pub fn begin_initiation(&self, index: u32) -> bool {
        if !self.gate.reserve(index) {
            return false;
        }
        if read(&self.indices).contains_key(&index) {
            self.gate.end_initiation(index);
            return false;
        }
        self.gate.begin_initiation(index);
        true
    }

    // Reports about a peer, whose state is locked

    /// Queue a report. Returns false if the queue is full; the caller may try again later.
    pub fn report(&self, report: Report) -> bool {
        let is_queued = self.reports.push(report);
        if !is_queued {
            self.drops.one(DropReason::ReportQueueFull);
        }
        is_queued
    }

    /// Report that the peer needs a keypair, unless that was reported already.
    pub fn want_key(&self, peer: &EnginePeer, state: &mut PeerState) {
        if !state.key_wanted_reported {
            state.key_wanted_reported = self.report(Report::KeyWanted(peer.id, None));
        }
    }

    /// Report that the keypair should be renewed, once per keypair.
    pub fn ask_rekey(&self, peer: &EnginePeer, keypair: &Keypair) {
        if keypair.ask_rekey() && !self.report(Report::KeyWanted(peer.id, Some(keypair.params.local_index))) {
            keypair.expect_rekey();
        }
    }

    fn report_active(&self, peer: &EnginePeer, state: &mut PeerState) {
        if !state.active_reported {
            state.active_reported = self.report(Report::Active(peer.id));
        }
    }

    // Trains

    /// Send no trains until each peer's traffic shows that they arrive: this kernel may damage them.
    pub fn doubt_trains(&self) {
        if !self.doubts_trains.swap(true, Ordering::Relaxed) {
            self.all_peers().iter().for_each(|peer| peer.lock().health = TrainHealth::new(true));
        }
    }

    /// Begin new paths to all peers, because the sockets were replaced.
    pub fn change_paths(&self) {
        self.paths.fetch_add(1, Ordering::Relaxed);
    }

    /// Record that the packets of one frame are about to be sent to the peer (see `train_health`).
    pub fn note_departure(&self, peer: &EnginePeer, state: &mut PeerState, packet: &[u8], segments: usize, now: u64) {
        if state.health.note(packet, segments, now) {
            self.report(Report::TrainsLost(peer.id));
        }
    }

    /// Whether to send single datagrams to the peer: trains get lost, or nothing was received on this path yet.
    pub fn sends_singly(&self, state: &PeerState) -> bool {
        state.health.sends_singly() || state.proven_path != self.paths.load(Ordering::Relaxed)
    }

    /// Record that an authenticated message is sent to the peer; for data, call `note_data_sent` too. Called before the
    /// train is sent, because a flow that was quiet for `PATH_QUIET` counts as new.
    pub fn note_sent(&self, state: &mut PeerState, now: u64) {
        if now.saturating_sub(state.marks.last_traversal) >= PATH_QUIET {
            state.proven_path = 0;
        }
        state.marks.last_traversal = now;
        state.marks.data_received_since = 0;
    }

    /// Record that a sent message carries data.
    pub fn note_data_sent(&self, peer: &EnginePeer, state: &mut PeerState, now: u64) {
        if state.marks.data_sent_since == 0 {
            state.marks.data_sent_since = now;
            self.report_active(peer, state);
        }
    }

    /// Record authenticated bytes from the peer; for data, call `note_data_received` too.
    pub fn note_received(&self, peer: &EnginePeer, state: &mut PeerState, bytes: usize, now: u64) {
        peer.add_received(bytes);
        state.proven_path = self.paths.load(Ordering::Relaxed);
        state.marks.last_traversal = now;
        state.marks.data_sent_since = 0;
    }

    /// Record that received messages carry data.
    pub fn note_data_received(&self, peer: &EnginePeer, state: &mut PeerState, now: u64) {
        state.marks.last_data_received = now;
        if state.marks.data_received_since == 0 {
            state.marks.data_received_since = now;
            self.report_active(peer, state);
        }
    }

    /// Record the addresses of an authenticated packet, if they differ from the known ones (rule M44).
    pub fn roam(&self, peer: &Arc<EnginePeer>, state: &mut PeerState, from: SocketAddr, source: Option<Source>) {
        if state.endpoint != Some(from) {
            state.endpoint = Some(from);
            if !state.roamed_reported {
                state.roamed_reported = self.report(Report::Roamed(Arc::clone(peer)));
            }
        }
        state.source = source;
    }

    // Staging

    /// Keep a packet until there is a keypair (rule M49). A peer may stage 128 packets, and no more bytes than its
    /// share of what the device has left. Beyond that its oldest packets are dropped.
    pub fn stage(&self, peer: &EnginePeer, state: &mut PeerState, packet: Box<[u8]>, now: u64) {
        if state.removed {
            self.drops.one(DropReason::PeerRemoved);
            return;
        }
        if state.staged.len() >= MAX_STAGED_PACKETS {
            self.drop_oldest(peer, state, DropReason::StagingFull);
        }
        let mut own = bytes_of(&state.staged) + packet.len();
        while own > self.staged_share() && !state.staged.is_empty() {
            own -= self.drop_oldest(peer, state, DropReason::StagingCap);
        }
        if own > self.staged_share() {
            self.drop_of(peer, DropReason::StagingCap, 1);
        } else {
            self.staged_bytes.fetch_add(packet.len(), Ordering::Relaxed);
            state.staged.push_back(packet);
        }
        // While another thread sends the staged packets, later ones are staged behind them although there is a keypair.
        if !state.keypairs.can_send(now) {
            self.want_key(peer, state);
        }
    }

    fn staged_share(&self) -> usize {
        MAX_STAGED_BYTES.saturating_sub(self.staged_bytes.load(Ordering::Relaxed)) / STAGED_SHARE
    }

    /// Put packets that `unstage` returned back in front of those staged since. They were within the cap before, so
    /// only their number is limited.
    fn restage(&self, peer: &EnginePeer, state: &mut PeerState, mut packets: VecDeque<Box<[u8]>>) {
        if state.removed {
            self.drops.add(DropReason::PeerRemoved, packets.len());
            return;
        }
        self.staged_bytes.fetch_add(bytes_of(&packets), Ordering::Relaxed);
        packets.append(&mut state.staged);
        state.staged = packets;
        while state.staged.len() > MAX_STAGED_PACKETS {
            self.drop_oldest(peer, state, DropReason::StagingFull);
        }
    }

    /// Drop the oldest staged packet. Returns its size.
    fn drop_oldest(&self, peer: &EnginePeer, state: &mut PeerState, reason: DropReason) -> usize {
        let Some(oldest) = state.staged.pop_front() else { return 0 };
        self.staged_bytes.fetch_sub(oldest.len(), Ordering::Relaxed);
        self.drop_of(peer, reason, 1);
        oldest.len()
    }

    /// Take all staged packets, in order.
    pub fn unstage(&self, state: &mut PeerState) -> VecDeque<Box<[u8]>> {
        let staged = std::mem::take(&mut state.staged);
        self.staged_bytes.fetch_sub(bytes_of(&staged), Ordering::Relaxed);
        staged
    }

    /// Take all staged packets together with nonces for them, if the peer has a keypair and no other thread is sending
    /// its staged packets. Later packets get later nonces, so they need not wait for these.
    pub fn end_flush(&self, peer: &EnginePeer, now: u64) -> Option<LastBatch> {
        let mut state = peer.lock();
        if state.flushing || state.staged.is_empty() {
            return None;
        }
        let keypair = state.keypairs.current.as_ref().filter(|keypair| keypair.can_send(now)).cloned();
        let Some(keypair) = keypair else {
            self.want_key(peer, &mut state);
            return None;
        };
        let mut packets = self.unstage(&mut state);
        let (first, taken) = keypair.take_nonces(packets.len());
        let left = packets.split_off(taken);
        self.note_sent(&mut state, now);
        self.note_data_sent(peer, &mut state, now);
        if !left.is_empty() {
            self.restage(peer, &mut state, left);
            self.want_key(peer, &mut state);
        }
        if keypair.wants_rekey(now) {
            self.ask_rekey(peer, &keypair);
        }
        Some(LastBatch { keypair, first, packets })
    }

    /// Take all staged packets for sending, under the same conditions as `end_flush`.
    pub fn begin_flush<'a>(&'a self, peer: &'a EnginePeer, now: u64) -> Option<Flush<'a>> {
        let mut state = peer.lock();
        if state.flushing || state.staged.is_empty() {
            return None;
        }
        if !state.keypairs.can_send(now) {
            self.want_key(peer, &mut state);
            return None;
        }
        state.flushing = true;
        Some(Flush { tables: self, peer, packets: self.unstage(&mut state) })
    }

    // The rest of the half of DataPlane that sends nothing

    /// Call a function with the peer and its locked state, if there is such a peer.
    pub fn with_peer<T>(&self, id: u64, act: impl FnOnce(&Arc<EnginePeer>, &mut PeerState) -> T) -> Option<T> {
        let peer = self.peer(id)?;
        let mut state = peer.lock();
        Some(act(&peer, &mut state))
    }

    /// Report `KeyWanted` again when the next packet needs a keypair: the protocol starts no handshake now.
    pub fn expect_key(&self, id: u64) {
        self.with_peer(id, |_, state| {
            state.key_wanted_reported = false;
            if let Some(current) = &state.keypairs.current {
                current.expect_rekey();
            }
        });
    }

    /// Drop all staged packets, because the handshake was given up.
    pub fn flush_staged(&self, id: u64) {
        self.with_peer(id, |peer, state| {
            let staged = self.unstage(state).len();
            self.drop_of(peer, DropReason::HandshakeGaveUp, staged);
            state.key_wanted_reported = false;
        });
    }

    /// A copy of the peer's marks; zeros for an unknown peer. With `release`, `Active` is reported again afterwards.
    pub fn marks(&self, id: u64, release: bool) -> Marks {
        let read_marks = |_: &Arc<EnginePeer>, state: &mut PeerState| {
            state.active_reported &= !release;
            state.marks
        };
        self.with_peer(id, read_marks).unwrap_or_default()
    }
}

impl Drop for Tables {
    /// Break the reference cycles between peers and keypairs, so that they and their secrets are freed.
    fn drop(&mut self) {
        for peer in self.all_peers() {
            self.remove_peer(peer.id);
        }
    }
}

/// Staged packets that a thread is sending, while later packets are staged behind them. When this is dropped, also by a
/// panic, the remaining packets go back to the front.
pub struct Flush<'a> {
    tables: &'a Tables,
    peer: &'a EnginePeer,
    /// Oldest first.
    pub packets: VecDeque<Box<[u8]>>,
}

impl Drop for Flush<'_> {
    fn drop(&mut self) {
        let mut state = self.peer.lock();
        state.flushing = false;
        self.tables.restage(self.peer, &mut state, std::mem::take(&mut self.packets));
    }
}

/// Staged packets with reserved nonces, starting at `first`; see `Tables::end_flush`.
#[allow(missing_docs)]
pub struct LastBatch {
    pub keypair: Arc<Keypair>,
    pub first: u64,
    pub packets: VecDeque<Box<[u8]>>,
}

fn bytes_of(packets: &VecDeque<Box<[u8]>>) -> usize {
    packets.iter().map(|packet| packet.len()).sum()
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

//! Twin: wyrmhole/datapath/inbound.py.
//!
//! Inbound: turns datagrams from the network into frames for the TUN.
//!
//! The caller passes the result of one receive: a datagram, or a train of datagrams from one sender. A handshake
//! message is reported if it passes the gate. Data is decrypted in place, checked, and coalesced into frames.
//!
//! The protocol fixes the order of the checks: receiver index, age and limit of the key, tag, and only then the replay
//! window (rule M23), the inner length (M47) and the inner source against the whole table (M45). A train nearly always
//! has one sender, one key, consecutive counters and one inner source, so each of these is looked up only when it
//! changes.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, PoisonError};

use crate::coalesce::Coalescer;
use crate::drops::{DropReason, Oddity};
use crate::edges::{Edges, Gather, Part, Turn};
use crate::ip::{self, Address};
use crate::keypair::Keypair;
use crate::messages::{self, MESSAGE_TRANSPORT, TAG_SIZE, TRANSPORT_HEADER_SIZE, TRANSPORT_OVERHEAD, TransportHeader};
use crate::outbound::Outbound;
use crate::peer::{EnginePeer, Source};
use crate::reports::Report;
use crate::tables::Tables;
use crate::virtio;

/// The most datagrams in one slot: 64 KiB of keepalives.
const BATCH: usize = 2048;

/// The addresses and properties of the datagrams in one slot.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// The sender.
    pub from: SocketAddr,
    /// The local address and interface.
    pub source: Option<Source>,
    /// The outer type of service, the same for a whole train.
    pub tos: u8,
    /// Above 0 if the slot holds several datagrams of this size; the last one may be shorter.
    pub segment_size: usize,
}

#[derive(Clone, Copy)]
struct Opened {
    part: Part,
    counter: u64,
}

/// Consecutive datagrams of a slot with the same result.
enum Run {
    /// Not data: the bytes of these datagrams in the slot.
    Other(Range<usize>),
    /// A data message with an unknown receiver index.
    UnknownIndex,
    /// A data message under an expired key.
    Expired(Arc<EnginePeer>),
    /// Data under one key. In `opened` it follows the run before and ends at `end`; `bad` more had a bad tag.
    Data { keypair: Arc<Keypair>, end: usize, bad: usize },
}

/// The result of decrypting a slot, before delivery. Decrypting needs no order, so any thread may do it.
#[derive(Default)]
pub struct Opening {
    opened: Vec<Opened>,
    runs: Vec<Run>,
}

impl Opening {
    /// Reserve room for a slot.
    #[must_use]
    pub fn new() -> Self {
        Self { opened: Vec::with_capacity(BATCH), runs: Vec::with_capacity(BATCH) }
    }

    /// Forget the result and its keys.
    pub fn clear(&mut self) {
        self.opened.clear();
        self.runs.clear();
    }

    /// Decrypt the result of one receive, for `Inbound::deliver_opened`.
    pub fn open(&mut self, tables: &Tables, slot: &mut [u8], segment_size: usize, now: u64) {
        let size = if segment_size == 0 { slot.len() } else { segment_size };
        let mut offset = 0;
        while offset < slot.len() {
            let (run, stop) = begin_run(tables, slot, offset, size, now, &mut self.opened);
            offset = stop;
            if let (Run::Other(more), Some(Run::Other(last))) = (&run, self.runs.last_mut()) {
                if last.end == more.start {
                    last.end = more.end;
                    continue;
                }
            }
            self.runs.push(run);
        }
    }
}

/// The inbound step of one thread.
pub struct Inbound {
    coalescer: Coalescer,
    opened: Vec<Opened>,
    route: Option<(Address, Arc<EnginePeer>)>,
    route_version: u64,
    authenticated: usize,
}

impl Default for Inbound {
    fn default() -> Self {
        Self {
            coalescer: Coalescer::default(),
            opened: Vec::with_capacity(BATCH),
            route: None,
            route_version: 0,
            authenticated: 0,
        }
    }
}

impl Inbound {
    /// Set which super-packets may be built: TCP, UDP.
    pub fn set_offloads(&mut self, (tso, uso): (bool, bool)) {
        (self.coalescer.tso, self.coalescer.uso) = (tso, uso);
    }

    /// Handle the datagrams of one receive. `slot` is scratch memory afterwards.
    pub fn receive(
        &mut self,
        turn: &mut Turn<'_, impl Edges>,
        outbound: &mut Outbound,
        slot: &mut [u8],
        arrival: &Arrival,
    ) {
        let size = if arrival.segment_size == 0 { slot.len() } else { arrival.segment_size };
        if slot.is_empty() {
            turn.tables.refuse(DropReason::TooShort, arrival.from, turn.now);
            return;
        }
        let mut offset = 0;
        while offset < slot.len() {
            // The sender may change its key within a train; a run has one key.
            offset = self.run(turn, outbound, slot, offset, size, arrival);
        }
    }

    /// Take the number of bytes that were authenticated since the last call.
    pub fn take_authenticated(&mut self) -> usize {
        std::mem::take(&mut self.authenticated)
    }

    /// Discard packets that were not yet written, after their turn was abandoned.
    pub fn reset(&mut self) {
        self.coalescer.clear();
        self.opened.clear();
    }

    /// Deliver what `Opening::open` decrypted in the slot. A key that was retired meanwhile counts as unknown, as if the
    /// train had arrived a little later.
    pub fn deliver_opened(
        &mut self,
        turn: &mut Turn<'_, impl Edges>,
        outbound: &mut Outbound,
        slot: &mut [u8],
        opening: &Opening,
        arrival: &Arrival,
    ) {
        let offloads = turn.edges.offloads();
        self.set_offloads(offloads);
        if slot.is_empty() {
            turn.tables.refuse(DropReason::TooShort, arrival.from, turn.now);
        }
        let mut start = 0;
        for run in &opening.runs {
            if let Run::Data { keypair, end, bad } = run {
                let opened = &opening.opened[start..*end];
                start = *end;
                if !keypair.is_live() {
                    turn.tables.drops.add(DropReason::UnknownIndex, opened.len() + bad);
                    continue;
                }
                self.opened.extend_from_slice(opened);
            }
            self.end_run(turn, outbound, slot, run, arrival);
        }
    }

    /// Handle consecutive data messages with one receiver index, starting at `offset`. Returns where the next run
    /// begins.
    fn run(
        &mut self,
        turn: &mut Turn<'_, impl Edges>,
        outbound: &mut Outbound,
        slot: &mut [u8],
        offset: usize,
        size: usize,
        arrival: &Arrival,
    ) -> usize {
        let (run, stop) = begin_run(turn.tables, slot, offset, size, turn.now, &mut self.opened);
        self.end_run(turn, outbound, slot, &run, arrival);
        stop
    }

    /// Do the part that needs order. The decrypted datagrams of the run are in `opened`.
    fn end_run(
        &mut self,
        turn: &mut Turn<'_, impl Edges>,
        outbound: &mut Outbound,
        slot: &mut [u8],
        run: &Run,
        arrival: &Arrival,
    ) {
        match run {
            Run::Other(range) => {
                let size = if arrival.segment_size == 0 { slot.len() } else { arrival.segment_size };
                for datagram in slot[range.clone()].chunks(size) {
                    handle_other(turn.tables, datagram, arrival, turn.now);
                }
            }
            Run::UnknownIndex => turn.tables.drops.one(DropReason::UnknownIndex),
            Run::Expired(peer) => turn.tables.drop_of(peer, DropReason::KeyExpired, 1),
            Run::Data { keypair, bad, .. } => {
                turn.tables.drop_of(&keypair.peer, DropReason::BadTag, *bad);
                self.end_data(turn, outbound, slot, keypair, arrival);
            }
        }
    }

    fn end_data(
        &mut self,
        turn: &mut Turn<'_, impl Edges>,
        outbound: &mut Outbound,
        slot: &mut [u8],
        keypair: &Arc<Keypair>,
        arrival: &Arrival,
    ) {
        let bytes = self.accept(turn.tables, keypair);
        self.authenticated += bytes;
        if bytes > 0 {
            let is_confirmed = self.authenticated(turn.tables, keypair, arrival, bytes, turn.now);
            if !self.opened.is_empty() {
                self.deliver(turn, slot, &keypair.peer, arrival);
            }
            if is_confirmed {
                outbound.send_staged(turn, &keypair.peer);
            }
        }
        self.opened.clear();
    }

    /// Apply the message limit and the replay window to `opened`, and keeps the non-empty packets there. Returns the
    /// number of authenticated bytes.
    fn accept(&mut self, tables: &Tables, keypair: &Keypair) -> usize {
        let mut bytes = 0;
        let mut window = keypair.window.lock().unwrap_or_else(PoisonError::into_inner);
        self.opened.retain(|opened| {
            if opened.counter >= keypair.params.reject_after_messages {
                tables.drop_of(&keypair.peer, DropReason::MessageLimit, 1);
                return false;
            }
            if !window.accept(opened.counter) {
                tables.drop_of(&keypair.peer, DropReason::Replayed, 1);
                return false;
            }
            bytes += opened.part.length as usize + TRANSPORT_OVERHEAD;
            opened.part.length > 0
        });
        bytes
    }

    /// Update marks and endpoint, and returns whether this confirmed the peer's next keypair. The caller sends the
    /// staged packets only after the marks for received data are set, which would otherwise clear the mark for sent
    /// data.
    fn authenticated(
        &mut self,
        tables: &Tables,
        keypair: &Arc<Keypair>,
        arrival: &Arrival,
        bytes: usize,
        now: u64,
    ) -> bool {
        let peer = &keypair.peer;
        let mut state = peer.lock();
        if state.removed {
            // Removed after the keypair was looked up: state that the removal wiped must not come back.
            tables.drops.add(DropReason::PeerRemoved, self.opened.len());
            self.opened.clear();
            return false;
        }
        tables.note_received(peer, &mut state, bytes, now);
        if state.endpoint != Some(arrival.from) || state.source != arrival.source {
            tables.roam(peer, &mut state, arrival.from, arrival.source);
        }
        let is_next = state.keypairs.next.as_ref().is_some_and(|next| Arc::ptr_eq(next, keypair));
        if is_next {
            let dropped = state.keypairs.confirm();
            tables.drop_keypairs(peer, &dropped);
            tables.report(Report::KeyConfirmed(peer.id, keypair.params.local_index));
            state.key_wanted_reported = false;
        }
        // The age of the current keypair counts, whatever keypair the message used: a late message must not renew a new
        // session.
        if let Some(current) = state.keypairs.current.as_ref().filter(|current| now >= current.params.rekey_receive_at)
        {
            tables.ask_rekey(peer, current);
        }
        if !self.opened.is_empty() {
            tables.note_data_received(peer, &mut state, now);
        }
        is_next
    }

    fn deliver(&mut self, turn: &mut Turn<'_, impl Edges>, slot: &mut [u8], peer: &Arc<EnginePeer>, arrival: &Arrival) {
        let outer_ecn = arrival.tos & ip::ECN_MASK;
        let mut allowed = None;
        for at in 0..self.opened.len() {
            let part = self.opened[at].part;
            let packet = &mut slot[part.at as usize..(part.at + part.length) as usize];
            let total = ip::length_of(packet);
            let Some(source) = ip::source_of(packet).filter(|_| total > 0) else {
                turn.tables.drop_of(peer, DropReason::NotIp, 1);
                continue;
            };
            if allowed != Some(source) {
                if !self.is_owner(turn.tables, peer, source) {
                    turn.tables.refuse_of(peer, DropReason::BadSource, arrival.from, source, turn.now);
                    continue;
                }
                allowed = Some(source);
            }
            if outer_ecn != 0 {
                mark(turn.tables, &mut packet[..total], outer_ecn);
            }
            self.coalescer.add(slot, Part { at: part.at, length: total as u32 });
        }
        self.write(turn, slot);
        self.coalescer.clear();
    }

    fn is_owner(&mut self, tables: &Tables, peer: &Arc<EnginePeer>, source: Address) -> bool {
        let version = tables.routes_version();
        if let Some((address, owner)) = &self.route {
            if *address == source && self.route_version == version {
                return Arc::ptr_eq(owner, peer);
            }
        }
        let Some(owner) = tables.route(source) else { return false };
        let is_owner = Arc::ptr_eq(&owner, peer);
        (self.route, self.route_version) = (Some((source, owner)), version);
        is_owner
    }

    /// Write the coalesced frames. If a super-packet is refused, its packets are written one by one: the offload may
    /// have been switched off, and the packets are still good.
    fn write(&mut self, turn: &mut Turn<'_, impl Edges>, slot: &[u8]) {
        for index in 0..self.coalescer.frames() {
            let (frame, count) = self.coalescer.frame(index, slot);
            if turn.edges.write(frame) {
                continue;
            }
            if count == 1 {
                turn.tables.drops.one(DropReason::TunWriteFailed);
                continue;
            }
            (self.coalescer.tso, self.coalescer.uso) = turn.edges.offloads();
            for part in self.coalescer.packets(index) {
                if !turn.edges.write(Gather { header: &virtio::PLAIN_HEADER, slot, parts: &[part] }) {
                    turn.tables.drops.one(DropReason::TunWriteFailed);
                }
            }
        }
    }
}

/// Decrypt consecutive data messages with one receiver index, starting at `offset`, and append them to `opened`. Returns
/// where the next run begins. Nothing is counted or marked here.
fn begin_run(
    tables: &Tables,
    slot: &mut [u8],
    offset: usize,
    size: usize,
    now: u64,
    opened: &mut Vec<Opened>,
) -> (Run, usize) {
    let stop = slot.len().min(offset + size);
    let datagram = &slot[offset..stop];
    let header = TransportHeader::parse(datagram)
        .filter(|header| header.kind == MESSAGE_TRANSPORT && datagram.len() >= TRANSPORT_OVERHEAD);
    let Some(header) = header else { return (Run::Other(offset..stop), stop) };
    let Some(keypair) = tables.keypair(header.receiver) else { return (Run::UnknownIndex, stop) };
    if now >= keypair.params.reject_at {
        return (Run::Expired(Arc::clone(&keypair.peer)), stop);
    }
    let (stop, bad) = open_run(slot, offset, size, &keypair, opened);
    (Run::Data { keypair, end: opened.len(), bad }, stop)
}

/// Decrypt datagrams as long as they carry the keypair's index. Returns the offset of the first that does not, and how
/// many had a bad tag.
fn open_run(
    slot: &mut [u8],
    offset: usize,
    size: usize,
    keypair: &Keypair,
    opened: &mut Vec<Opened>,
) -> (usize, usize) {
    let (mut at, mut bad) = (offset, 0);
    while at < slot.len() {
        let stop = slot.len().min(at + size);
        let datagram = &mut slot[at..stop];
        let Some(header) = TransportHeader::parse(datagram) else { break };
        let is_ours = header.kind == MESSAGE_TRANSPORT && header.receiver == keypair.params.local_index;
        if datagram.len() < TRANSPORT_OVERHEAD || !is_ours {
            break;
        }
        if keypair.receive.open(header.counter, &mut datagram[TRANSPORT_HEADER_SIZE..]) {
            let part = Part {
                at: (at + TRANSPORT_HEADER_SIZE) as u32,
                length: (stop - at - TRANSPORT_HEADER_SIZE - TAG_SIZE) as u32,
            };
            opened.push(Opened { part, counter: header.counter });
        } else {
            bad += 1;
        }
        at = stop;
    }
    (at, bad)
}

/// Combine the ECN bits of the packet with the outer ones (RFC 6040, rule M48).
fn mark(tables: &Tables, packet: &mut [u8], outer: u8) {
    let inner = ip::ecn_of(packet);
    if ip::is_unheeded(outer, inner) {
        tables.oddities.one(Oddity::EcnUnheeded);
    }
    let ecn = ip::decapsulate_ecn(outer, inner);
    if ecn != inner {
        ip::set_ecn(packet, ecn);
    }
}

/// Handle a datagram that is not a data message: a handshake message, or an unknown one.
fn handle_other(tables: &Tables, datagram: &[u8], arrival: &Arrival, now: u64) {
    let reported = messages::classify(datagram)
        .and_then(|kind| tables.handshake(kind, datagram, arrival.from, arrival.source, now));
    if let Err(reason) = reported {
        tables.refuse(reason, arrival.from, now);
    }
}

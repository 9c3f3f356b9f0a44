//! In: datagrams from the network become frames for the TUN.
//!
//! The caller feeds what one receive gave: a datagram, or a train of them from one sender. Handshake messages are
//! reported if they pass the gate; data is opened in place, checked and joined into frames again.
//!
//! The order of checks is fixed by the protocol: receiver index, age and limit of the key, tag, and only then the
//! replay window (rule M23), the inner length (M47) and the inner source against the whole table (M45). A train is
//! nearly always one sender, one key, consecutive counters and one inner source, so each is looked up when it changes.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};

use crate::coalesce::Coalescer;
use crate::drops::{DropReason, Oddity};
use crate::edges::{Edges, Gather, Part};
use crate::ip::{self, Address};
use crate::keypair::Keypair;
use crate::messages::{self, HEADER, OVERHEAD, TAG, TRANSPORT, TransportHeader};
use crate::outbound::Outbound;
use crate::peer::{Peer, Source};
use crate::reports::Report;
use crate::shared::Shared;
use crate::virtio;

/// Datagrams in one slot: 64 KiB of keepalives.
const BATCH: usize = 2048;
const ECN_MASK: u8 = 3;

/// Where and how a slot's datagrams came.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// The sender.
    pub from: SocketAddr,
    /// The local address and interface.
    pub source: Option<Source>,
    /// The outer type of service, the same for a whole train.
    pub tos: u8,
    /// Above 0: the slot holds datagrams of that size, the last one maybe shorter.
    pub segment: usize,
}

#[derive(Clone, Copy)]
struct Opened {
    part: Part,
    counter: u64,
}

/// The inbound step of one thread.
pub struct Inbound {
    coalescer: Coalescer,
    opened: Vec<Opened>,
    route: Option<(Address, Arc<Peer>)>,
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
    /// Which super-packets may be made: TCP, UDP.
    pub fn set_offloads(&mut self, (tso, uso): (bool, bool)) {
        (self.coalescer.tso, self.coalescer.uso) = (tso, uso);
    }

    /// Everything that came from one sender at once. `slot` is scratch afterwards.
    pub fn receive(
        &mut self,
        shared: &Shared,
        edges: &mut impl Edges,
        outbound: &mut Outbound,
        slot: &mut [u8],
        arrival: &Arrival,
        now: u64,
    ) {
        let size = if arrival.segment == 0 { slot.len() } else { arrival.segment };
        if slot.is_empty() {
            shared.refuse(DropReason::TooShort, arrival.from, now);
            return;
        }
        let mut offset = 0;
        while offset < slot.len() {
            // A train from one sender may change its key in the middle; each run has one.
            offset = self.run(shared, edges, outbound, slot, offset, size, arrival, now);
        }
    }

    /// Bytes of datagrams that proved themselves since the last call.
    pub fn take_authenticated(&mut self) -> usize {
        std::mem::take(&mut self.authenticated)
    }

    /// Forget what waits to be written: the turn that made it was given up.
    pub fn reset(&mut self) {
        self.coalescer.clear();
        self.opened.clear();
    }

    /// Data under one receiver index from `offset` on; returns where the next run begins.
    #[allow(clippy::too_many_arguments)]
    fn run(
        &mut self,
        shared: &Shared,
        edges: &mut impl Edges,
        outbound: &mut Outbound,
        slot: &mut [u8],
        offset: usize,
        size: usize,
        arrival: &Arrival,
        now: u64,
    ) -> usize {
        let stop = slot.len().min(offset + size);
        let datagram = &slot[offset..stop];
        let header = TransportHeader::parse(datagram).filter(|it| it.kind == TRANSPORT && datagram.len() >= OVERHEAD);
        let Some(header) = header else {
            handle_other(shared, datagram, arrival, now);
            return stop;
        };
        let Some(keypair) = shared.keypair(header.receiver) else {
            shared.drops.one(DropReason::UnknownIndex);
            return stop;
        };
        if now >= keypair.limits.reject_at {
            shared.drop_of(&keypair.peer, DropReason::KeyExpired, 1);
            return stop;
        }
        let stop = self.open(shared, slot, offset, size, &keypair);
        let bytes = self.accept(shared, &keypair);
        self.authenticated += bytes;
        if bytes > 0 {
            let is_confirmed = self.authenticated(shared, &keypair, arrival, bytes, now);
            if !self.opened.is_empty() {
                self.deliver(shared, edges, slot, &keypair.peer, arrival, now);
            }
            if is_confirmed {
                outbound.send_staged(shared, edges, &keypair.peer, now);
            }
        }
        self.opened.clear();
        stop
    }

    /// Open datagrams while they carry the keypair's index; returns where it stopped.
    fn open(&mut self, shared: &Shared, slot: &mut [u8], offset: usize, size: usize, keypair: &Keypair) -> usize {
        let mut at = offset;
        while at < slot.len() {
            let stop = slot.len().min(at + size);
            let datagram = &mut slot[at..stop];
            let Some(header) = TransportHeader::parse(datagram) else { break };
            let is_ours = header.kind == TRANSPORT && header.receiver == keypair.limits.local_index;
            if datagram.len() < OVERHEAD || !is_ours {
                break;
            }
            if keypair.receive.open(header.counter, &mut datagram[HEADER..]) {
                let part = Part { at: (at + HEADER) as u32, length: (stop - at - HEADER - TAG) as u32 };
                self.opened.push(Opened { part, counter: header.counter });
            } else {
                shared.drop_of(&keypair.peer, DropReason::BadTag, 1);
            }
            at = stop;
        }
        at
    }

    /// Limit and window for what was opened; what is left in `opened` is data. Returns the bytes authenticated.
    fn accept(&mut self, shared: &Shared, keypair: &Keypair) -> usize {
        let mut bytes = 0;
        let mut window = keypair.window.lock().unwrap_or_else(PoisonError::into_inner);
        self.opened.retain(|opened| {
            if opened.counter >= keypair.limits.reject_after_messages {
                shared.drop_of(&keypair.peer, DropReason::MessageLimit, 1);
                return false;
            }
            if !window.accept(opened.counter) {
                shared.drop_of(&keypair.peer, DropReason::Replayed, 1);
                return false;
            }
            bytes += opened.part.length as usize + OVERHEAD;
            opened.part.length > 0
        });
        bytes
    }

    /// Marks, endpoint, and whether this confirmed the peer's next key. What was staged for it leaves later, after the
    /// marks of what came were made: else they would take the mark of what is sent away.
    fn authenticated(
        &mut self,
        shared: &Shared,
        keypair: &Arc<Keypair>,
        arrival: &Arrival,
        bytes: usize,
        now: u64,
    ) -> bool {
        let peer = &keypair.peer;
        let mut state = peer.lock();
        if state.removed {
            // Since its key was found: nothing that its going wiped may come back.
            shared.drops.add(DropReason::PeerRemoved, self.opened.len());
            self.opened.clear();
            return false;
        }
        shared.note_received(peer, &mut state, bytes, now);
        if state.endpoint != Some(arrival.from) || state.source != arrival.source {
            shared.roam(peer, &mut state, arrival.from, arrival.source);
        }
        let is_next = state.keypairs.next.as_ref().is_some_and(|next| Arc::ptr_eq(next, keypair));
        if is_next {
            let dropped = state.keypairs.confirm();
            shared.drop_keypairs(peer, &dropped);
            shared.report(Report::KeyConfirmed(peer.id, keypair.limits.local_index));
            state.key_wanted_said = false;
        }
        // The current session is renewed, whatever session the message came under: a late one must not renew a new one.
        if let Some(current) = state.keypairs.current.as_ref().filter(|it| now >= it.limits.rekey_receive_at) {
            shared.ask_rekey(peer, current);
        }
        if !self.opened.is_empty() {
            shared.note_data_received(peer, &mut state, now);
        }
        is_next
    }

    fn deliver(
        &mut self,
        shared: &Shared,
        edges: &mut impl Edges,
        slot: &mut [u8],
        peer: &Arc<Peer>,
        arrival: &Arrival,
        now: u64,
    ) {
        let outer_ecn = arrival.tos & ECN_MASK;
        let mut allowed = None;
        for at in 0..self.opened.len() {
            let part = self.opened[at].part;
            let packet = &mut slot[part.at as usize..(part.at + part.length) as usize];
            let total = ip::length(packet);
            let Some(source) = ip::source(packet).filter(|_| total > 0) else {
                shared.drop_of(peer, DropReason::NotIp, 1);
                continue;
            };
            if allowed != Some(source) {
                if !self.is_owner(shared, peer, source) {
                    shared.refuse_of(peer, DropReason::BadSource, arrival.from, source, now);
                    continue;
                }
                allowed = Some(source);
            }
            if outer_ecn != 0 {
                mark(shared, &mut packet[..total], outer_ecn);
            }
            self.coalescer.add(slot, Part { at: part.at, length: total as u32 });
        }
        self.write(shared, edges, slot);
        self.coalescer.clear();
    }

    fn is_owner(&mut self, shared: &Shared, peer: &Arc<Peer>, source: Address) -> bool {
        let version = shared.routes_version();
        if let Some((address, owner)) = &self.route {
            if *address == source && self.route_version == version {
                return Arc::ptr_eq(owner, peer);
            }
        }
        let Some(owner) = shared.route(source) else { return false };
        let is_owner = Arc::ptr_eq(&owner, peer);
        (self.route, self.route_version) = (Some((source, owner)), version);
        is_owner
    }

    /// A super-packet that is refused is written packet by packet: the offload may be off from here on, and the packets
    /// are still good.
    fn write(&mut self, shared: &Shared, edges: &mut impl Edges, slot: &[u8]) {
        for index in 0..self.coalescer.frames() {
            let (frame, count) = self.coalescer.frame(index, slot);
            if edges.write(frame) {
                continue;
            }
            if count == 1 {
                shared.drops.one(DropReason::TunWriteFailed);
                continue;
            }
            (self.coalescer.tso, self.coalescer.uso) = edges.offloads();
            for part in self.coalescer.packets(index) {
                if !edges.write(Gather { header: &virtio::PLAIN, slot, parts: &[part] }) {
                    shared.drops.one(DropReason::TunWriteFailed);
                }
            }
        }
    }
}

/// Give the packet the ECN bits that follow from the outer ones (RFC 6040, rule M48).
fn mark(shared: &Shared, packet: &mut [u8], outer: u8) {
    let inner = ip::ecn(packet);
    if ip::is_unheeded(outer, inner) {
        shared.oddities.one(Oddity::EcnUnheeded);
    }
    let ecn = ip::decapsulate_ecn(outer, inner);
    if ecn != inner {
        ip::set_ecn(packet, ecn);
    }
}

/// Not data: a handshake message, or nothing that we know.
fn handle_other(shared: &Shared, datagram: &[u8], arrival: &Arrival, now: u64) {
    let reported = messages::classify(datagram)
        .and_then(|kind| shared.handshake(kind, datagram, arrival.from, arrival.source, now));
    if let Err(reason) = reported {
        shared.refuse(reason, arrival.from, now);
    }
}

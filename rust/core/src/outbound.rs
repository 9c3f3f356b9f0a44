//! Twin: wyrmhole/datapath/outbound.py.
//!
//! Outbound: turns frames from the TUN into sealed datagrams, and gathers these into one train per peer.
//!
//! The caller passes frames ([`Outbound::frame`]), then has the trains sent ([`Outbound::flush`]). In between, only
//! full trains are sent, so many small packets that are read together share one system call per peer. A datagram is 16
//! bytes of header, the padded packet, and 16 bytes of tag. Packets to one peer keep their order.
//!
//! One super-packet costs one look-up, one lock and one range of nonces. Its segments are written directly into the
//! wire buffer and sealed there in place. Once the trains exist, nothing is allocated except for staged packets and
//! ICMP errors.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::answers::Answers;
use crate::drops::DropReason;
use crate::edges::{Edges, Gather, Part, SendOutcome, Turn};
use crate::ip::{self, Address};
use crate::keypair::Keypair;
use crate::messages::{MESSAGE_TRANSPORT, TRANSPORT_HEADER_SIZE, TRANSPORT_OVERHEAD, TransportHeader};
use crate::peer::{EnginePeer, PeerState, Source};
use crate::split::{self, Segments};
use crate::tables::Tables;
use crate::train::{Train, TrainLimits};
use crate::virtio::{self, F_NEEDS_CSUM, GSO_NONE, VirtioHeader};

/// Handshake messages are marked AF41, like the kernel module's: they are few, and a late one costs a session.
pub const HANDSHAKE_TOS: u8 = 0x88;
/// Trains that are gathered at the same time; they take at most 9 x 64 KiB.
const MAX_TRAINS: usize = 9;
/// Rounds of sending packets that were staged meanwhile, before later packets are no longer staged behind them.
const FLUSH_ROUNDS: usize = 8;

/// The outbound step of one thread.
pub struct Outbound {
    trains: Vec<Train>,
    latest: usize,
    limits: TrainLimits,
    answers: Answers,
    /// The last look-up, valid for `route_version`.
    route: Option<(Address, Arc<EnginePeer>)>,
    route_version: u64,
}

impl Default for Outbound {
    fn default() -> Self {
        Self {
            trains: Vec::with_capacity(MAX_TRAINS),
            latest: 0,
            limits: TrainLimits::default(),
            answers: Answers::default(),
            route: None,
            route_version: 0,
        }
    }
}

/// Packets that are sent together: one packet, or the segments of a super-packet.
enum Packets<'a> {
    One(&'a [u8]),
    Many(&'a [u8], Segments),
}

impl Packets<'_> {
    fn count(&self) -> usize {
        match self {
            Self::One(_) => 1,
            Self::Many(_, segments) => segments.count(),
        }
    }

    fn size(&self, index: usize) -> usize {
        match self {
            Self::One(packet) => packet.len(),
            Self::Many(_, segments) => segments.size(index),
        }
    }

    fn emit(&self, index: usize, out: &mut [u8]) {
        match self {
            Self::One(packet) => out.copy_from_slice(packet),
            Self::Many(packet, segments) => segments.emit(packet, index, out),
        }
    }

    /// The headers of the first packet. Those that this step reads are the same in all segments.
    fn head(&self) -> &[u8] {
        match self {
            Self::One(packet) | Self::Many(packet, _) => packet,
        }
    }

    fn to_box(&self, index: usize) -> Box<[u8]> {
        let mut packet = vec![0; self.size(index)].into_boxed_slice();
        self.emit(index, &mut packet);
        packet
    }
}

impl Outbound {
    /// Limit trains to what the socket accepts in one call.
    pub fn set_limits(&mut self, limits: TrainLimits) {
        self.limits = limits;
    }

    /// Handle one frame from the TUN: a virtio header and a packet or super-packet. The frame is scratch memory
    /// afterwards.
    pub fn frame(&mut self, turn: &mut Turn<'_, impl Edges>, frame: &mut [u8]) {
        let header = VirtioHeader::parse(frame);
        let Some(header) = header.filter(|_| frame.len() > virtio::VIRTIO_HEADER_SIZE) else {
            turn.tables.drops.one(DropReason::MalformedFrame);
            return;
        };
        let packet = &mut frame[virtio::VIRTIO_HEADER_SIZE..];
        let packets = if header.gso_type == GSO_NONE {
            let good = header.flags & F_NEEDS_CSUM == 0
                || split::complete(packet, header.csum_start, header.csum_offset).is_ok();
            if good { Some(Packets::One(packet)) } else { None }
        } else {
            Segments::parse(&header, packet).ok().map(|segments| Packets::Many(packet, segments))
        };
        match packets {
            Some(packets) => self.packets(turn, &packets),
            None => turn.tables.drops.one(DropReason::MalformedFrame),
        }
    }

    fn packets(&mut self, turn: &mut Turn<'_, impl Edges>, packets: &Packets<'_>) {
        let count = packets.count();
        let Some(destination) = ip::destination_of(packets.head()) else {
            turn.tables.drops.add(DropReason::MalformedFrame, count);
            return;
        };
        let Some(peer) = self.route(turn.tables, destination) else {
            self.refuse(turn, packets, None, DropReason::NoRoute);
            return;
        };
        let mut state = peer.lock();
        if !state.flushing && !state.staged.is_empty() && state.keypairs.can_send(turn.now) {
            // The turn that was sending the staged packets was abandoned, and a key is there: nothing else sends them.
            drop(state);
            self.send_staged(turn, &peer);
            state = peer.lock();
        }
        let Some(endpoint) = state.endpoint else {
            drop(state);
            self.refuse(turn, packets, Some(&peer), DropReason::NoEndpoint);
            return;
        };
        if !turn.tables.has_private_key() {
            drop(state);
            self.refuse(turn, packets, Some(&peer), DropReason::NoPrivateKey);
            return;
        }
        // Our own datagram to this peer's endpoint, routed back into the tunnel: each round would wrap it again.
        if ip::udp_ports(packets.head()) == Some((turn.tables.listen_port(), endpoint.port()))
            && destination.is(endpoint.ip())
        {
            turn.tables.drop_of(&peer, DropReason::RouteLoop, count);
            return;
        }
        let is_queued = state.flushing || !state.staged.is_empty();
        self.send(turn, &peer, state, packets, is_queued);
    }

    /// Seal the packets for which there are nonces and stage the others. The state is unlocked before sealing.
    fn send(
        &mut self,
        turn: &mut Turn<'_, impl Edges>,
        peer: &Arc<EnginePeer>,
        mut state: std::sync::MutexGuard<'_, PeerState>,
        packets: &Packets<'_>,
        is_queued: bool,
    ) {
        let current = state.keypairs.current.as_ref();
        let keypair = current.filter(|keypair| !is_queued && keypair.can_send(turn.now)).cloned();
        let Some(keypair) = keypair else {
            stage_from(turn.tables, peer, &mut state, packets, 0, turn.now);
            return;
        };
        let (first, taken) = keypair.take_nonces(packets.count());
        turn.tables.note_sent(&mut state, turn.now);
        turn.tables.note_data_sent(peer, &mut state, turn.now);
        turn.tables.note_departure(peer, &mut state, packets.head(), packets.count(), turn.now);
        stage_from(turn.tables, peer, &mut state, packets, taken, turn.now);
        if keypair.wants_rekey(turn.now) {
            turn.tables.ask_rekey(peer, &keypair);
        }
        drop(state);
        self.seal_all(turn, &keypair, packets, first, taken);
    }

    /// Seal the first `count` packets, with consecutive nonces that start at `first`.
    fn seal_all(
        &mut self,
        turn: &mut Turn<'_, impl Edges>,
        keypair: &Keypair,
        packets: &Packets<'_>,
        first: u64,
        count: usize,
    ) {
        let tos = ip::ecn_of(packets.head());
        let mtu = turn.tables.mtu();
        for index in 0..count {
            let size = packets.size(index);
            let padded = size + padding(size, mtu);
            let room = self.room(turn, &keypair.peer, padded + TRANSPORT_OVERHEAD, tos);
            let text = &mut room[TRANSPORT_HEADER_SIZE..];
            packets.emit(index, &mut text[..size]);
            text[size..padded].fill(0);
            seal(keypair, first + index as u64, room);
        }
    }

    /// Send the staged packets in order, and before any packet that arrives meanwhile. Other workers may stage packets
    /// as fast as this sends them. Therefore, after [`FLUSH_ROUNDS`], the last batch reserves all its nonces at once,
    /// and later packets no longer wait for it.
    pub fn send_staged(&mut self, turn: &mut Turn<'_, impl Edges>, peer: &Arc<EnginePeer>) {
        for _ in 0..FLUSH_ROUNDS {
            let Some(mut staged) = turn.tables.begin_flush(peer, turn.now) else { return };
            while let Some(packet) = staged.packets.pop_front() {
                let state = peer.lock();
                if !state.keypairs.can_send(turn.now) {
                    staged.packets.push_front(packet);
                    break;
                }
                self.send(turn, peer, state, &Packets::One(&packet), false);
            }
            self.flush(turn);
        }
        if let Some(last) = turn.tables.end_flush(peer, turn.now) {
            for (packet, counter) in last.packets.iter().zip(last.first..) {
                self.seal_all(turn, &last.keypair, &Packets::One(packet), counter, 1);
            }
            self.flush(turn);
        }
    }

    /// Whether packets wait for a keypair.
    #[must_use]
    pub fn has_staged(peer: &EnginePeer) -> bool {
        !peer.lock().staged.is_empty()
    }

    /// Send an empty packet, which renews a session like data does. Without a usable keypair, asks for one. Does
    /// nothing if packets are staged, because they have the same effect.
    pub fn send_keepalive(&mut self, turn: &mut Turn<'_, impl Edges>, peer: &Arc<EnginePeer>) {
        let mut state = peer.lock();
        if state.endpoint.is_none() || !state.staged.is_empty() || state.flushing {
            return;
        }
        let keypair = state.keypairs.current.as_ref().filter(|keypair| keypair.can_send(turn.now)).cloned();
        let Some(keypair) = keypair else {
            turn.tables.want_key(peer, &mut state);
            return;
        };
        let (counter, _) = keypair.take_nonces(1);
        turn.tables.note_sent(&mut state, turn.now);
        if keypair.wants_rekey(turn.now) {
            turn.tables.ask_rekey(peer, &keypair);
        }
        drop(state);
        let room = self.room(turn, peer, TRANSPORT_OVERHEAD, 0);
        seal(&keypair, counter, room);
    }

    /// Send the gathered trains.
    pub fn flush(&mut self, turn: &mut Turn<'_, impl Edges>) {
        for at in 0..self.trains.len() {
            self.send_train(turn, at);
        }
        self.latest = 0;
    }

    /// Discard the gathered trains, after their turn was abandoned.
    pub fn reset(&mut self) {
        for train in &mut self.trains {
            train.peer = None;
        }
    }

    /// Room for one more datagram of this size, in the peer's train or in a new one.
    fn room(&mut self, turn: &mut Turn<'_, impl Edges>, peer: &Arc<EnginePeer>, size: usize, tos: u8) -> &mut [u8] {
        let at = self.train_for(turn, peer);
        self.latest = at;
        if self.trains[at].peer.is_some() && !self.trains[at].takes(size, tos, self.limits) {
            self.send_train(turn, at);
        }
        let train = &mut self.trains[at];
        if train.peer.is_none() {
            train.begin(peer, size, tos);
        }
        train.room(size)
    }

    fn train_for(&mut self, turn: &mut Turn<'_, impl Edges>, peer: &Arc<EnginePeer>) -> usize {
        if self.trains.get(self.latest).is_some_and(|train| train.is_for(peer)) {
            return self.latest;
        }
        let found = self.trains.iter().position(|train| train.is_for(peer));
        if let Some(at) = found.or_else(|| self.trains.iter().position(|train| train.peer.is_none())) {
            return at;
        }
        if self.trains.len() == MAX_TRAINS {
            self.flush(turn);
            return 0;
        }
        self.trains.push(Train::new());
        self.trains.len() - 1
    }

    fn send_train(&mut self, turn: &mut Turn<'_, impl Edges>, at: usize) {
        let train = &mut self.trains[at];
        // Emptied first, so that a panic while sending does not leave it full.
        if let Some(peer) = train.peer.take() {
            transmit(turn, &peer, train.data(), train.segment_size(), train.tos);
        }
    }

    fn route(&mut self, tables: &Tables, destination: Address) -> Option<Arc<EnginePeer>> {
        let version = tables.routes_version();
        if let Some((address, peer)) = &self.route {
            if *address == destination && version == self.route_version {
                return Some(Arc::clone(peer));
            }
        }
        let peer = tables.route(destination)?;
        self.route = Some((destination, Arc::clone(&peer)));
        self.route_version = version;
        Some(peer)
    }

    /// Drop packets that have no destination, and answers their sender with an ICMP error (rule M46).
    fn refuse(
        &mut self,
        turn: &mut Turn<'_, impl Edges>,
        packets: &Packets<'_>,
        peer: Option<&EnginePeer>,
        reason: DropReason,
    ) {
        match peer {
            Some(peer) => turn.tables.drop_of(peer, reason, packets.count()),
            None => turn.tables.drops.add(reason, packets.count()),
        }
        if let Some(error) = self.answers.make(&packets.to_box(0), turn.now) {
            let whole = [Part { at: 0, length: error.len() as u32 }];
            turn.edges.write(Gather { header: &virtio::PLAIN_HEADER, slot: &error, parts: &whole });
        }
    }
}

/// Write the header and the tag around the text between them, which is encrypted in place.
fn seal(keypair: &Keypair, counter: u64, room: &mut [u8]) {
    let (head, text) = room.split_at_mut(TRANSPORT_HEADER_SIZE);
    TransportHeader { kind: MESSAGE_TRANSPORT, receiver: keypair.params.remote_index, counter }.emit(head);
    keypair.send.seal(counter, text);
}

fn stage_from(tables: &Tables, peer: &EnginePeer, state: &mut PeerState, packets: &Packets<'_>, from: usize, now: u64) {
    for index in from..packets.count() {
        tables.stage(peer, state, packets.to_box(index), now);
    }
}

/// Send a train to the peer's endpoint. Its bytes are counted only if they were sent.
pub fn transmit(turn: &mut Turn<'_, impl Edges>, peer: &EnginePeer, data: &[u8], segment_size: usize, tos: u8) -> bool {
    let count = if segment_size == 0 { 1 } else { data.len().div_ceil(segment_size) };
    if !turn.edges.is_bound() {
        turn.tables.drop_of(peer, DropReason::SendFailed, count);
        return false;
    }
    let (endpoint, source, is_single) = {
        let state = peer.lock();
        (state.endpoint, state.source, segment_size > 0 && turn.tables.sends_singly(&state))
    };
    let Some(endpoint) = endpoint else {
        turn.tables.drop_of(peer, DropReason::NoEndpoint, count);
        return false;
    };
    let outcome = if is_single {
        send_singly(turn.edges, &endpoint, source, data, segment_size, tos)
    } else {
        turn.edges.send(&endpoint, source.as_ref(), data, segment_size, tos)
    };
    if outcome.source_rejected {
        peer.lock().forget_source();
    }
    if outcome.dropped {
        turn.tables.drop_of(peer, DropReason::SendFailed, count);
        return false;
    }
    peer.add_sent(data.len());
    true
}

/// Send the datagrams of a train with one call each.
fn send_singly(
    edges: &mut impl Edges,
    to: &SocketAddr,
    mut source: Option<Source>,
    data: &[u8],
    segment_size: usize,
    tos: u8,
) -> SendOutcome {
    let mut outcome = SendOutcome::default();
    for datagram in data.chunks(segment_size) {
        let sent = edges.send(to, source.as_ref(), datagram, 0, tos);
        outcome.dropped |= sent.dropped;
        outcome.source_rejected |= sent.source_rejected;
        source = source.filter(|_| !sent.source_rejected);
    }
    outcome
}

/// The number of zeros that pad a packet to the next multiple of 16, but never beyond the MTU (rule M22). A packet
/// larger than the MTU, which may have changed without our knowledge, is taken modulo the MTU, like in the kernel
/// module and wireguard-go.
fn padding(size: usize, mtu: usize) -> usize {
    let to_sixteen = |size: usize| size.wrapping_neg() % 16;
    if mtu == 0 {
        return to_sixteen(size);
    }
    let last = if size > mtu { size % mtu } else { size };
    to_sixteen(last).min(mtu - last)
}

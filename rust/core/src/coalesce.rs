//! Twin: wyrmhole/wire/coalesce.py.
//!
//! Coalescing: turn received IP packets into TUN frames, merging adjacent packets of a flow into super-packets.
//!
//! The coalescer merges only what the kernel's own GRO would merge: packets of one TCP flow, adjacent in sequence, with
//! equal acknowledgment number, window, options, TOS, TTL and DF bit; or packets of one UDP flow. All have the same
//! size, except that the last may be smaller, and only the last may have PSH set. Splitting the super-packet again
//! yields the same packets, except that the identification of an IPv4 packet with DF set may differ, as RFC 6864
//! permits.
//!
//! The kernel trusts a super-packet's checksums, so both checksums of every packet are verified before it is merged. A
//! packet that arrived corrupt is passed on alone, and its receiver detects the fault.
//!
//! A flow has at most one open group. A packet that does not fit its flow's group closes the group, which preserves the
//! order within the flow. A packet whose flow is unknown (fragments, IP options, IPv6 extension headers) closes all
//! groups.
//!
//! Packets stay in the receive slot, where they were opened; a group is a chain of pieces of the slot.

use crate::checksum::{checksum, fold, pseudo_header, sum};
use crate::edges::{Gather, Part};
use crate::ip::{IPV4_HEADER_SIZE, IPV6_HEADER_SIZE, MAX_PACKET_SIZE, PROTOCOL_TCP, PROTOCOL_UDP, is_extension};
use crate::virtio::{self, F_NEEDS_CSUM, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, VirtioHeader};

/// `UDP_MAX_SEGMENTS` of kernels before 6.9.
const MAX_UDP_SEGMENTS: usize = 64;
/// A gathering write accepts 1024 parts (`IOV_MAX`): one per segment, and one for the headers.
const MAX_TCP_SEGMENTS: usize = 1023;
/// The most packets of one receive slot: 64 KiB of the smallest datagrams that carry one.
const BATCH: usize = 2048;
const MAX_HEADERS: usize = virtio::VIRTIO_HEADER_SIZE + IPV6_HEADER_SIZE + 60;

const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Packet {
    part: Part,
    next: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The checksums of the first packet are not verified yet.
    Fresh,
    Open,
    Closed,
}

/// Packets of one flow that become one frame.
#[derive(Clone, Copy)]
struct Group {
    first: u32,
    last: u32,
    count: usize,
    /// The most packets that it may have.
    capacity: usize,
    phase: Phase,
    is_v4: bool,
    protocol: u8,
    /// The length of IP and transport header together; 0 if the packet cannot be merged.
    header: usize,
    /// The payload length of all packets but the last.
    payload: usize,
    flags: u8,
}

/// Merges the packets of a batch. `tso` and `uso` tell which super-packets the kernel accepts; both may change.
pub struct Coalescer {
    /// TCP super-packets.
    pub tso: bool,
    /// UDP super-packets.
    pub uso: bool,
    packets: Vec<Packet>,
    groups: Vec<Group>,
    /// Groups that a packet may still join, the latest last.
    open: Vec<u32>,
    parts: Vec<Part>,
    head: [u8; MAX_HEADERS],
}

impl Default for Coalescer {
    fn default() -> Self {
        Self {
            tso: false,
            uso: false,
            packets: Vec::with_capacity(BATCH),
            groups: Vec::with_capacity(BATCH),
            open: Vec::with_capacity(BATCH),
            parts: Vec::with_capacity(BATCH),
            head: [0; MAX_HEADERS],
        }
    }
}

/// The identity of a flow, and the offset of its transport header.
#[derive(Clone, Copy)]
struct Flow {
    is_v4: bool,
    protocol: u8,
    start: usize,
}

impl Flow {
    /// The addresses and ports, as bytes of the packet.
    fn key<'a>(&self, raw: &'a [u8]) -> &'a [u8] {
        if self.is_v4 { &raw[12..24] } else { &raw[8..44] }
    }
}

impl Coalescer {
    /// Add a complete IP packet, given as its piece of the slot without padding; order matters.
    pub fn add(&mut self, slot: &[u8], part: Part) {
        let raw = part.of(slot);
        let at = self.packets.len() as u32;
        self.packets.push(Packet { part, next: NONE });
        let Some(flow) = self.flow(raw) else {
            self.begin(at, None, 0, raw);
            return;
        };
        let header = header_length(raw, flow);
        let found = self.find(slot, raw, flow);
        if header == 0 {
            self.open.retain(|group| Some(*group) != found);
            self.begin(at, None, 0, raw);
            return;
        }
        if let Some(group) = found {
            let joined = self.join(slot, group, at, header);
            if !joined || self.groups[group as usize].phase == Phase::Closed {
                self.open.retain(|open| *open != group);
            }
            if joined {
                return;
            }
        }
        let fresh = self.begin(at, Some(flow), header, raw);
        if self.groups[fresh as usize].phase != Phase::Closed {
            self.open.push(fresh);
        }
    }

    /// The number of frames made of the packets since the last `clear`.
    #[must_use]
    pub fn frames(&self) -> usize {
        self.groups.len()
    }

    /// Return frame number `index`, in the order of the first packets, and the number of its packets.
    pub fn frame<'a>(&'a mut self, index: usize, slot: &'a [u8]) -> (Gather<'a>, usize) {
        let group = self.groups[index];
        self.parts.clear();
        if group.count == 1 {
            self.parts.push(self.packets[group.first as usize].part);
            return (Gather { header: &virtio::PLAIN_HEADER, slot, parts: &self.parts }, 1);
        }
        let (first, last) = (self.packets[group.first as usize].part, self.packets[group.last as usize].part);
        let length = (group.count - 1) * group.payload + last.length as usize;
        emit_headers(&group, first.of(slot), length, &mut self.head);
        let skip = group.header as u32;
        let mut at = group.first;
        while at != NONE {
            let Packet { part, next } = self.packets[at as usize];
            self.parts.push(Part { at: part.at + skip, length: part.length - skip });
            at = next;
        }
        let header = &self.head[..virtio::VIRTIO_HEADER_SIZE + group.header];
        (Gather { header, slot, parts: &self.parts }, group.count)
    }

    /// The packets of frame number `index`, unmerged, to be written one by one if the kernel refuses the super-packet.
    pub fn packets(&self, index: usize) -> impl Iterator<Item = Part> {
        let mut at = self.groups[index].first;
        std::iter::from_fn(move || {
            let packet = self.packets.get(at as usize)?;
            at = packet.next;
            Some(packet.part)
        })
    }

    /// Begin a new batch.
    pub fn clear(&mut self) {
        self.packets.clear();
        self.groups.clear();
        self.open.clear();
    }

    /// Return the packet's flow, or `None` if the packet cannot be merged.
    fn flow(&mut self, raw: &[u8]) -> Option<Flow> {
        let version = raw.first().map_or(0, |first| first >> 4);
        let (flow, is_plain, length) = if version == 4 && raw.len() >= IPV4_HEADER_SIZE {
            let is_plain = raw[0] == 0x45 && raw[6] & 0xBF == 0 && raw[7] == 0;
            (Flow { is_v4: true, protocol: raw[9], start: IPV4_HEADER_SIZE }, is_plain, word(raw, 2))
        } else if version == 6 && raw.len() >= IPV6_HEADER_SIZE {
            (Flow { is_v4: false, protocol: raw[6], start: IPV6_HEADER_SIZE }, true, word(raw, 4) + IPV6_HEADER_SIZE)
        } else {
            return None;
        };
        let merges = flow.protocol == PROTOCOL_TCP && self.tso || flow.protocol == PROTOCOL_UDP && self.uso;
        // A packet that is too short for its ports cannot be merged.
        if merges && is_plain && length == raw.len() {
            return (raw.len() >= flow.start + 4).then_some(flow);
        }
        if merges || !flow.is_v4 && is_extension(flow.protocol) {
            self.open.clear();
        }
        None
    }

    /// Find the open group of the packet's flow; it is nearly always the latest.
    fn find(&self, slot: &[u8], raw: &[u8], flow: Flow) -> Option<u32> {
        self.open.iter().rev().copied().find(|group| {
            let group = &self.groups[*group as usize];
            let first = self.packets[group.first as usize].part.of(slot);
            group.is_v4 == flow.is_v4 && group.protocol == flow.protocol && flow.key(first) == flow.key(raw)
        })
    }

    fn begin(&mut self, at: u32, flow: Option<Flow>, header: usize, raw: &[u8]) -> u32 {
        let (is_v4, protocol, start) = flow.map_or((true, 0, 0), |flow| (flow.is_v4, flow.protocol, flow.start));
        let flags = if protocol == PROTOCOL_TCP { raw[start + 13] } else { 0 };
        let phase = if flow.is_none() || flags & PSH != 0 { Phase::Closed } else { Phase::Fresh };
        let payload = raw.len() - header;
        self.groups.push(Group {
            first: at,
            last: at,
            count: 1,
            capacity: 0,
            phase,
            is_v4,
            protocol,
            header,
            payload,
            flags,
        });
        (self.groups.len() - 1) as u32
    }

    /// Add the packet to the group of its flow, if it continues it. Returns whether it was added.
    fn join(&mut self, slot: &[u8], group: u32, at: u32, header: usize) -> bool {
        let part = self.packets[at as usize].part;
        let raw = part.of(slot);
        let group = &mut self.groups[group as usize];
        let first = self.packets[group.first as usize].part.of(slot);
        if header != group.header || group.phase == Phase::Closed {
            return false;
        }
        if group.phase == Phase::Fresh {
            group.capacity = capacity(group, first);
            if group.capacity < 2 || !is_intact(first, group) {
                group.phase = Phase::Closed;
                return false;
            }
            group.phase = Phase::Open;
        }
        if raw.len() > first.len() || !continues(group, first, raw) || !is_intact(raw, group) {
            return false;
        }
        let flags = if group.protocol == PROTOCOL_TCP { raw[start(group) + 13] } else { 0 };
        group.flags |= flags;
        group.count += 1;
        if raw.len() < first.len() || flags & PSH != 0 || group.count == group.capacity {
            group.phase = Phase::Closed;
        }
        let last = std::mem::replace(&mut group.last, at);
        self.packets[last as usize].next = at;
        true
    }
}

fn start(group: &Group) -> usize {
    if group.is_v4 { IPV4_HEADER_SIZE } else { IPV6_HEADER_SIZE }
}

/// The length of IP and transport header together, or 0 if the packet may not be merged.
fn header_length(raw: &[u8], flow: Flow) -> usize {
    let start = flow.start;
    if flow.protocol == PROTOCOL_UDP {
        let fits = raw.len() > start + 8 && word(raw, start + 4) == raw.len() - start && word(raw, start + 6) != 0;
        return if fits { start + 8 } else { 0 };
    }
    if raw.len() <= start + 20 || raw[start + 13] & !PSH != ACK {
        return 0;
    }
    let header = start + usize::from(raw[start + 12] >> 4) * 4;
    if start + 20 <= header && header < raw.len() { header } else { 0 }
}

/// The most packets of the first one's size in a group, which ends before sequence number or identification would wrap.
fn capacity(group: &Group, first: &[u8]) -> usize {
    let mut capacity = (MAX_PACKET_SIZE - group.header) / group.payload;
    if group.protocol == PROTOCOL_TCP {
        let left = (u32::MAX - double(first, start(group) + 4)) as usize;
        capacity = capacity.min(MAX_TCP_SEGMENTS).min(left / group.payload + 1);
    } else {
        capacity = capacity.min(MAX_UDP_SEGMENTS);
    }
    if group.is_v4 && first[6] & 0x40 == 0 {
        capacity = capacity.min(0x1_0000 - word(first, 4));
    }
    capacity
}

/// Whether the headers are those of the group's next packet, apart from lengths and PSH.
fn continues(group: &Group, first: &[u8], raw: &[u8]) -> bool {
    let start = start(group);
    let same = |from: usize, to: usize| first[from..to] == raw[from..to];
    let ip_fits = if group.is_v4 {
        let is_atomic = first[6] & 0x40 != 0;
        same(0, 2) && same(6, 10) && (is_atomic || word(raw, 4) == word(first, 4) + group.count)
    } else {
        same(0, 4) && same(6, 8)
    };
    if !ip_fits || group.protocol == PROTOCOL_UDP {
        return ip_fits;
    }
    let expected = double(first, start + 4).wrapping_add((group.count * group.payload) as u32);
    double(raw, start + 4) == expected
        && same(start + 8, start + 13)
        && (first[start + 13] ^ raw[start + 13]) & !PSH == 0
        && same(start + 14, start + 16)
        && same(start + 18, group.header)
}

/// Whether both checksums of the packet are valid. Only then may its data get a computed checksum.
fn is_intact(raw: &[u8], group: &Group) -> bool {
    let start = start(group);
    let addresses = if group.is_v4 { &raw[12..20] } else { &raw[8..40] };
    if group.is_v4 && sum(&raw[..IPV4_HEADER_SIZE]) != 0xFFFF {
        return false;
    }
    let pseudo = pseudo_header(addresses, group.protocol, raw.len() - start);
    fold(u64::from(sum(&raw[start..])) + pseudo) == 0xFFFF
}

fn emit_headers(group: &Group, first: &[u8], length: usize, out: &mut [u8; MAX_HEADERS]) {
    let start = start(group);
    let is_tcp = group.protocol == PROTOCOL_TCP;
    let (frame, head) = out.split_at_mut(virtio::VIRTIO_HEADER_SIZE);
    let head = &mut head[..group.header];
    head.copy_from_slice(&first[..group.header]);
    if group.is_v4 {
        head[2..4].copy_from_slice(&(length as u16).to_be_bytes());
        head[10..12].fill(0);
        let field = checksum(&head[..IPV4_HEADER_SIZE], 0);
        head[10..12].copy_from_slice(&field.to_be_bytes());
    } else {
        head[4..6].copy_from_slice(&((length - IPV6_HEADER_SIZE) as u16).to_be_bytes());
    }
    let (gso_type, offset) = match (is_tcp, group.is_v4) {
        (true, true) => (GSO_TCPV4, 16),
        (true, false) => (GSO_TCPV6, 16),
        (false, _) => (GSO_UDP_L4, 6),
    };
    if is_tcp {
        head[start + 13] = group.flags;
    } else {
        head[start + 4..start + 6].copy_from_slice(&((length - start) as u16).to_be_bytes());
    }
    let addresses = if group.is_v4 { 12..20 } else { 8..40 };
    let partial = fold(pseudo_header(&head[addresses], group.protocol, length - start));
    head[start + offset..start + offset + 2].copy_from_slice(&partial.to_be_bytes());
    let header = VirtioHeader {
        flags: F_NEEDS_CSUM,
        gso_type,
        header_length: group.header as u16,
        gso_size: group.payload as u16,
        csum_start: start as u16,
        csum_offset: offset as u16,
    };
    frame.copy_from_slice(&header.emit());
}

fn word(raw: &[u8], at: usize) -> usize {
    usize::from(raw[at]) << 8 | usize::from(raw[at + 1])
}

fn double(raw: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]])
}

//! Twin: wyrmhole/wire/split.py.
//!
//! Splitting: turn one super-packet of a TUN into complete IP packets.
//!
//! A super-packet holds up to 64 KiB of one TCP or UDP flow under one set of headers and is split into segments of
//! `gso_size` bytes of payload. [`Segments::parse`] requires that the offsets in the virtio header equal those of the
//! packet's own headers, and only the latter are used. Each segment is then written directly into the wire buffer,
//! behind its message header. The transport checksum starts from the pseudo-header's sum, which the kernel leaves in
//! the checksum field. The final destination of a source route therefore needs no special case.

use crate::checksum::{checksum, fold, sum};
use crate::ip::{IPV4_HEADER_SIZE, IPV6_HEADER_SIZE, PROTOCOL_TCP, PROTOCOL_UDP, is_walkable_extension};
use crate::virtio::{F_NEEDS_CSUM, GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, OffloadError, VirtioHeader};

/// A TCP peer can make Linux use segments of 8 bytes of payload (`TCP_MIN_GSO_SIZE`), which is 8190 segments in the
/// largest super-packet. A correct kernel never makes more.
pub const MAX_SEGMENTS: usize = 8192;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// A super-packet with verified headers.
#[derive(Clone, Copy, Debug)]
pub struct Segments {
    is_v4: bool,
    is_tcp: bool,
    /// The offset of the transport header.
    start: usize,
    /// The offset of the payload, which is the length of all headers.
    header: usize,
    gso_size: usize,
    length: usize,
    count: usize,
    /// The pseudo-header's sum without its length.
    pseudo: u64,
    identification: u16,
    sequence: u32,
    flags: u8,
}

impl Segments {
    /// Verify the headers of a super-packet against its virtio header.
    ///
    /// # Errors
    /// [`OffloadError`], for the whole frame, if header and packet are inconsistent.
    pub fn parse(virtio: &VirtioHeader, packet: &[u8]) -> Result<Self, OffloadError> {
        let is_v4 = packet.first().ok_or(OffloadError)? >> 4 == 4;
        let is_v6 = packet[0] >> 4 == 6;
        let kind = if virtio.gso_type == GSO_UDP_L4 { GSO_UDP_L4 } else { virtio.gso_type & !GSO_ECN };
        let (protocol, version_fits) = match kind {
            GSO_TCPV4 => (PROTOCOL_TCP, is_v4),
            GSO_TCPV6 => (PROTOCOL_TCP, is_v6),
            GSO_UDP_L4 => (PROTOCOL_UDP, is_v4 || is_v6),
            _ => return Err(OffloadError),
        };
        let (found, start) = if is_v4 { walk_v4(packet)? } else { walk_v6(packet)? };
        let is_tcp = protocol == PROTOCOL_TCP;
        let (least, offset) = if is_tcp { (20, 16) } else { (8, 6) };
        let place = (usize::from(virtio.csum_start), usize::from(virtio.csum_offset));
        if !version_fits
            || found != protocol
            || start + least > packet.len()
            || virtio.flags & F_NEEDS_CSUM == 0
            || place != (start, offset)
        {
            return Err(OffloadError);
        }
        let header = if is_tcp { start + usize::from(packet[start + 12] >> 4) * 4 } else { start + 8 };
        let gso_size = usize::from(virtio.gso_size);
        if header < start + least || header > packet.len() || gso_size == 0 {
            return Err(OffloadError);
        }
        // A super-packet without payload is one segment.
        let count = (packet.len() - header).div_ceil(gso_size).max(1);
        if count > MAX_SEGMENTS {
            return Err(OffloadError);
        }
        // Subtract the length, which the sum includes, in ones' complement. Adding 0xFFFF first keeps it positive.
        let partial = u64::from(word(packet, start + offset));
        let pseudo = partial + 0xFFFF - u64::from(fold((packet.len() - start) as u64));
        Ok(Self {
            is_v4,
            is_tcp,
            start,
            header,
            gso_size,
            length: packet.len(),
            count,
            pseudo,
            identification: word(packet, 4),
            sequence: if is_tcp { double(packet, start + 4) } else { 0 },
            flags: if is_tcp { packet[start + 13] } else { 0 },
        })
    }

    /// The number of segments, at least one.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// The length of segment `index`, headers included.
    #[must_use]
    pub fn size(&self, index: usize) -> usize {
        self.header + self.gso_size.min(self.length - self.header - index * self.gso_size)
    }

    /// Write segment `index` to `out`, which has exactly its size. `packet` is the one that was parsed.
    pub fn emit(&self, packet: &[u8], index: usize, out: &mut [u8]) {
        let (start, header) = (self.start, self.header);
        let at = header + index * self.gso_size;
        let size = out.len();
        out[..header].copy_from_slice(&packet[..header]);
        out[header..].copy_from_slice(&packet[at..at + size - header]);
        if self.is_v4 {
            out[2..4].copy_from_slice(&(size as u16).to_be_bytes());
            out[4..6].copy_from_slice(&self.identification.wrapping_add(index as u16).to_be_bytes());
            out[10..12].fill(0);
            let field = checksum(&out[..start], 0);
            out[10..12].copy_from_slice(&field.to_be_bytes());
        } else {
            out[4..6].copy_from_slice(&((size - IPV6_HEADER_SIZE) as u16).to_be_bytes());
        }
        let pseudo = self.pseudo + (size - start) as u64;
        if self.is_tcp {
            let sequence = self.sequence.wrapping_add((index * self.gso_size) as u32);
            out[start + 4..start + 8].copy_from_slice(&sequence.to_be_bytes());
            out[start + 13] = self.tcp_flags(index);
            put_checksum(&mut out[start..], 16, pseudo, false);
        } else {
            out[start + 4..start + 6].copy_from_slice(&((size - start) as u16).to_be_bytes());
            put_checksum(&mut out[start..], 6, pseudo, true);
        }
    }

    /// CWR stays on the first segment, FIN and PSH on the last, like in the kernel's `tcp_gso_segment`.
    fn tcp_flags(&self, index: usize) -> u8 {
        let mut flags = self.flags;
        if index > 0 {
            flags &= !CWR;
        }
        if index + 1 < self.count {
            flags &= !(FIN | PSH);
        }
        flags
    }
}

/// Compute and write the checksum. In UDP, 0 means "no checksum", so 0 is written as 0xFFFF.
fn put_checksum(transport: &mut [u8], offset: usize, pseudo: u64, is_udp: bool) {
    transport[offset..offset + 2].fill(0);
    let mut value = !fold(u64::from(sum(transport)) + pseudo);
    if value == 0 && is_udp {
        value = 0xFFFF;
    }
    transport[offset..offset + 2].copy_from_slice(&value.to_be_bytes());
}

/// Complete the partial checksum of one packet in place.
///
/// # Errors
/// [`OffloadError`] if its field lies beyond the packet, which is unchanged then.
pub fn complete(packet: &mut [u8], csum_start: u16, csum_offset: u16) -> Result<(), OffloadError> {
    let start = usize::from(csum_start);
    let field = start + usize::from(csum_offset);
    if field + 2 > packet.len() {
        return Err(OffloadError);
    }
    let value = match !sum(&packet[start..]) {
        0 => 0xFFFF,
        value => value,
    };
    packet[field..field + 2].copy_from_slice(&value.to_be_bytes());
    Ok(())
}

fn walk_v4(packet: &[u8]) -> Result<(u8, usize), OffloadError> {
    let start = usize::from(packet[0] & 15) * 4;
    // The mask covers the more-fragments bit and the fragment offset.
    if start < IPV4_HEADER_SIZE || start > packet.len() || word(packet, 6) & 0x3FFF != 0 {
        return Err(OffloadError);
    }
    Ok((packet[9], start))
}

fn walk_v6(packet: &[u8]) -> Result<(u8, usize), OffloadError> {
    if packet.len() < IPV6_HEADER_SIZE {
        return Err(OffloadError);
    }
    let (mut found, mut start) = (packet[6], IPV6_HEADER_SIZE);
    while is_walkable_extension(found) && start + 2 <= packet.len() {
        (found, start) = (packet[start], start + 8 * (usize::from(packet[start + 1]) + 1));
    }
    Ok((found, start))
}

fn word(packet: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([packet[at], packet[at + 1]])
}

fn double(packet: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]])
}

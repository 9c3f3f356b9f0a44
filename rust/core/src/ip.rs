//! The few fields of IPv4 (RFC 791) and IPv6 (RFC 8200) packets that a tunnel looks at, and the errors it sends back.
//! Functions take any bytes: every packet passes here.

use std::net::IpAddr;

use crate::checksum::{checksum, pseudo_header, update};

const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;
const ICMP: u8 = 1;
/// The protocol number of UDP.
pub const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const HOP_BY_HOP: u8 = 0;
const FRAGMENT: u8 = 44;
const ECN_CE: u8 = 3;
/// RFC 1812 4.3.2.3: as much of the packet as fits into 576 bytes.
const ICMP_QUOTE: usize = 548;
const V6_MINIMUM_MTU: usize = 1280;

/// A destination or source: 4 or 16 bytes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// IPv4, as a number.
    V4(u32),
    /// IPv6, as a number.
    V6(u128),
}

impl Address {
    /// From 4 or 16 bytes in network order.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if let Ok(four) = <[u8; 4]>::try_from(bytes) {
            return Some(Self::V4(u32::from_be_bytes(four)));
        }
        <[u8; 16]>::try_from(bytes).ok().map(|sixteen| Self::V6(u128::from_be_bytes(sixteen)))
    }

    /// Whether this is that host.
    #[must_use]
    pub fn is(&self, host: IpAddr) -> bool {
        match (self, host) {
            (Self::V4(number), IpAddr::V4(host)) => *number == u32::from(host),
            (Self::V6(number), IpAddr::V6(host)) => *number == u128::from(host),
            _ => false,
        }
    }
}

fn is_version(packet: &[u8], version: u8, header: usize) -> bool {
    packet.len() >= header && packet[0] >> 4 == version
}

/// The destination; None if this is no IP packet with a whole header.
#[must_use]
pub fn destination(packet: &[u8]) -> Option<Address> {
    if is_version(packet, 4, V4_HEADER) {
        Address::from_bytes(&packet[16..20])
    } else if is_version(packet, 6, V6_HEADER) {
        Address::from_bytes(&packet[24..40])
    } else {
        None
    }
}

/// The source; None if this is no IP packet with a whole header.
#[must_use]
pub fn source(packet: &[u8]) -> Option<Address> {
    if is_version(packet, 4, V4_HEADER) {
        Address::from_bytes(&packet[12..16])
    } else if is_version(packet, 6, V6_HEADER) {
        Address::from_bytes(&packet[8..24])
    } else {
        None
    }
}

/// How long the packet says it is, at most what is there: padding may follow (rule M47). 0: it is no IP packet, or
/// claims more than is there, or less than its header, or is a jumbogram (RFC 2675). Full width: no claim wraps.
#[must_use]
pub fn length(packet: &[u8]) -> usize {
    if is_version(packet, 4, V4_HEADER) {
        let total = word(packet, 2);
        let header = usize::from(packet[0] & 15) * 4;
        if header >= V4_HEADER && header <= total && total <= packet.len() { total } else { 0 }
    } else if is_version(packet, 6, V6_HEADER) {
        let total = word(packet, 4) + V6_HEADER;
        let is_jumbo = total == V6_HEADER && packet[6] == HOP_BY_HOP;
        if total <= packet.len() && !is_jumbo { total } else { 0 }
    } else {
        0
    }
}

/// (source, destination) of an unfragmented UDP packet without IPv6 extension headers.
#[must_use]
pub fn udp_ports(packet: &[u8]) -> Option<(u16, u16)> {
    let offset = if is_version(packet, 4, V4_HEADER) {
        if packet[9] != UDP || packet[6] & 0x1F != 0 || packet[7] != 0 {
            return None;
        }
        usize::from(packet[0] & 15) * 4
    } else if is_version(packet, 6, V6_HEADER) && packet[6] == UDP {
        V6_HEADER
    } else {
        return None;
    };
    if packet.len() < offset + 4 {
        return None;
    }
    Some((word(packet, offset) as u16, word(packet, offset + 2) as u16))
}

/// The two ECN bits (RFC 3168); 0 for what is no IP packet.
#[must_use]
pub fn ecn(packet: &[u8]) -> u8 {
    match packet.first() {
        Some(first) if packet.len() >= V4_HEADER && first >> 4 == 4 => packet[1] & 3,
        Some(first) if packet.len() >= V4_HEADER && first >> 4 == 6 => packet[1] >> 4 & 3,
        _ => 0,
    }
}

/// Whether congestion met outside cannot be told inside: the inner packet's sender does not understand marks.
#[must_use]
pub fn is_unheeded(outer: u8, inner: u8) -> bool {
    outer == ECN_CE && inner == 0
}

/// The ECN bits to deliver (RFC 6040 4.2, figure 4). Like the kernel, and unlike the figure, an inner packet that cannot
/// carry a mark is delivered unchanged.
#[must_use]
pub fn decapsulate_ecn(outer: u8, inner: u8) -> u8 {
    match (outer, inner) {
        (ECN_CE, 0) => 0,
        (ECN_CE, _) => ECN_CE,
        (1, 2) => 1,
        _ => inner,
    }
}

/// Other ECN bits for an IP packet. A wrong IPv4 header checksum stays wrong: it is updated, not recomputed.
pub fn set_ecn(packet: &mut [u8], ecn: u8) {
    if packet[0] >> 4 == 4 {
        let before = word(packet, 0) as u16;
        packet[1] = packet[1] & !3 | ecn;
        let field = update(word(packet, 10) as u16, before, word(packet, 0) as u16);
        packet[10..12].copy_from_slice(&field.to_be_bytes());
    } else {
        packet[1] = packet[1] & 0xCF | ecn << 4;
    }
}

/// The ICMP error for a packet whose host cannot be reached (rule M46), from the address that could not be reached.
/// None: such a packet gets no answer (RFC 1122 3.2.2, RFC 4443 2.4 e).
#[must_use]
pub fn unreachable(packet: &[u8]) -> Option<Vec<u8>> {
    let whole = &packet[..length(packet)];
    match whole.first()? >> 4 {
        4 if may_answer_v4(whole) => Some(icmp(whole)),
        6 if may_answer_v6(whole) => Some(icmpv6(whole)),
        _ => None,
    }
}

/// Not for errors, later fragments, group or broadcast destinations, or sources that are no single host.
fn may_answer_v4(packet: &[u8]) -> bool {
    let no_host = |first: u8| matches!(first, 0 | 127);
    if no_host(packet[12]) || packet[12] >= 224 || no_host(packet[16]) || packet[16] >= 224 {
        return false;
    }
    if packet[6] & 0x1F != 0 || packet[7] != 0 {
        return false;
    }
    let at = usize::from(packet[0] & 15) * 4;
    // Types that are no errors (RFC 1122 3.2.2); unknown ones are taken for errors.
    packet[9] != ICMP || matches!(packet.get(at), Some(0 | 8 | 13..=18))
}

/// Not for errors, redirects, later fragments, multicast destinations, or sources that are no single host.
fn may_answer_v6(packet: &[u8]) -> bool {
    let source = u128::from_be_bytes(packet[8..24].try_into().unwrap_or_default());
    if source <= 1 || packet[8] == 0xFF || packet[24] == 0xFF {
        return false;
    }
    let is_extension = |protocol| matches!(protocol, HOP_BY_HOP | 43 | FRAGMENT | 60 | 135);
    let (mut protocol, mut at) = (packet[6], V6_HEADER);
    while is_extension(protocol) && at + 8 <= packet.len() {
        if protocol == FRAGMENT && (packet[at + 2] != 0 || packet[at + 3] & 0xF8 != 0) {
            return false;
        }
        let size = if protocol == FRAGMENT { 8 } else { 8 * (usize::from(packet[at + 1]) + 1) };
        (protocol, at) = (packet[at], at + size);
    }
    if is_extension(protocol) {
        return false;
    }
    protocol != ICMPV6 || matches!(packet.get(at), Some(kind) if *kind >= 128 && *kind != 137)
}

fn icmp(packet: &[u8]) -> Vec<u8> {
    let quote = &packet[..packet.len().min(ICMP_QUOTE)];
    let length = V4_HEADER + 8 + quote.len();
    // Precedence "internetwork control" (RFC 1812 4.3.2.5), and DF, so that the identification need not be unique.
    let mut answer = vec![0x45, 0xC0, 0, 0, 0, 0, 0x40, 0, 64, ICMP, 0, 0];
    answer[2..4].copy_from_slice(&(length as u16).to_be_bytes());
    answer.extend_from_slice(&packet[16..20]);
    answer.extend_from_slice(&packet[12..16]);
    let field = checksum(&answer, 0);
    answer[10..12].copy_from_slice(&field.to_be_bytes());
    answer.extend_from_slice(&[3, 1, 0, 0, 0, 0, 0, 0]);
    answer.extend_from_slice(quote);
    let field = checksum(&answer[V4_HEADER..], 0);
    answer[V4_HEADER + 2..V4_HEADER + 4].copy_from_slice(&field.to_be_bytes());
    answer
}

fn icmpv6(packet: &[u8]) -> Vec<u8> {
    let quote = &packet[..packet.len().min(V6_MINIMUM_MTU - V6_HEADER - 8)];
    let length = 8 + quote.len();
    let mut answer = vec![0x60, 0, 0, 0, 0, 0, ICMPV6, 64];
    answer[4..6].copy_from_slice(&(length as u16).to_be_bytes());
    answer.extend_from_slice(&packet[24..40]);
    answer.extend_from_slice(&packet[8..24]);
    // Destination unreachable, address unreachable.
    answer.extend_from_slice(&[1, 3, 0, 0, 0, 0, 0, 0]);
    answer.extend_from_slice(quote);
    let field = checksum(&answer[V6_HEADER..], pseudo_header(&answer[8..V6_HEADER], ICMPV6, length));
    answer[V6_HEADER + 2..V6_HEADER + 4].copy_from_slice(&field.to_be_bytes());
    answer
}

fn word(packet: &[u8], at: usize) -> usize {
    usize::from(packet[at]) << 8 | usize::from(packet[at + 1])
}

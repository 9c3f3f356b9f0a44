//! Twin: wyrmhole/wire/ip.py.
//!
//! The fields of IPv4 (RFC 791) and IPv6 (RFC 8200) packets that a tunnel reads, and the ICMP errors that it returns.
//! Functions accept any bytes, because every packet passes here.

use std::net::IpAddr;

use crate::checksum::{checksum, pseudo_header, update};

/// The maximum length of an IP packet.
pub const MAX_PACKET_SIZE: usize = 65_535;
/// The size of an IPv4 header without options.
pub const IPV4_HEADER_SIZE: usize = 20;
/// The size of an IPv6 header without extension headers.
pub const IPV6_HEADER_SIZE: usize = 40;
/// ICMP for IPv4.
pub const PROTOCOL_ICMP: u8 = 1;
/// TCP.
pub const PROTOCOL_TCP: u8 = 6;
/// UDP.
pub const PROTOCOL_UDP: u8 = 17;
/// ICMP for IPv6.
pub const PROTOCOL_ICMPV6: u8 = 58;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
const MOBILITY: u8 = 135;
const HOST_IDENTITY: u8 = 139;
const SHIM6: u8 = 140;

/// The two low bits of a type of service or traffic class (RFC 3168).
pub const ECN_MASK: u8 = 3;
const ECN_NOT_ECT: u8 = 0;
const ECN_ECT1: u8 = 1;
const ECN_ECT0: u8 = 2;
const ECN_CE: u8 = 3;
/// Quote as much of the packet as fits into an error of 576 bytes (RFC 1812 4.3.2.3).
const ICMP_QUOTE: usize = 548;
const IPV6_MINIMUM_MTU: usize = 1280;

/// An address in a packet: 4 or 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// IPv4, as a number.
    V4(u32),
    /// IPv6, as a number.
    V6(u128),
}

impl Address {
    /// Read an address from 4 or 16 bytes in network order.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if let Ok(four) = <[u8; 4]>::try_from(bytes) {
            return Some(Self::V4(u32::from_be_bytes(four)));
        }
        <[u8; 16]>::try_from(bytes).ok().map(|sixteen| Self::V6(u128::from_be_bytes(sixteen)))
    }

    /// Whether this is the address of `host`.
    #[must_use]
    pub fn is(&self, host: IpAddr) -> bool {
        match (self, host) {
            (Self::V4(number), IpAddr::V4(host)) => *number == u32::from(host),
            (Self::V6(number), IpAddr::V6(host)) => *number == u128::from(host),
            _ => false,
        }
    }
}

/// Whether this IPv6 extension header has a length field and may be followed by the transport header of an unfragmented
/// packet.
#[must_use]
pub fn is_walkable_extension(protocol: u8) -> bool {
    matches!(protocol, HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | MOBILITY)
}

/// Whether this is any IPv6 extension header. Packets that have one may belong to any flow.
#[must_use]
pub fn is_extension(protocol: u8) -> bool {
    is_walkable_extension(protocol) || matches!(protocol, FRAGMENT | AUTHENTICATION | HOST_IDENTITY | SHIM6)
}

/// Whether this IPv6 extension header is skipped when deciding whether a packet may be answered by an ICMP error.
fn is_quotable_extension(protocol: u8) -> bool {
    is_walkable_extension(protocol) || protocol == FRAGMENT
}

fn is_version(packet: &[u8], version: u8, header: usize) -> bool {
    packet.len() >= header && packet[0] >> 4 == version
}

/// Also checks that the header claims at least the minimum length.
fn has_ipv4_header(packet: &[u8]) -> bool {
    packet.len() >= IPV4_HEADER_SIZE && matches!(packet[0], 0x45..=0x4F)
}

/// The destination address; `None` if this is not an IP packet with a complete header.
#[must_use]
pub fn destination_of(packet: &[u8]) -> Option<Address> {
    if has_ipv4_header(packet) {
        Address::from_bytes(&packet[16..20])
    } else if is_version(packet, 6, IPV6_HEADER_SIZE) {
        Address::from_bytes(&packet[24..40])
    } else {
        None
    }
}

/// The source address; `None` if this is not an IP packet with a complete header.
#[must_use]
pub fn source_of(packet: &[u8]) -> Option<Address> {
    if has_ipv4_header(packet) {
        Address::from_bytes(&packet[12..16])
    } else if is_version(packet, 6, IPV6_HEADER_SIZE) {
        Address::from_bytes(&packet[8..24])
    } else {
        None
    }
}

/// The length that the packet's header claims; padding may follow (rule M47). Returns 0 if this is not an IP packet, if
/// it claims more than its bytes or less than its header, or if it is a jumbogram (RFC 2675). Computed in `usize`, so
/// that no claim wraps.
#[must_use]
pub fn length_of(packet: &[u8]) -> usize {
    if is_version(packet, 4, IPV4_HEADER_SIZE) {
        let total = word(packet, 2);
        let header = usize::from(packet[0] & 15) * 4;
        if header >= IPV4_HEADER_SIZE && header <= total && total <= packet.len() { total } else { 0 }
    } else if is_version(packet, 6, IPV6_HEADER_SIZE) {
        let total = word(packet, 4) + IPV6_HEADER_SIZE;
        let is_jumbo = total == IPV6_HEADER_SIZE && packet[6] == HOP_BY_HOP;
        if total <= packet.len() && !is_jumbo { total } else { 0 }
    } else {
        0
    }
}

/// The ports (source, destination) of an unfragmented UDP packet without IPv6 extension headers.
#[must_use]
pub fn udp_ports(packet: &[u8]) -> Option<(u16, u16)> {
    let offset = if is_version(packet, 4, IPV4_HEADER_SIZE) {
        if packet[9] != PROTOCOL_UDP || packet[6] & 0x1F != 0 || packet[7] != 0 {
            return None;
        }
        usize::from(packet[0] & 15) * 4
    } else if is_version(packet, 6, IPV6_HEADER_SIZE) && packet[6] == PROTOCOL_UDP {
        IPV6_HEADER_SIZE
    } else {
        return None;
    };
    if packet.len() < offset + 4 {
        return None;
    }
    Some((word(packet, offset) as u16, word(packet, offset + 2) as u16))
}

/// The two ECN bits (RFC 3168); 0 if this is not an IP packet.
#[must_use]
pub fn ecn_of(packet: &[u8]) -> u8 {
    match packet.first() {
        Some(first) if packet.len() >= IPV4_HEADER_SIZE && first >> 4 == 4 => packet[1] & ECN_MASK,
        Some(first) if packet.len() >= IPV4_HEADER_SIZE && first >> 4 == 6 => packet[1] >> 4 & ECN_MASK,
        _ => 0,
    }
}

/// Whether an outer congestion mark cannot be passed on, because the inner packet's sender does not use ECN.
#[must_use]
pub fn is_unheeded(outer: u8, inner: u8) -> bool {
    outer == ECN_CE && inner == ECN_NOT_ECT
}

/// The ECN bits to deliver (RFC 6040 4.2, figure 4): an outer congestion mark is copied inwards. Like in the kernel,
/// and unlike in the figure, an inner packet that cannot carry a mark is delivered unchanged.
#[must_use]
pub fn decapsulate_ecn(outer: u8, inner: u8) -> u8 {
    match (outer, inner) {
        (ECN_CE, ECN_NOT_ECT) => ECN_NOT_ECT,
        (ECN_CE, _) => ECN_CE,
        (ECN_ECT1, ECN_ECT0) => ECN_ECT1,
        _ => inner,
    }
}

/// Set the ECN bits of an IP packet. The IPv4 header checksum is updated, not recomputed, so a wrong one stays wrong.
pub fn set_ecn(packet: &mut [u8], ecn: u8) {
    if packet[0] >> 4 == 4 {
        let before = word(packet, 0) as u16;
        packet[1] = packet[1] & !ECN_MASK | ecn;
        let field = update(word(packet, 10) as u16, before, word(packet, 0) as u16);
        packet[10..12].copy_from_slice(&field.to_be_bytes());
    } else {
        packet[1] = packet[1] & 0xCF | ecn << 4;
    }
}

/// Make the ICMP error for a packet whose destination cannot be reached (rule M46), with that destination as its
/// source. `None` if such a packet must not be answered (RFC 1122 3.2.2, RFC 4443 2.4 e).
#[must_use]
pub fn unreachable(packet: &[u8]) -> Option<Vec<u8>> {
    let whole = &packet[..length_of(packet)];
    match whole.first()? >> 4 {
        4 if may_answer_v4(whole) => Some(icmp(whole)),
        6 if may_answer_v6(whole) => Some(icmpv6(whole)),
        _ => None,
    }
}

/// Return false for errors, later fragments, multicast or broadcast destinations, and sources that are not a host.
fn may_answer_v4(packet: &[u8]) -> bool {
    let no_host = |first: u8| matches!(first, 0 | 127);
    if no_host(packet[12]) || packet[12] >= 224 || no_host(packet[16]) || packet[16] >= 224 {
        return false;
    }
    if packet[6] & 0x1F != 0 || packet[7] != 0 {
        return false;
    }
    let at = usize::from(packet[0] & 15) * 4;
    // These types are not errors (RFC 1122 3.2.2). Unknown types count as errors.
    packet[9] != PROTOCOL_ICMP || matches!(packet.get(at), Some(0 | 8 | 13..=18))
}

/// Return false for errors, redirects, later fragments, multicast destinations, and sources that are not a host.
fn may_answer_v6(packet: &[u8]) -> bool {
    let source = u128::from_be_bytes(packet[8..24].try_into().unwrap_or_default());
    if source <= 1 || packet[8] == 0xFF || packet[24] == 0xFF {
        return false;
    }
    let (mut protocol, mut at) = (packet[6], IPV6_HEADER_SIZE);
    while is_quotable_extension(protocol) && at + 8 <= packet.len() {
        if protocol == FRAGMENT && (packet[at + 2] != 0 || packet[at + 3] & 0xF8 != 0) {
            return false;
        }
        let size = if protocol == FRAGMENT { 8 } else { 8 * (usize::from(packet[at + 1]) + 1) };
        (protocol, at) = (packet[at], at + size);
    }
    if is_quotable_extension(protocol) {
        return false;
    }
    protocol != PROTOCOL_ICMPV6 || matches!(packet.get(at), Some(kind) if *kind >= 128 && *kind != 137)
}

fn icmp(packet: &[u8]) -> Vec<u8> {
    let quote = &packet[..packet.len().min(ICMP_QUOTE)];
    let length = IPV4_HEADER_SIZE + 8 + quote.len();
    // Precedence is "internetwork control" (RFC 1812 4.3.2.5). With DF set, the identification need not be unique.
    let mut answer = vec![0x45, 0xC0, 0, 0, 0, 0, 0x40, 0, 64, PROTOCOL_ICMP, 0, 0];
    answer[2..4].copy_from_slice(&(length as u16).to_be_bytes());
    answer.extend_from_slice(&packet[16..20]);
    answer.extend_from_slice(&packet[12..16]);
    let field = checksum(&answer, 0);
    answer[10..12].copy_from_slice(&field.to_be_bytes());
    answer.extend_from_slice(&[3, 1, 0, 0, 0, 0, 0, 0]);
    answer.extend_from_slice(quote);
    let field = checksum(&answer[IPV4_HEADER_SIZE..], 0);
    answer[IPV4_HEADER_SIZE + 2..IPV4_HEADER_SIZE + 4].copy_from_slice(&field.to_be_bytes());
    answer
}

fn icmpv6(packet: &[u8]) -> Vec<u8> {
    let quote = &packet[..packet.len().min(IPV6_MINIMUM_MTU - IPV6_HEADER_SIZE - 8)];
    let length = 8 + quote.len();
    let mut answer = vec![0x60, 0, 0, 0, 0, 0, PROTOCOL_ICMPV6, 64];
    answer[4..6].copy_from_slice(&(length as u16).to_be_bytes());
    answer.extend_from_slice(&packet[24..40]);
    answer.extend_from_slice(&packet[8..24]);
    // Destination unreachable, address unreachable.
    answer.extend_from_slice(&[1, 3, 0, 0, 0, 0, 0, 0]);
    answer.extend_from_slice(quote);
    let field =
        checksum(&answer[IPV6_HEADER_SIZE..], pseudo_header(&answer[8..IPV6_HEADER_SIZE], PROTOCOL_ICMPV6, length));
    answer[IPV6_HEADER_SIZE + 2..IPV6_HEADER_SIZE + 4].copy_from_slice(&field.to_be_bytes());
    answer
}

fn word(packet: &[u8], at: usize) -> usize {
    usize::from(packet[at]) << 8 | usize::from(packet[at + 1])
}

//! Splitting is the inverse of coalescing, and neither makes a corrupt packet look valid.

use wyrmhole_core::checksum::{checksum, fold, pseudo_header, sum};
use wyrmhole_core::coalesce::Coalescer;
use wyrmhole_core::edges::Part;
use wyrmhole_core::split::{Segments, complete};
use wyrmhole_core::virtio::{self, VirtioHeader};

/// Create a complete TCP or UDP packet.
fn packet(is_v4: bool, is_tcp: bool, sequence: u32, payload: &[u8], flags: u8) -> Vec<u8> {
    let transport = if is_tcp { 32 } else { 8 };
    let length = transport + payload.len();
    let mut packet = if is_v4 {
        let mut head = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, if is_tcp { 6 } else { 17 }, 0, 0];
        head[2..4].copy_from_slice(&((20 + length) as u16).to_be_bytes());
        head.extend_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        let field = checksum(&head, 0);
        head[10..12].copy_from_slice(&field.to_be_bytes());
        head
    } else {
        let mut head = vec![0x60, 0, 0, 0, 0, 0, if is_tcp { 6 } else { 17 }, 64];
        head[4..6].copy_from_slice(&(length as u16).to_be_bytes());
        head.extend_from_slice(&[0xFD; 16]);
        head.extend_from_slice(&[0xFE; 16]);
        head
    };
    let start = packet.len();
    packet.extend_from_slice(&[0x13, 0x88, 0x14, 0xEB]);
    if is_tcp {
        packet.extend_from_slice(&sequence.to_be_bytes());
        packet.extend_from_slice(&[0, 0, 0, 9, 0x80, flags, 2, 0, 0, 0, 0, 0]);
        packet.extend_from_slice(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    } else {
        packet.extend_from_slice(&(length as u16).to_be_bytes());
        packet.extend_from_slice(&[0, 0]);
    }
    packet.extend_from_slice(payload);
    let addresses = if is_v4 { 12..20 } else { 8..40 };
    let pseudo = pseudo_header(&packet[addresses], if is_tcp { 6 } else { 17 }, length);
    let at = start + if is_tcp { 16 } else { 6 };
    let field = checksum(&packet[start..], pseudo);
    packet[at..at + 2].copy_from_slice(&field.to_be_bytes());
    packet
}

/// Coalesce packets, and split each frame again. Returns the number of frames, and the packets.
fn there_and_back(packets: &[Vec<u8>]) -> (usize, Vec<Vec<u8>>) {
    let slot: Vec<u8> = packets.concat();
    let mut coalescer = Coalescer::default();
    (coalescer.tso, coalescer.uso) = (true, true);
    let mut at = 0;
    for packet in packets {
        coalescer.add(&slot, Part { at, length: packet.len() as u32 });
        at += packet.len() as u32;
    }
    let mut back = Vec::new();
    for index in 0..coalescer.frames() {
        let (frame, count) = coalescer.frame(index, &slot);
        let mut whole = frame.header.to_vec();
        frame.parts.iter().for_each(|part| whole.extend_from_slice(part.of(&slot)));
        let header = VirtioHeader::parse(&whole).unwrap();
        let packet = &whole[virtio::VIRTIO_HEADER_SIZE..];
        if header.gso_type == 0 {
            back.push(packet.to_vec());
            continue;
        }
        let segments = Segments::parse(&header, packet).unwrap();
        assert_eq!(segments.count(), count);
        for segment in 0..count {
            let mut out = vec![0; segments.size(segment)];
            segments.emit(packet, segment, &mut out);
            back.push(out);
        }
    }
    (coalescer.frames(), back)
}

/// Clear the IPv4 identification, which may change with DF set (RFC 6864), and replace the header checksum by the
/// header's sum, which shows whether it was valid.
fn without_identification(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let blank = |packet: &Vec<u8>| {
        let mut packet = packet.clone();
        if packet[0] >> 4 == 4 {
            let total = sum(&packet[..20]);
            packet[4..6].fill(0);
            packet[10..12].copy_from_slice(&total.to_be_bytes());
        }
        packet
    };
    packets.iter().map(blank).collect()
}

#[test]
fn a_flow_becomes_one_frame_that_splits_into_the_same_packets() {
    for (is_v4, is_tcp) in [(true, true), (true, false), (false, true), (false, false)] {
        for last in [1, 999, 1000] {
            let packets: Vec<_> = (0..20u32)
                .map(|number| {
                    let size = if number == 19 { last } else { 1000 };
                    let flags = if number == 19 { 0x18 } else { 0x10 };
                    packet(is_v4, is_tcp, 7 + number * 1000, &vec![number as u8; size], flags)
                })
                .collect();
            let (frames, back) = there_and_back(&packets);
            assert_eq!(frames, 1, "v4 {is_v4} tcp {is_tcp} last {last}");
            assert_eq!(without_identification(&back), without_identification(&packets));
        }
    }
}

#[test]
fn a_corrupt_packet_is_passed_on_alone_and_stays_corrupt() {
    for (is_v4, is_tcp) in [(true, true), (true, false), (false, true), (false, false)] {
        let good: Vec<_> =
            (0..5u32).map(|number| packet(is_v4, is_tcp, number * 100, &[number as u8; 100], 0x10)).collect();
        for victim in 0..5 {
            // Every byte in turn, except the version, which would make it another kind of packet.
            for at in 1..good[0].len() {
                let mut packets = good.clone();
                packets[victim][at] ^= 0x10;
                let (_, back) = there_and_back(&packets);
                let (mut expected, mut found) = (without_identification(&packets), without_identification(&back));
                expected.sort();
                found.sort();
                assert_eq!(expected, found, "v4 {is_v4} tcp {is_tcp}: packet {victim}, byte {at}");
            }
        }
    }
}

#[test]
fn alternating_flows_are_kept_separate_and_in_order() {
    let packets: Vec<_> =
        (0..12u32).map(|number| packet(number % 2 == 0, true, number / 2 * 50, &[number as u8; 50], 0x10)).collect();
    let (frames, back) = there_and_back(&packets);
    assert_eq!(frames, 2);
    for version in [4, 6] {
        let of = |list: &[Vec<u8>]| -> Vec<u8> {
            list.iter().filter(|packet| packet[0] >> 4 == version).map(|packet| packet[packet.len() - 1]).collect()
        };
        assert_eq!(of(&back), of(&packets));
    }
}

#[test]
fn a_partial_checksum_is_completed() {
    let mut whole = packet(true, false, 0, b"payload", 0);
    let expected = whole.clone();
    let pseudo = fold(pseudo_header(&whole[12..20], 17, 15));
    whole[26..28].copy_from_slice(&pseudo.to_be_bytes());
    complete(&mut whole, 20, 6).unwrap();
    assert_eq!(whole, expected);
    assert!(complete(&mut whole, 65_535, 65_535).is_err());
}

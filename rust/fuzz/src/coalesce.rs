//! Any packets in any order: each is returned once and unchanged, in frames with consistent headers.

use wyrmhole_core::coalesce::Coalescer;
use wyrmhole_core::edges::Part;
use wyrmhole_core::split::Segments;
use wyrmhole_core::virtio::{VIRTIO_HEADER_SIZE, VirtioHeader};

/// Panic if the property does not hold.
pub fn run(data: &[u8]) {
    let [flags, slot @ ..] = data else { return };
    let mut coalescer = Coalescer::default();
    (coalescer.tso, coalescer.uso) = (flags & 1 != 0, flags & 2 != 0);
    let (mut at, mut packets) = (0usize, Vec::new());
    // Packets have the length that their headers claim, so that mutation moves whole packets. Bytes that are not a
    // packet are added singly.
    while at < slot.len() {
        let length = wyrmhole_core::ip::length_of(&slot[at..]).max(1);
        let part = Part { at: at as u32, length: length as u32 };
        coalescer.add(slot, part);
        packets.push(part);
        at += length;
    }
    let mut seen = Vec::new();
    for index in 0..coalescer.frames() {
        let members: Vec<Part> = coalescer.packets(index).collect();
        let (frame, count) = coalescer.frame(index, slot);
        assert_eq!(members.len(), count);
        let mut whole = frame.header.to_vec();
        frame.parts.iter().for_each(|part| whole.extend_from_slice(part.of(slot)));
        if count > 1 {
            let header = VirtioHeader::parse(&whole).unwrap();
            let segments = Segments::parse(&header, &whole[VIRTIO_HEADER_SIZE..]).expect("a merged frame can be split");
            assert_eq!(segments.count(), count);
            for (number, part) in members.iter().enumerate() {
                let mut out = vec![0; segments.size(number)];
                segments.emit(&whole[VIRTIO_HEADER_SIZE..], number, &mut out);
                // Compare all but the fields that may change with DF set: identification and header checksum.
                let original = part.of(slot);
                assert_eq!(out.len(), original.len());
                let skip = if out[0] >> 4 == 4 { 12 } else { 0 };
                assert_eq!(out[skip..], original[skip..]);
            }
        }
        seen.extend(members);
    }
    seen.sort_by_key(|part| part.at);
    assert_eq!(seen, packets);
}

//! Any TUN frame is refused, or split into packets that carry its whole payload once and have the length they claim.

use wyrmhole_core::split::{MAX_SEGMENTS, Segments, complete};
use wyrmhole_core::virtio::{VIRTIO_HEADER_SIZE, VirtioHeader};

/// Panic if the property does not hold.
pub fn run(data: &[u8]) {
    let Some(header) = VirtioHeader::parse(data) else { return };
    assert_eq!(header.emit(), data[..VIRTIO_HEADER_SIZE]);
    let packet = &data[VIRTIO_HEADER_SIZE..];
    if packet.len() > 65_535 {
        return;
    }
    let mut whole = packet.to_vec();
    let before = whole.clone();
    if complete(&mut whole, header.csum_start, header.csum_offset).is_err() {
        assert_eq!(whole, before);
    }
    let Ok(segments) = Segments::parse(&header, packet) else { return };
    assert!((1..=MAX_SEGMENTS).contains(&segments.count()));
    let mut total = 0;
    for index in 0..segments.count() {
        let mut out = vec![0; segments.size(index)];
        segments.emit(packet, index, &mut out);
        let length = if out[0] >> 4 == 4 {
            usize::from(out[2]) << 8 | usize::from(out[3])
        } else {
            40 + (usize::from(out[4]) << 8 | usize::from(out[5]))
        };
        assert_eq!(length, out.len());
        total += out.len();
    }
    // Each segment has the headers; the payload occurs only once in total.
    assert_eq!((total - packet.len()) % segments.count().saturating_sub(1).max(1), 0);
}

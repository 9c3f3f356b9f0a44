//! Twin: wyrmhole/wire/virtio.py.
//!
//! The virtio-net header before every packet of a TUN (virtio 1.2, 5.1.6; the 10 bytes without `num_buffers`).
//! Integers are in the byte order of the machine. Offsets count from the start of the IP packet after the header.

/// The size of the header in bytes.
pub const VIRTIO_HEADER_SIZE: usize = 10;
/// The header of one complete packet without offloads.
pub const PLAIN_HEADER: [u8; VIRTIO_HEADER_SIZE] = [0; VIRTIO_HEADER_SIZE];
/// The checksum field holds a partial sum, which the receiver of the frame must complete.
pub const F_NEEDS_CSUM: u8 = 1;

/// One packet, not a super-packet.
pub const GSO_NONE: u8 = 0;
/// A TCP super-packet over IPv4.
pub const GSO_TCPV4: u8 = 1;
/// A TCP super-packet over IPv6.
pub const GSO_TCPV6: u8 = 4;
/// A UDP super-packet.
pub const GSO_UDP_L4: u8 = 5;
/// Added to a TCP type: the first segment carries CWR.
pub const GSO_ECN: u8 = 0x80;

/// The virtio header is invalid or inconsistent with the packet that follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OffloadError;

/// A virtio header. `header_length` is a hint that is never read; `gso_size` is the payload of one segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct VirtioHeader {
    pub flags: u8,
    pub gso_type: u8,
    pub header_length: u16,
    pub gso_size: u16,
    pub csum_start: u16,
    pub csum_offset: u16,
}

impl VirtioHeader {
    /// Parse the header at the start of a frame. `None` if the frame is shorter.
    #[must_use]
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let head: &[u8; VIRTIO_HEADER_SIZE] = frame.get(..VIRTIO_HEADER_SIZE)?.try_into().ok()?;
        let word = |at: usize| u16::from_ne_bytes([head[at], head[at + 1]]);
        Some(Self {
            flags: head[0],
            gso_type: head[1],
            header_length: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
        })
    }

    /// The header as 10 bytes.
    #[must_use]
    pub fn emit(&self) -> [u8; VIRTIO_HEADER_SIZE] {
        let mut out = [self.flags, self.gso_type, 0, 0, 0, 0, 0, 0, 0, 0];
        out[2..4].copy_from_slice(&self.header_length.to_ne_bytes());
        out[4..6].copy_from_slice(&self.gso_size.to_ne_bytes());
        out[6..8].copy_from_slice(&self.csum_start.to_ne_bytes());
        out[8..10].copy_from_slice(&self.csum_offset.to_ne_bytes());
        out
    }
}

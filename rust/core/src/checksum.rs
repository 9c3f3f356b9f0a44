//! Twin: wyrmhole/wire/checksum.py.
//!
//! The Internet checksum (RFC 1071) over packets of up to 64 KiB.
//!
//! Words are added in the byte order of the machine, and the sum is converted to network order at the end: byte order
//! does not matter for a ones' complement sum except for this final swap (RFC 1071, 2 (B)).

const LANES: usize = 8;

/// The folded ones' complement sum of the 16-bit words in network order: 0 only if all bytes are zero. An odd last byte
/// is zero-padded.
#[must_use]
pub fn sum(data: &[u8]) -> u16 {
    // 64-bit lanes of 32-bit words cannot overflow below 16 GiB, so carries are folded only once, at the end.
    let mut lanes = [0u64; LANES];
    let mut chunks = data.chunks_exact(4 * LANES);
    for chunk in &mut chunks {
        for (lane, word) in lanes.iter_mut().zip(chunk.chunks_exact(4)) {
            *lane += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
        }
    }
    let mut total: u64 = lanes.iter().sum();
    let mut words = chunks.remainder().chunks_exact(2);
    for word in &mut words {
        total += u64::from(u16::from_ne_bytes([word[0], word[1]]));
    }
    if let [last] = words.remainder() {
        total += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    u16::from_be(fold(total))
}

/// Reduce a wide ones' complement sum to 16 bits.
#[must_use]
pub fn fold(mut total: u64) -> u16 {
    while total > 0xFFFF {
        total = (total & 0xFFFF) + (total >> 16);
    }
    total as u16
}

/// The checksum of `data`, whose checksum field is zero. `initial` is the sum of a pseudo-header.
#[must_use]
pub fn checksum(data: &[u8], initial: u64) -> u16 {
    !fold(u64::from(sum(data)) + initial)
}

/// The sum of a pseudo-header: source and destination address (8 or 32 bytes together), protocol and length (RFC 9293
/// 3.1, RFC 8200 8.1).
#[must_use]
pub fn pseudo_header(addresses: &[u8], protocol: u8, length: usize) -> u64 {
    u64::from(sum(addresses)) + u64::from(protocol) + length as u64
}

/// The checksum field after one 16-bit word of the data changed (RFC 1624, equation 3).
#[must_use]
pub fn update(field: u16, before: u16, after: u16) -> u16 {
    !fold(u64::from(!field) + u64::from(!before) + u64::from(after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_1071_has_its_sum() {
        assert_eq!(sum(&[0x00, 0x01, 0xF2, 0x03, 0xF4, 0xF5, 0xF6, 0xF7]), 0xDDF2);
    }

    #[test]
    fn every_length_agrees_with_a_plain_loop() {
        let data: Vec<u8> = (0..2000u32).map(|at| (at * 131 + 17) as u8).collect();
        for length in 0..data.len() {
            let plain: u64 = data[..length]
                .chunks(2)
                .map(|word| u64::from(word[0]) << 8 | u64::from(*word.get(1).unwrap_or(&0)))
                .sum();
            assert_eq!(sum(&data[..length]), fold(plain), "{length} bytes");
        }
    }

    #[test]
    fn a_sum_over_the_checksum_field_is_all_ones() {
        let mut header = [0x45, 0, 0, 60, 0x1C, 0x46, 0x40, 0, 0x40, 6, 0, 0, 172, 16, 10, 99, 172, 16, 10, 12];
        let field = checksum(&header, 0);
        header[10..12].copy_from_slice(&field.to_be_bytes());
        assert_eq!(sum(&header), 0xFFFF);
        header[8] = 0x3F;
        let updated = update(field, 0x4006, 0x3F06);
        header[10..12].copy_from_slice(&updated.to_be_bytes());
        assert_eq!(sum(&header), 0xFFFF);
    }
}

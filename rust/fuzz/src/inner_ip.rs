//! Any inner packet: its length never exceeds its bytes, ECN changes keep the header's sum, ICMP errors are valid.

use wyrmhole_core::checksum::sum;
use wyrmhole_core::ip;

/// Panic if the property does not hold.
pub fn run(data: &[u8]) {
    let length = ip::length_of(data);
    assert!(length <= data.len());
    let _ = (ip::destination_of(data), ip::source_of(data), ip::udp_ports(data), ip::ecn_of(data));
    if length == 0 {
        assert!(ip::unreachable(data).is_none());
        return;
    }
    let packet = &data[..length];
    for outer in 0..4 {
        let ecn = ip::decapsulate_ecn(outer, ip::ecn_of(packet));
        let mut marked = packet.to_vec();
        ip::set_ecn(&mut marked, ecn);
        assert_eq!(ip::ecn_of(&marked), ecn);
        let header = usize::from(packet[0] & 15) * 4;
        if packet[0] >> 4 == 4 && sum(&packet[..header]) == 0xFFFF {
            assert_eq!(sum(&marked[..header]), 0xFFFF);
        }
    }
    if let Some(error) = ip::unreachable(packet) {
        assert_eq!(ip::length_of(&error), error.len());
        assert_eq!(ip::source_of(&error), ip::destination_of(packet));
        assert_eq!(ip::destination_of(&error), ip::source_of(packet));
        assert!(ip::unreachable(&error).is_none(), "an error was answered");
    }
}

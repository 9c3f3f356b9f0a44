//! Any inner packet: its length never exceeds what is there, ECN changes keep the header's sum, ICMP errors are packets.

use wyrmhole_core::checksum::sum;
use wyrmhole_core::ip;

/// Panics when it does not hold.
pub fn run(data: &[u8]) {
    let length = ip::length(data);
    assert!(length <= data.len());
    let _ = (ip::destination(data), ip::source(data), ip::udp_ports(data), ip::ecn(data));
    if length == 0 {
        assert!(ip::unreachable(data).is_none());
        return;
    }
    let packet = &data[..length];
    for outer in 0..4 {
        let ecn = ip::decapsulate_ecn(outer, ip::ecn(packet));
        let mut marked = packet.to_vec();
        ip::set_ecn(&mut marked, ecn);
        assert_eq!(ip::ecn(&marked), ecn);
        let header = usize::from(packet[0] & 15) * 4;
        if packet[0] >> 4 == 4 && sum(&packet[..header]) == 0xFFFF {
            assert_eq!(sum(&marked[..header]), 0xFFFF);
        }
    }
    if let Some(error) = ip::unreachable(packet) {
        assert_eq!(ip::length(&error), error.len());
        assert_eq!(ip::source(&error), ip::destination(packet));
        assert_eq!(ip::destination(&error), ip::source(packet));
        assert!(ip::unreachable(&error).is_none(), "errors are not answered");
    }
}

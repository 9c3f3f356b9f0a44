//! Any inner packet: its length never exceeds what is there, ECN changes keep the header's sum, ICMP errors are packets.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wyrmhole_fuzz::inner_ip::run(data));

//! Any inner packet: its length never exceeds its bytes, ECN changes keep the header's sum, ICMP errors are valid.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wyrmhole_fuzz::inner_ip::run(data));

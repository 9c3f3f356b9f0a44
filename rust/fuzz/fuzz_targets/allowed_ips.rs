//! Any sequence of insertions, removals and look-ups agrees with a table of prefixes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wyrmhole_fuzz::allowed_ips::run(data));

//! Any packets in any order: each is returned once and unchanged, in frames with consistent headers.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wyrmhole_fuzz::coalesce::run(data));

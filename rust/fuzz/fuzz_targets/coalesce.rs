//! Any packets in any order: each comes out once, whole, in frames whose headers their parts fit.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wyrmhole_fuzz::coalesce::run(data));

//! Any sequence of counters: each is accepted once, unless it is too old.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wyrmhole_fuzz::replay::run(data));

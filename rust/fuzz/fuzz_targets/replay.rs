//! Any row of counters: each is accepted once, if it is not too old.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wyrmhole_fuzz::replay::run(data));

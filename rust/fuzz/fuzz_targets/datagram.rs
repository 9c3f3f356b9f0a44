//! Any train of datagrams to an engine with a session: no panic, and every datagram is delivered, reported or counted.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wyrmhole_fuzz::datagram::run(data));

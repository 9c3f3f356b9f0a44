//! Any TUN frame: refused, or split into packets that carry all its payload once, each with the length it says.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wyrmhole_fuzz::virtio_split::run(data));

//! Any TUN frame is refused, or split into packets that carry its whole payload once and have the length they claim.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wyrmhole_fuzz::virtio_split::run(data));

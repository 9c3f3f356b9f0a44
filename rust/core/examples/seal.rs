//! Nanoseconds to seal one packet with ring.
use std::time::Instant;
use wyrmhole_core::aead::{Aead, Ring};
fn main() {
    let key = Ring.key(&[7; 32]);
    for length in [64usize, 1420] {
        let mut text = vec![0u8; length + 16];
        let start = Instant::now();
        for counter in 0..300_000 {
            key.seal(counter, &mut text);
        }
        println!("ring {length}: {:.0} ns", start.elapsed().as_nanos() as f64 / 300_000.0);
    }
}

//! Twin: wyrmhole/datapath/aead.py.
//!
//! ChaCha20-Poly1305 (RFC 8439) behind a small trait, so that a faster library of the machine can replace AWS-LC.

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

use crate::messages::TAG_SIZE;

/// A library that seals and opens.
pub trait Aead: Send + Sync {
    /// The library's name, for logs.
    fn name(&self) -> &'static str;
    /// Create the cipher of one direction. The library's copy of the key is wiped when the cipher is dropped.
    fn key(&self, key: &[u8; 32]) -> Box<dyn TransportCipher>;
}

/// The key of one direction. The nonce is 4 zero bytes and the counter; there is no associated data (whitepaper 5.4.6).
pub trait TransportCipher: Send + Sync {
    /// Encrypt in place. The last 16 bytes of `text` are overwritten with the tag.
    fn seal(&self, counter: u64, text: &mut [u8]);
    /// Verify and decrypt in place. Returns false if the tag is wrong; the contents of `text` must not be used then.
    fn open(&self, counter: u64, text: &mut [u8]) -> bool;
}

/// The nonce of a counter.
#[must_use]
pub fn nonce(counter: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    nonce
}

/// The backend that is always available.
pub struct AwsLc;

struct AwsLcKey(LessSafeKey);

impl Aead for AwsLc {
    fn name(&self) -> &'static str {
        "aws-lc"
    }

    fn key(&self, key: &[u8; 32]) -> Box<dyn TransportCipher> {
        Box::new(AwsLcKey(aws_lc_key(key)))
    }
}

fn aws_lc_key(key: &[u8; 32]) -> LessSafeKey {
    // Fails only for a wrong length.
    #[allow(clippy::unwrap_used)]
    LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).unwrap())
}

impl TransportCipher for AwsLcKey {
    fn seal(&self, counter: u64, text: &mut [u8]) {
        let at = text.len() - TAG_SIZE;
        let (plain, place) = text.split_at_mut(at);
        let nonce = Nonce::assume_unique_for_key(nonce(counter));
        // Fails only beyond 256 GiB.
        #[allow(clippy::unwrap_used)]
        let tag = self.0.seal_in_place_separate_tag(nonce, Aad::empty(), plain).unwrap();
        place.copy_from_slice(tag.as_ref());
    }

    fn open(&self, counter: u64, text: &mut [u8]) -> bool {
        self.0.open_in_place(Nonce::assume_unique_for_key(nonce(counter)), Aad::empty(), text).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_text_opens_and_an_altered_one_does_not() {
        let key = AwsLc.key(&[7; 32]);
        for length in [0, 1, 16, 1420] {
            let mut text = vec![5; length + TAG_SIZE];
            key.seal(9, &mut text);
            let mut altered = text.clone();
            altered[length] ^= 1;
            assert!(!key.open(9, &mut altered));
            assert!(!key.open(10, &mut text.clone()));
            assert!(key.open(9, &mut text));
            assert_eq!(&text[..length], vec![5; length]);
        }
    }
}

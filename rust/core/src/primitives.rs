//! Twin: wyrmhole/protocol/primitives.py.
//!
//! The cryptographic functions of the whitepaper (5.4), under the names it gives them. Curve25519 and the AEAD are from
//! AWS-LC, BLAKE2s is from `blake2`. HChaCha20, which no AEAD library exposes, is the ChaCha20 block function of RFC
//! 8439 without the final addition (draft-irtf-cfrg-xchacha-03, 2.2).

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{self, PrivateKey, UnparsedPublicKey, X25519};
use aws_lc_rs::error::Unspecified;
use blake2::digest::consts::U16;
use blake2::digest::{Digest, KeyInit, Mac};
use blake2::{Blake2s256, Blake2sMac};
use zeroize::{Zeroize, Zeroizing};

use crate::messages::{MAC_SIZE, TAG_SIZE};

/// 32 bytes that are wiped when they are dropped.
pub type Secret = Zeroizing<[u8; 32]>;

const HMAC_BLOCK: usize = 64;
const CHACHA_CONSTANTS: [u32; 4] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];

/// The reason why a handshake message is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CryptoError {
    /// A tag is wrong.
    InvalidTag,
    /// The peer's key is of low order: the shared secret is all zeros and protects nothing.
    ZeroSharedSecret,
}

/// A private Curve25519 key, static or ephemeral. AWS-LC overwrites its copy when the value is dropped.
pub struct ExchangeKey(PrivateKey);

impl ExchangeKey {
    /// Create a key from 32 bytes, clamped or not.
    #[must_use]
    pub fn new(private: &[u8; 32]) -> Self {
        // Fails only for a wrong length.
        #[allow(clippy::unwrap_used)]
        Self(PrivateKey::from_private_key(&X25519, private).unwrap())
    }

    /// The public key.
    #[must_use]
    pub fn public(&self) -> [u8; 32] {
        let mut public = [0; 32];
        // Fails only if there is no memory.
        #[allow(clippy::unwrap_used)]
        public.copy_from_slice(self.0.compute_public_key().unwrap().as_ref());
        public
    }

    /// Compute Curve25519 (RFC 7748) with a public key.
    ///
    /// # Errors
    /// `ZeroSharedSecret`.
    pub fn dh(&self, public: &[u8; 32]) -> Result<Secret, CryptoError> {
        agreement::agree(&self.0, UnparsedPublicKey::new(&X25519, public), Unspecified, |shared| {
            let mut secret = Secret::default();
            secret.copy_from_slice(shared);
            Ok(secret)
        })
        .map_err(|_| CryptoError::ZeroSharedSecret)
    }
}

/// BLAKE2s with 32 bytes of output.
#[must_use]
pub fn hash2s(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Blake2s256::new();
    parts.iter().for_each(|part| hash.update(part));
    hash.finalize().into()
}

fn keyed(key: &[u8], parts: &[&[u8]]) -> Option<Blake2sMac<U16>> {
    let mut mac = Blake2sMac::<U16>::new_from_slice(key).ok()?;
    parts.iter().for_each(|part| mac.update(part));
    Some(mac)
}

/// Keyed BLAKE2s with 16 bytes of output. The key has at most 32 bytes; a longer key, which never occurs, yields zeros.
#[must_use]
pub fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; MAC_SIZE] {
    keyed(key, parts).map_or([0; MAC_SIZE], |mac| mac.finalize().into_bytes().into())
}

/// Whether `expected` is the MAC of the parts; compares in constant time.
#[must_use]
pub fn is_mac(key: &[u8], parts: &[&[u8]], expected: &[u8]) -> bool {
    keyed(key, parts).is_some_and(|mac| mac.verify_slice(expected).is_ok())
}

/// HMAC-BLAKE2s (RFC 2104). The key has at most 64 bytes.
fn hmac(key: &[u8], parts: &[&[u8]]) -> Secret {
    let mut block = Zeroizing::new([0x36; HMAC_BLOCK]);
    block.iter_mut().zip(key).for_each(|(pad, byte)| *pad ^= byte);
    let mut inner = Blake2s256::new();
    inner.update(*block);
    parts.iter().for_each(|part| inner.update(part));
    block.iter_mut().for_each(|pad| *pad ^= 0x36 ^ 0x5C);
    let mut outer = Blake2s256::new();
    outer.update(*block);
    outer.update(inner.finalize());
    Zeroizing::new(outer.finalize().into())
}

/// One output of HKDF (RFC 5869).
#[must_use]
pub fn kdf1(key: &[u8; 32], data: &[u8]) -> Secret {
    hmac(&*hmac(key, &[data]), &[&[1]])
}

/// Two outputs of HKDF.
#[must_use]
pub fn kdf2(key: &[u8; 32], data: &[u8]) -> (Secret, Secret) {
    let keyed = hmac(key, &[data]);
    let first = hmac(&*keyed, &[&[1]]);
    let second = hmac(&*keyed, &[&*first, &[2]]);
    (first, second)
}

/// Three outputs of HKDF.
#[must_use]
pub fn kdf3(key: &[u8; 32], data: &[u8]) -> (Secret, Secret, Secret) {
    let keyed = hmac(key, &[data]);
    let first = hmac(&*keyed, &[&[1]]);
    let second = hmac(&*keyed, &[&*first, &[2]]);
    let third = hmac(&*keyed, &[&*second, &[3]]);
    (first, second, third)
}

fn cipher(key: &[u8; 32]) -> LessSafeKey {
    // Fails only for a wrong length.
    #[allow(clippy::unwrap_used)]
    LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).unwrap())
}

/// Encrypt in place with ChaCha20-Poly1305 (RFC 8439). The last 16 bytes of `text` are overwritten with the tag. In a
/// handshake the nonce is zero, because each key seals only once.
pub fn seal(key: &[u8; 32], nonce: [u8; 12], text: &mut [u8], ad: &[u8]) {
    let (plain, place) = text.split_at_mut(text.len() - TAG_SIZE);
    let nonce = Nonce::assume_unique_for_key(nonce);
    // Fails only beyond 256 GiB.
    #[allow(clippy::unwrap_used)]
    let tag = cipher(key).seal_in_place_separate_tag(nonce, Aad::from(ad), plain).unwrap();
    place.copy_from_slice(tag.as_ref());
}

/// Decrypt in place; the inverse of `seal`. After an error, the contents of `text` must not be used.
///
/// # Errors
/// `InvalidTag`.
pub fn open(key: &[u8; 32], nonce: [u8; 12], text: &mut [u8], ad: &[u8]) -> Result<(), CryptoError> {
    let nonce = Nonce::assume_unique_for_key(nonce);
    cipher(key).open_in_place(nonce, Aad::from(ad), text).map(|_| ()).map_err(|_| CryptoError::InvalidTag)
}

/// Derive a 32-byte subkey from a 32-byte key and a 16-byte nonce.
#[must_use]
pub fn hchacha20(key: &[u8; 32], nonce: &[u8; 16]) -> Secret {
    let word = |bytes: &[u8], at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let mut state = Zeroizing::new([0u32; 16]);
    state[..4].copy_from_slice(&CHACHA_CONSTANTS);
    for at in 0..8 {
        state[4 + at] = word(key, 4 * at);
    }
    for at in 0..4 {
        state[12 + at] = word(nonce, 4 * at);
    }
    for _ in 0..10 {
        for column in 0..4 {
            quarter_round(&mut state, [column, column + 4, column + 8, column + 12]);
        }
        for diagonal in 0..4 {
            let at = |row: usize| 4 * row + (diagonal + row) % 4;
            quarter_round(&mut state, [at(0), at(1), at(2), at(3)]);
        }
    }
    let mut subkey = Secret::default();
    for (place, from) in subkey.chunks_exact_mut(4).zip([0, 1, 2, 3, 12, 13, 14, 15]) {
        place.copy_from_slice(&state[from].to_le_bytes());
    }
    subkey
}

fn quarter_round(state: &mut [u32; 16], [a, b, c, d]: [usize; 4]) {
    for (left, right) in [(16, 12), (8, 7)] {
        state[a] = state[a].wrapping_add(state[b]);
        state[d] = (state[d] ^ state[a]).rotate_left(left);
        state[c] = state[c].wrapping_add(state[d]);
        state[b] = (state[b] ^ state[c]).rotate_left(right);
    }
}

/// Encrypt in place with XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03). The last 16 bytes of `text` are overwritten
/// with the tag.
pub fn xseal(key: &[u8; 32], nonce: &[u8; 24], text: &mut [u8], ad: &[u8]) {
    let (subkey, nonce) = extended(key, nonce);
    seal(&subkey, nonce, text, ad);
}

/// Decrypt in place; the inverse of `xseal`.
///
/// # Errors
/// `InvalidTag`.
pub fn xopen(key: &[u8; 32], nonce: &[u8; 24], text: &mut [u8], ad: &[u8]) -> Result<(), CryptoError> {
    let (subkey, nonce) = extended(key, nonce);
    open(&subkey, nonce, text, ad).inspect_err(|_| text.zeroize())
}

fn extended(key: &[u8; 32], nonce: &[u8; 24]) -> (Secret, [u8; 12]) {
    let mut first = [0; 16];
    first.copy_from_slice(&nonce[..16]);
    let mut last = [0; 12];
    last[4..].copy_from_slice(&nonce[16..]);
    (hchacha20(key, &first), last)
}
